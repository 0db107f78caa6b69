#include "io/json.h"

#include <cstddef>
#include <iterator>
#include <utility>
#include <vector>

#include "io/file.h"

namespace sieve {
namespace {

// Tells the builder how far the parser has read, which its events do not.
struct CountingIterator {
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  const char* begin;
  const char* at;
  std::size_t* position;

  reference operator*() const { return *at; }
  CountingIterator& operator++() {
    *position = static_cast<std::size_t>(++at - begin);
    return *this;
  }
  CountingIterator operator++(int) {
    CountingIterator old = *this;
    ++*this;
    return old;
  }
  bool operator==(const CountingIterator& other) const { return at == other.at; }
  bool operator!=(const CountingIterator& other) const { return at != other.at; }
};

// Builds the value from events, because the library's own builder keeps the last of doubled keys and has no depth
// limit.
class StrictBuilder final : public nlohmann::json_sax<Json> {
 public:
  StrictBuilder(const std::string& name, const JsonLimits& limits) : name_(name), limits_(limits) {}

  Json take() { return std::move(root_); }
  std::size_t position = 0;  // of the byte after the last one read

  bool null() override { return put(nullptr); }
  bool boolean(bool v) override { return put(v); }
  bool number_integer(number_integer_t v) override { return put(v); }
  bool number_unsigned(number_unsigned_t v) override { return put(v); }
  bool number_float(number_float_t v, const string_t&) override { return put(v); }
  bool string(string_t& v) override { return put(std::move(v)); }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override { return open(Json::object()); }
  bool start_array(std::size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(string_t& k) override {
    Json& object = *open_.back();
    path_.back().clear();  // the key before
    if (object.contains(k))
      fail(limits_.code, "json", name_, ": byte ", position, ": doubled key \"", k, "\" in ", where());
    slot_ = &object[k];
    path_.back() = std::move(k);
    return true;
  }

  bool parse_error(std::size_t byte, const std::string&, const nlohmann::detail::exception& e) override {
    // The library's text starts with its own name and number; what follows the last ": " of the prefix is for people.
    std::string what = e.what();
    if (const auto at = what.find("] "); at != std::string::npos) what = what.substr(at + 2);
    fail(limits_.code, "json", name_, ": byte ", byte, ": ", what);
  }

 private:
  Json* place(Json value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    if (open_.back()->is_array()) {
      open_.back()->push_back(std::move(value));
      return &open_.back()->back();
    }
    *slot_ = std::move(value);
    return slot_;
  }
  template <class T>
  bool put(T&& value) {
    place(Json(std::forward<T>(value)));
    return true;
  }
  bool open(Json container) {
    if (static_cast<int>(open_.size()) >= limits_.depth) {
      fail(limits_.code, "json", name_, ": byte ", position, ": nested deeper than ", limits_.depth, " levels in ",
           where());
    }
    open_.push_back(place(std::move(container)));  // parents do not grow while a child is open, so the pointers hold
    path_.emplace_back();
    return true;
  }
  bool close() {
    open_.pop_back();
    path_.pop_back();
    return true;
  }
  std::string where() const {
    std::string out;
    for (const std::string& part : path_) out += part.empty() ? std::string() : (out.empty() ? "" : ".") + part;
    return out.empty() ? "the top level" : out.substr(0, 200);
  }

  const std::string& name_;
  const JsonLimits& limits_;
  Json root_;
  Json* slot_ = nullptr;
  std::vector<Json*> open_;
  std::vector<std::string> path_;
};

[[noreturn]] void fail_type(const Json& got, std::string_view key, std::string_view wanted, const std::string& name,
                            Exit code) {
  fail(code, "json", name, ": \"", key, "\" must be ", wanted, ", not ",
       got.is_number() ? got.dump() : got.type_name());
}

}  // namespace

Json parse_json(std::string_view text, const std::string& name, const JsonLimits& limits) {
  if (text.empty()) fail(limits.code, "json", name, ": byte 1: unexpected end of input: the text is empty");
  StrictBuilder builder(name, limits);
  const char* begin = text.data();
  const char* end = begin + text.size();
  Json::sax_parse(CountingIterator{begin, begin, &builder.position}, CountingIterator{begin, end, &builder.position},
                  &builder);  // strict: nothing but space may follow the value
  return builder.take();
}

Json read_json(const std::filesystem::path& path, const JsonLimits& limits) {
  return parse_json(read_file(path, limits.bytes, limits.code), path.string(), limits);
}

std::string json_text(const Json& value, int indent) {
  return value.dump(indent, ' ', false, Json::error_handler_t::replace);
}

void write_json(const std::filesystem::path& path, const Json& value) {
  write_file_atomic(path, json_text(value) + "\n");
}

const Json& json_member(const Json& object, std::string_view key, const std::string& name, Exit code) {
  if (!object.is_object()) fail(code, "json", name, ": \"", key, "\" is looked for in something that is not an object");
  const auto it = object.find(std::string(key));
  if (it == object.end()) fail(code, "json", name, ": \"", key, "\" is missing");
  return *it;
}

template <>
std::int64_t get_json(const Json& object, std::string_view key, const std::string& name, Exit code) {
  const Json& v = json_member(object, key, name, code);
  const bool fits = v.is_number_integer() && (!v.is_number_unsigned() || v.get<std::uint64_t>() <= INT64_MAX);
  if (!fits) fail_type(v, key, "an integer", name, code);
  return v.get<std::int64_t>();
}
template <>
std::uint64_t get_json(const Json& object, std::string_view key, const std::string& name, Exit code) {
  const Json& v = json_member(object, key, name, code);
  // A value made by a program may be held as signed although it is not negative; parsed ones are unsigned.
  if (!v.is_number_integer() || (!v.is_number_unsigned() && v.get<std::int64_t>() < 0)) {
    fail_type(v, key, "an integer of at least 0", name, code);
  }
  return v.get<std::uint64_t>();
}
template <>
double get_json(const Json& object, std::string_view key, const std::string& name, Exit code) {
  const Json& v = json_member(object, key, name, code);
  if (!v.is_number()) fail_type(v, key, "a number", name, code);
  return v.get<double>();
}
template <>
bool get_json(const Json& object, std::string_view key, const std::string& name, Exit code) {
  const Json& v = json_member(object, key, name, code);
  if (!v.is_boolean()) fail_type(v, key, "true or false", name, code);
  return v.get<bool>();
}
template <>
std::string get_json(const Json& object, std::string_view key, const std::string& name, Exit code) {
  const Json& v = json_member(object, key, name, code);
  if (!v.is_string()) fail_type(v, key, "a text", name, code);
  return v.get<std::string>();
}

}  // namespace sieve
