// Text to token ids and back. Every tokenizer here works on bytes: decode(encode(x)) == x for any byte string x, valid
// UTF-8 or not (the one exception is a tokenizer.json with an NFC normalizer, which gives back the normalised text).
//
// Bytes that are not UTF-8: the text is cut into maximal valid runs and the bytes between them. A valid run is
// tokenised as if it stood alone; the bytes between are one piece that skips the split regex and is byte-encoded.
//
// A special token's text in ordinary input ("<|endoftext|>" in a file) is plain text unless Special::parse is asked
// for. Objects are immutable after creation and may be used from several threads at once.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sieve {

enum class Special : std::uint8_t {
  as_text,  // the text of a special token is text like any other
  parse,    // it becomes the special token
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  virtual std::string name() const = 0;         // "byte", "bpe-8192": for humans
  virtual std::int64_t vocab_size() const = 0;  // largest id + 1
  virtual std::uint64_t hash() const = 0;  // XXH3-64 of what decides the ids; how the file is laid out does not count
  // The token that ends a document; none where the tokenizer's files name no such token.
  virtual std::optional<std::int32_t> separator() const = 0;
  virtual std::optional<std::int32_t> id_of(std::string_view bytes) const = 0;  // of "<|endoftext|>", " the"
  virtual bool has(std::int32_t id) const = 0;                                  // vocabularies may have holes
  virtual bool is_special(std::int32_t id) const = 0;
  virtual std::string_view token_bytes(std::int32_t id) const = 0;  // Exit::data where no token has this id

  // Appends the ids of `text` to `out`.
  virtual void encode(std::string_view text, std::vector<std::int32_t>& out,
                      Special special = Special::as_text) const = 0;
  // Appends the ids of a prefix of `text` that any continuation leaves as they are and returns the length of that
  // prefix in bytes (0 where nothing is certain yet). This is how a file is encoded piece by piece with the ids of the
  // whole. Special::as_text.
  virtual std::size_t encode_prefix(std::string_view text, std::vector<std::int32_t>& out) const = 0;

  // Writes a tokenizer.json that Hugging Face `tokenizers` reads (the byte tokenizer too), atomically.
  virtual void save(const std::string& path) const = 0;

  std::vector<std::int32_t> encode(std::string_view text, Special special = Special::as_text) const {
    std::vector<std::int32_t> out;
    encode(text, out, special);
    return out;
  }
  // The bytes of the tokens, special ones included unless skip_special. Exit::data on an id that no token has.
  std::string decode(std::span<const std::int32_t> ids, bool skip_special = false) const;
};

// Bytes 0..255 and end-of-text 256.
std::shared_ptr<const Tokenizer> make_byte_tokenizer();

// A Hugging Face tokenizer.json: model BPE (not SentencePiece's), normalizer none or NFC, pre-tokenizer ByteLevel or
// Split regexes and ByteLevel, decoder ByteLevel. Anything else is Exit::data and named; never a fallback. The
// separator is the eos_token of a tokenizer_config.json in the same folder, else the first of "<|endoftext|>",
// "<|end_of_text|>", "<|end▁of▁sentence|>", "</s>", "<eos>" that is a special token.
std::shared_ptr<const Tokenizer> load_tokenizer_json(const std::string& path);
// The same from the file's text; `subject` names it in errors.
std::shared_ptr<const Tokenizer> parse_tokenizer_json(std::string_view json, const std::string& subject);

// type: "byte" (path ignored) or "hf_json" (a tokenizer.json, or a folder that holds one). Exit::config on another
// type.
std::shared_ptr<const Tokenizer> open_tokenizer(const std::string& type, const std::string& path);

// Bytes that every id stands for, by id; 0 for special tokens and unused ids. For bits per byte and byte perplexity.
std::vector<std::int32_t> bytes_per_token(const Tokenizer& tokenizer);

}  // namespace sieve
