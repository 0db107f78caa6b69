// Heads turned by their positions, as an op of its own: for what looks at rotated queries and keys outside the softmax
// (choices, the indexer). The softmax turns its own. Letters: B batch, H heads, T time, D features of a head.
#pragma once

#include "attention/spec.h"
#include "autograd/variable.h"

namespace sieve {

// x (B, T, H D) -> (B, H, T, D), rotary positions first_position + t; rounded to x's dtype once.
Variable rotate_heads(const Variable& x, std::int64_t heads, const RopeSpec& rope, std::int64_t first_position = 0);

}  // namespace sieve
