// Heads turned by their positions, as an op of its own: for what looks at rotated queries and keys outside the softmax
// (choices, the indexer, linear attention). The softmax turns its own. Letters: B batch, H heads, T time, D features of
// a head.
#pragma once

#include "attention/spec.h"
#include "autograd/variable.h"

namespace sieve {

// x (B, T, H D) -> (B, H, T, D), rotary positions first_position + t; rounded to x's dtype once.
Variable rotate_heads(const Variable& x, std::int64_t heads, const RopeSpec& rope, std::int64_t first_position = 0);

// x (B, T, H D) -> the same with its first `turned` heads turned, the others copied: the queries and keys of qkv.
// Positions are those in the document: first_position + t - document_starts(b, t), which is as in AttentionInputs
// (undefined: a row is one document).
Variable rotate_first_heads(const Variable& x, std::int64_t heads, std::int64_t turned, const RopeSpec& rope,
                            const Tensor& document_starts, std::int64_t first_position = 0);

}  // namespace sieve
