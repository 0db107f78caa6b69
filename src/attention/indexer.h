// The token indexer of type dsa (docs/attention.md): which keys a query sees, chosen by small heads of their own, and
// how these learn. Letters: B batch, N queries, T keys, Hi index heads, Di features of one, M chosen keys a query.
#pragma once

#include "attention/attention.h"

namespace sieve {

// What the indexer scores: I_ij = sum_h w_hi ReLU(q_hi . k_j).
struct IndexInputs {
  Variable q;        // (B, Hi, N, Di), rotated
  Variable k;        // (B, 1, T, Di), rotated; a slice along T may be given
  Variable weights;  // (B, Hi, N) fp32 (fp64)
};

// The k best keys of each query, the last N of T positions, one list for all heads; larger I first, then the later key.
// No gradient. i32 (B, 1, N, k) as kernels/pattern.h wants it.
Tensor index_choice(const IndexInputs& in, std::int64_t k, const Tensor& document_starts = {});

// Sum over all positions of KL(p || softmax of I over the chosen keys), p = mean over the query heads of the attention
// probabilities on them, held fixed. () fp32 (fp64). qkv (B, T, (H + 2 Hkv) D), not rotated.
Variable index_loss(const IndexInputs& in, const Tensor& choice, const Tensor& qkv, const AttentionInputs& attention);

// x as it is; backward gives `loss` the gradient 1 whatever arrives, beside x's own. So a loss that only its own
// parameters know is minimised along with the model's without a way to carry it to the top: the model's loss is a sum
// over tokens whose incoming gradient is 1 as well (docs/attention.md).
Variable with_loss(const Variable& x, const Variable& loss);

}  // namespace sieve
