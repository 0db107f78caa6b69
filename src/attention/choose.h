// What queries choose by the content of the keys: hash buckets, the best keys, the best blocks. No gradient passes
// through a choice. Letters: B batch, T time, H query heads, D head size.
#pragma once

#include "attention/attention.h"

namespace sieve {

// qkv (B, T, 3 H D), not yet rotated, one key-value head a query head. The choice of kernels/pattern.h, i32 (B, H, T,
// n) on qkv's device; undefined where the kind chooses nothing.
Tensor choose(const Tensor& qkv, const AttentionInputs& in);

}  // namespace sieve
