// Tokens of all documents on their way from the encoder into shards: two temporary files, one with the raw tokens, one
// with a record a document, so that memory does not grow with the corpus.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "io/file.h"

namespace sieve {

class TokenSpool {
 public:
  struct Document {
    std::int64_t begin, tokens;  // in the spool
    std::uint64_t hash;          // decides the split
  };

  TokenSpool(const std::filesystem::path& folder, int token_bytes);

  void append(std::span<const std::int32_t> ids);  // to the current document
  void end_document(std::uint64_t hash);           // must not be empty
  void finish();                                   // no appends after this, reads only after this

  std::int64_t tokens() const { return tokens_; }
  std::int64_t documents() const { return documents_; }
  int token_bytes() const { return token_bytes_; }
  void each_document(const std::function<void(std::int64_t, const Document&)>& f) const;  // (number, document) in order
  void read(std::int64_t begin, std::span<std::byte> out) const;                          // raw tokens from `begin` on

 private:
  std::filesystem::path tokens_path_, table_path_;
  int token_bytes_;
  std::optional<WriteFile> tokens_file_, table_file_;
  std::optional<ReadFile> tokens_in_, table_in_;
  std::vector<std::byte> buffer_;
  std::int64_t tokens_ = 0, documents_ = 0, document_begin_ = 0;
};

}  // namespace sieve
