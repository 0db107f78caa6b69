// One batch of rows for the model. B rows, T tokens per row.
#pragma once

#include <cstdint>

#include "data/token_source.h"
#include "tensor/tensor.h"

namespace sieve {

struct Batch {
  std::int64_t index = 0;         // global micro-batch index (training) or block index (validation)
  Tensor tokens;                  // i32 (B, T)
  Tensor targets;                 // i32 (B, T); -1: does not count
  Tensor document_starts;         // i32 (B, T), see attention/attention.h; undefined without a document mask
  std::int64_t target_count = 0;  // targets >= 0
};

Batch empty_batch(std::int64_t index, std::int64_t rows, std::int64_t seq_len, bool document_mask);

// Drops the document mask of a batch whose rows are one document each: that is what no mask means, and the faster way.
void drop_idle_mask(Batch& batch);

// Row `row` of `batch`: inputs are `targets` tokens of `source` from `begin` on, targets the same one further; the rest
// of the row is zeros whose targets are -1. Reads targets + 1 tokens.
void fill_row(Batch& batch, std::int64_t row, const TokenSource& source, std::int64_t begin, std::int64_t targets);

}  // namespace sieve
