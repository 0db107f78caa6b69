// The attention op: one softmax over the keys that the layer's plan visits (docs/design.md, section 1).
#pragma once

#include "attention/spec.h"
#include "autograd/variable.h"

namespace sieve {

// Which documents a row packs. `starts` i32 (B, T): for every position the index of its document's first token in the
// row (0 <= starts <= t, non-decreasing). Undefined: one document a row. Keys of other documents are never visible and
// the selection state resets. Rotary positions stay the row's own indices.
struct AttentionInputs {
  AttentionSpec spec;
  RopeSpec rope;
  Tensor document_starts;
};

// Statistics of one SparseK layer's selection, means over heads and queries (fp64; docs/attention.md, "Reading the
// statistics").
struct SelectionStats {
  double band_over_k = 0;       // |F| / k: scores in the soft band, where gradients flow
  double saturated_over_k = 0;  // |S1| / k
  double ever_selected = 0;     // share of keys that were selected at least once
  double mean_lifetime = 0;     // queries that a selected key serves
  double score_std = 0;
};

// Which queries a SparseK layer's selection serves with each key: from <= i < to, i32 (B, Hs, T); equal: none
// (attention/kernels/select.h).
struct SelectionLives {
  Tensor from, to;
};

// Error(Exit::config) where the numbers of a spec make no sense, with what to change.
void check_attention(const AttentionSpec& spec, const RopeSpec& rope);

// qkv (B, T, (H + 2 Hkv) D): query heads, key heads, value heads, not yet rotated. scores (B, Hs, T) fp32/fp64 for
// SparseK, undefined otherwise. Returns (B, T, H D). Query head h reads KV head h / (H / Hkv). Scale 1/sqrt(D). `stats`
// and `lives` (SparseK) are filled when given.
Variable attention(const Variable& qkv, const Variable& scores, const AttentionInputs& in,
                   SelectionStats* stats = nullptr, SelectionLives* lives = nullptr);

}  // namespace sieve
