// What queries choose by the content of the keys: hash buckets, the best keys, the best blocks. No gradient passes
// through a choice. Letters: B batch, T time, H query heads, Hk key heads, N new positions, D head size.
#pragma once

#include "attention/attention.h"
#include "attention/pattern_cache.h"

namespace sieve {

// qkv (B, T, 3 H D), not yet rotated, one key-value head a query head. The choice of kernels/pattern.h, i32 (B, H, T,
// n) on qkv's device; undefined where the kind chooses nothing.
Tensor choose(const Tensor& qkv, const AttentionInputs& in);

// The choice of the last N of T positions of one document, for top_k and moba, from rotated heads as rotate_heads()
// leaves them: q (B, H, N, D), keys (B, Hk, T, D), of which a slice along T may be given. i32 (B, H, N, n).
Tensor choose_best(const Tensor& q, const Tensor& keys, const AttentionSpec& spec, const Tensor& document_starts = {});
// hash: the buckets of positions, from queries (B, N, H D) that are not rotated. i32 (B, H, N, 1).
Tensor hash_buckets(const Tensor& q, const AttentionSpec& spec);

// How a new token of a generation chooses. Empty where positions alone decide, or where the layer says what was chosen
// (hash, dsa).
ChooseNext next_choice(const AttentionSpec& spec);

// (H, buckets / 2, D) fp64: random directions of length 1, a function of (seed, head) alone.
Tensor hash_directions(const AttentionSpec& spec);

// What the kernels of the choice take for such queries: on a GPU as they come, on the CPU in the compute dtype.
DType choice_dtype(const Tensor& q);

}  // namespace sieve
