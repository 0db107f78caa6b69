// Scores that nobody learned: the control that learned selection must beat. Letters: B batch, Hs score heads, T time.
#pragma once

#include <cstdint>

#include "tensor/tensor.h"

namespace sieve {

struct RandomScores {
  std::uint64_t seed = 0;           // of the layer
  std::int64_t first_position = 0;  // of the first column, where a generation goes on
};

// fp32 (B, Hs, T): a uniform number of [0, 1), a function of (seed, head, position in the document) alone, so that a
// packed document is selected from as the same document alone, and every row and every run alike. document_starts i32
// (B, T) on the stream's device, or undefined (then first_position counts).
Tensor random_scores(std::int64_t B, std::int64_t heads, std::int64_t T, const RandomScores& what,
                     const Tensor& document_starts, const Stream& stream);

}  // namespace sieve
