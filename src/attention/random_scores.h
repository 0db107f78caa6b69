// Scores that nobody learned: the control that learned selection must beat. Letters: B batch, Hs score heads, T time.
#pragma once

#include <cstdint>

#include "tensor/tensor.h"

namespace sieve {

// What documents are known by, i64 (B, T): at a position a hash of the first 8 tokens of its document, or of those up
// to itself where these are fewer, so that no later token moves an earlier number. The same document has the same
// numbers wherever it stands. tokens i32 (B, T); document_starts i32 (B, T) on their device, or undefined: a row is one
// document. first_position, before: where a generation goes on, of the first column, and the numbers i64 (B) of the
// position before it.
Tensor document_numbers(const Tensor& tokens, const Tensor& document_starts, std::int64_t first_position = 0,
                        const Tensor& before = {});

struct RandomScores {
  std::uint64_t seed = 0;           // of the run and layer
  std::int64_t first_position = 0;  // of the first column, where a generation goes on
};

// fp32 (B, Hs, T): a uniform number of [0, 1), a function of (seed, head, document, position in the document) alone, so
// that a packed document is selected from as the same document alone. numbers as document_numbers() makes them;
// document_starts as there (undefined: first_position counts).
Tensor random_scores(const Tensor& numbers, std::int64_t heads, const RandomScores& what,
                     const Tensor& document_starts);

}  // namespace sieve
