// The operations of type nsa that no other type has (docs/attention.md): keys compressed by blocks, attention over
// them, the blocks that its probabilities choose, and the gated sum of the three branches. Letters: B batch, T
// positions, N queries (the last N of T), H query heads, Hkv key-value heads, D head size, l = compress_block, s =
// compress_stride, M = compressed_count(T, l, s) of kernels/nsa.h.
#pragma once

#include "attention/attention.h"

namespace sieve {

// a (..., A), b (..., B) -> (..., A + B).
Variable join_features(const Variable& a, const Variable& b);

// The rows that each compressed key stands for, one behind the other: x (B, T, heads D), positions (l, D), added by
// place -> (B, heads, M, l D). Compressed keys lie document by document; rows beyond a row's last one are 0.
Variable compress_rows(const Variable& x, const Variable& positions, std::int64_t heads, const PatternSpec& spec,
                       const Tensor& document_starts = {});

// Attention over the compressed keys that end at or before a query, 0 where there are none: q (B, N, H D), not rotated;
// k, v (B, Hkv, M, D), as compress_rows() lays them out -> (B, N, H D). `choice`, if given, becomes the blocks that
// queries attend to, i32 (B, Hkv, N, blocks), without gradient (kernels/nsa.h). document_starts only with N = T.
Variable compressed_attention(const Variable& q, const Variable& k, const Variable& v, const AttentionSpec& spec,
                              std::int64_t T, const Tensor& document_starts = {}, Tensor* choice = nullptr);

// sum over the branches c of sigmoid(gate_c) x_c, head by head: x_c (B, T, H D), gates (B, T, 3 H), branch c's at c H.
Variable gate_branches(const Variable& x0, const Variable& x1, const Variable& x2, const Variable& gates,
                       std::int64_t heads);

}  // namespace sieve
