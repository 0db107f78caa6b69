// Writes one token shard (data/token_store.h describes the file).
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "data/tokenizer.h"

namespace sieve {

struct ShardHeader {
  const Tokenizer* tokenizer = nullptr;
  std::string split;       // "train" | "val" | any other name
  std::int64_t shard = 0;  // its number in the split
  std::uint64_t source_hash = 0;
};

inline constexpr std::int64_t kShardVersion = 1;

constexpr int token_width(std::int64_t vocab_size) { return vocab_size <= 65536 ? 2 : 4; }  // bytes per token

// `next` fills the buffer with the following raw little-endian tokens (token_width bytes each); it is asked for exactly
// those of `document_tokens` in all. The file is complete and flushed to disk on return.
void write_shard(const std::string& path, const ShardHeader& header, std::span<const std::int64_t> document_tokens,
                 const std::function<void(std::span<std::byte>)>& next);

}  // namespace sieve
