// A fixed validation set: every token of a source but the first is a target exactly once, in the same order every time.
// Chunk c has inputs [cT, cT + T) and targets one further; the last, partial chunk is filled with zeros whose targets
// are -1.
//
// Chunks form fixed blocks of `rows` (the last block may have fewer rows). Block b belongs to rank b mod world; summing
// each block by itself and adding the blocks in their order gives a result that does not depend on the number of ranks.
#pragma once

#include <cstdint>
#include <memory>

#include "data/batch.h"
#include "data/token_source.h"

namespace sieve {

class ValidationSet {
 public:
  // max_tokens > 0: only the first max_tokens targets. Exit::data when there are fewer than two tokens.
  ValidationSet(std::shared_ptr<const TokenSource> source, std::int64_t seq_len, std::int64_t rows, bool document_mask,
                std::int64_t max_tokens = 0);

  std::int64_t blocks() const;
  Batch block(std::int64_t index) const;  // thread-safe
  std::int64_t targets() const { return targets_; }
  std::int64_t chunks() const;

 private:
  std::shared_ptr<const TokenSource> source_;
  std::int64_t seq_len_, rows_, targets_;
  bool document_mask_;
};

}  // namespace sieve
