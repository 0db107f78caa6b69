// Strict JSON: doubled keys, depth above a limit and anything after the value are errors that name the file and the
// byte.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "core/error.h"

namespace sieve {

using Json = nlohmann::json;  // keys sorted

struct JsonLimits {
  int depth = 64;
  std::uint64_t bytes = 1ull << 30;  // of a file
  Exit code = Exit::data;
};

// `name` stands for the text in messages: "tokenizer.json: byte 120: doubled key "vocab"".
Json parse_json(std::string_view text, const std::string& name, const JsonLimits& limits = {});
Json read_json(const std::filesystem::path& path, const JsonLimits& limits = {});
// Atomic (io/file.h), two-space indent, newline at the end. Invalid UTF-8 in a string is replaced, NaN and infinity
// become null.
void write_json(const std::filesystem::path& path, const Json& value);
std::string json_text(const Json& value, int indent = 2);

// Typed access with an error that names file and key: get_json<std::int64_t>(j, "step", "state.json"). Integers must be
// integers (no floats, in range), texts texts, booleans booleans; double takes any number.
template <class T>
T get_json(const Json& object, std::string_view key, const std::string& name, Exit code = Exit::data);
template <>
std::int64_t get_json(const Json&, std::string_view, const std::string&, Exit);
template <>
std::uint64_t get_json(const Json&, std::string_view, const std::string&, Exit);
template <>
double get_json(const Json&, std::string_view, const std::string&, Exit);
template <>
bool get_json(const Json&, std::string_view, const std::string&, Exit);
template <>
std::string get_json(const Json&, std::string_view, const std::string&, Exit);
// The member itself, which must be there.
const Json& json_member(const Json& object, std::string_view key, const std::string& name, Exit code = Exit::data);

}  // namespace sieve
