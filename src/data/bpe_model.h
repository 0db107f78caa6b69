// What a byte-level BPE consists of, and how it is written in a Hugging Face tokenizer.json.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace sieve {

struct BpeModel {
  enum class Kind : std::uint8_t { unused, ordinary, added, special };
  struct Token {
    std::string bytes;
    Kind kind = Kind::unused;
    bool normalized = false;  // added tokens: matched after the normalizer, not before
  };
  struct Merge {
    std::int32_t left, right, result;
  };

  std::vector<Token> tokens;  // by id
  std::vector<Merge> merges;  // by rank
  std::vector<std::string> splits;
  bool nfc = false;
  bool ignore_merges = false;  // a piece that is a token as a whole is that token
  std::optional<std::int32_t> separator;

  // XXH3-64 of everything above but the separator, in a canonical order.
  std::uint64_t hash() const;
  // The first special token among the usual names of an end of text.
  std::optional<std::int32_t> usual_separator() const;
};

// `subject` names the file in errors (Exit::data).
BpeModel read_tokenizer_json(std::string_view json, const std::string& subject);
std::string write_tokenizer_json(const BpeModel& model);

// GPT-2's table of bytes as printable characters: byte -> code point below 324, and back.
const std::array<std::uint16_t, 256>& byte_characters();
std::string bytes_to_characters(std::string_view bytes);                      // UTF-8
std::optional<std::string> characters_to_bytes(std::string_view characters);  // none: a character outside the table

}  // namespace sieve
