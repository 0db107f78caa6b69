// Token shards on disk (data/prepare.h writes them) as one stream. Tokens are read with pread from the dataset's raw
// bytes: no HDF5 lock, no copy of the corpus in memory, any number of threads.
//
// A shard is an HDF5 file with
//   tokens            u16 (vocabulary <= 65536) or u32, (N), contiguous: document after document, each ended by the
//                     separator token
//   document_offsets  u64, (D + 1): document d is tokens [offsets[d], offsets[d + 1]); first 0, last N
//   root attributes   sieve_format = "tokens", version = 1, tokenizer_hash, tokenizer_name, vocab_size, separator,
//                     source_hash, split ("train", "val" or another name), shard, tokens_xxh3, offsets_xxh3 (XXH3-64
//                     of the raw little-endian bytes)
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "data/token_source.h"

namespace sieve {

class Tokenizer;

struct ShardInfo {
  std::string path;
  std::uint64_t file_bytes = 0;
  std::int64_t tokens = 0, documents = 0;
  int token_bytes = 0;  // 2 or 4
  std::int64_t vocab_size = 0, separator = -1;
  std::string tokenizer_name, split;
  std::uint64_t tokenizer_hash = 0, source_hash = 0;
  std::uint64_t tokens_xxh3 = 0, offsets_xxh3 = 0;
};

class TokenStore final : public TokenSource {
 public:
  // `patterns`: files, folders (every .h5 in them) or globs; shards are ordered by path, pattern by pattern. With
  // `expected` the tokenizer's hash must be the shards'. Exit::data, naming the file: nothing matches, not a token
  // shard, truncated (with expected and actual bytes), shards of different tokenizers or not of `expected`, the same
  // shard twice.
  explicit TokenStore(const std::vector<std::string>& patterns, const Tokenizer* expected = nullptr);
  explicit TokenStore(const std::string& pattern, const Tokenizer* expected = nullptr)
      : TokenStore(std::vector<std::string>{pattern}, expected) {}
  ~TokenStore() override;

  std::string name() const override { return name_; }  // the patterns
  std::int64_t tokens() const override;
  std::int64_t documents() const override;
  void read(std::int64_t begin, std::span<std::int32_t> out) const override;
  void document_starts(std::int64_t begin, std::int64_t end, std::vector<std::int64_t>& out) const override;

  const std::vector<ShardInfo>& shards() const { return infos_; }
  std::int64_t vocab_size() const { return infos_.front().vocab_size; }
  std::uint64_t tokenizer_hash() const { return infos_.front().tokenizer_hash; }
  std::uint64_t data_hash() const;  // XXH3-64 over the shards' checksums: what a run's manifest records

  // Reads everything again: checksums against the stored ones, every id below vocab_size, offsets ascending. Throws
  // Exit::data at the first damage, naming shard and dataset. progress(bytes done, bytes in all).
  void verify(const std::function<void(std::uint64_t, std::uint64_t)>& progress = {}) const;
  // One line a shard and a sum, for `data inspect`.
  std::string report() const;

 private:
  struct Shard;
  std::string name_;
  std::vector<ShardInfo> infos_;
  std::vector<std::unique_ptr<Shard>> files_;
  std::vector<std::int64_t> token_begin_, document_begin_;  // shards() + 1 running sums
};

// The files that the patterns name, ordered by path within a pattern; throws as TokenStore does. Also used for "val not
// among train".
std::vector<std::string> expand_shard_patterns(const std::vector<std::string>& patterns);

}  // namespace sieve
