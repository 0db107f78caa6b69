// Timestep normalisation of scores: every score is centred and scaled by running statistics of its own and earlier
// scores, frozen at that token, so that a score never changes later (docs/attention.md; after Ma et al. 2024,
// Megalodon, arXiv 2404.08801, section 3.2).
//   N_j = n0 + j + 1,  mu_j = sum_{i<=j} s_i / N_j,  v_j = (n0 + sum_{i<=j} s_i^2) / N_j - mu_j^2,  y_j = gain (s_j -
//   mu_j) / sqrt(v_j + eps)
// n0 = kPriorCount pseudo-scores of mean 0 and variance 1 keep the first tokens finite. A document starts its own
// statistics.
#pragma once

#include "autograd/variable.h"

namespace sieve {

inline constexpr double kTimestepPriorCount = 8;
inline constexpr double kTimestepEps = 1e-5;

// s (B, Hs, T) fp32/fp64, gain (Hs), document_starts i32 (B, T) or undefined -> (B, Hs, T)
Variable timestep_norm(const Variable& s, const Variable& gain, const Tensor& document_starts);

// The same, one block of scores after another, for generation. `running` holds (count, sum, sum of squares) per (b,
// head).
struct RunningScore {
  Tensor count, sum, squares;  // f64 (B * Hs), beside the scores; undefined before the first block
};
Tensor timestep_norm_extend(const Tensor& s, const Tensor& gain, RunningScore& running);

}  // namespace sieve
