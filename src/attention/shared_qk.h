// Queries that are their own keys (type hash, docs/attention.md): one projection less. Letters: B batch, T time, H
// query heads, Hv value heads, D head size.
#pragma once

#include "autograd/variable.h"

namespace sieve {

// qv (B, T, (H + Hv) D) -> qkv (B, T, 3 H D): k = q / |q| head by head (0 where q is 0, with no gradient there), v
// repeated for the H / Hv query heads that read it. The gradient passes through the norm.
Variable shared_qk(const Variable& qv, std::int64_t heads, std::int64_t value_heads, std::int64_t head_dim);

}  // namespace sieve
