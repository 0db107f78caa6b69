// The names of this folder's differentiable ops (see autograd/registry.h): tests/attention holds a gradient check for
// each.
#pragma once

#include <span>
#include <string_view>

namespace sieve {

inline constexpr std::string_view kAttentionOps[] = {"attention", "pattern_attention", "timestep_norm"};

}  // namespace sieve
