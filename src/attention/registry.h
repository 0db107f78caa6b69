// The names of this folder's differentiable ops (see autograd/registry.h): tests/attention holds a gradient check for
// each.
#pragma once

#include <span>
#include <string_view>

namespace sieve {

inline constexpr std::string_view kAttentionOps[] = {
    "attention",    "pattern_attention", "timestep_norm", "rotate_heads",     "rotate_first_heads",
    "shared_qk",    "index_loss",        "with_loss",     "linear_attention", "gated_linear_attention",
    "silu_gate",    "add_gated_heads",   "join_features", "compress_rows",    "compressed_attention",
    "gate_branches"};

}  // namespace sieve
