// Attention over the pairs that a PairPattern shows (kernels/pattern.h): one softmax, by the softmax engine, which
// skips blocks of keys that no query of a tile sees. Letters: B batch, T time, H query heads, D head size.
#pragma once

#include "attention/attention.h"
#include "attention/kernels/pattern.h"
#include "attention/plan.h"

namespace sieve {

// As attention(), for the kinds of shows_pairs(). What queries choose by content (hash, top_k, moba) is chosen without
// gradient by `choose()`, unless the caller brings a choice, as dsa and nsa do: i32 (B, 1 or Hkv or H, T, n).
Variable pattern_attention(const Variable& qkv, const Tensor& choice, const AttentionInputs& in);

// Error(Exit::internal) under the op's name unless a choice that is defined is what kernels/pattern.h lists for T
// queries of B rows, 1 or Hkv or H lists for each, on `device`, that of the op. Entries are not read.
void check_choice(const Tensor& choice, const AttentionSpec& spec, std::int64_t B, std::int64_t T, const Device& device,
                  std::string_view op);

// The pattern of a spec; the pointers in it are those of `choice` and `starts`, contiguous, which must outlive it.
PairPattern pattern_of(const AttentionSpec& spec, const Tensor& choice, const Tensor& starts, std::int64_t T);
// Window and sinks, {j > i - W} and {j < s} of the document, are the keys of Longformer without gaps: the same layer as
// that pattern.
AttentionSpec sinks_as_pattern(const AttentionSpec& sliding_window);
// Whether attention() sends a layer there: a sliding window with sinks, on a GPU, whose bf16 and head size (64, 128)
// the pattern's tensor cores take. The rest stays with the softmax engine.
bool pattern_takes_sinks(const AttentionSpec& spec, const Tensor& qkv);
// Whether heads see different keys.
bool differs_by_head(const AttentionSpec& spec);

// Blocks of kKeyBlock keys that some query of a tile sees, for B rows of T positions and `heads` heads.
TilePlan make_pattern_plan(const PairPattern& pattern, std::int64_t B, std::int64_t heads, std::int64_t T);

}  // namespace sieve
