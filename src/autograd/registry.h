// The names of all ops that can enter a graph. record() refuses at compile time an op that is in no table, and a test
// demands an op_case (tests/support/op_case.h) for every name in every table: no op goes unchecked. Ops of other
// folders bring a table of their own:
//   struct Attention { static constexpr std::span<const std::string_view> table = kAttentionOps; ... };
#pragma once

#include <span>
#include <string_view>

namespace sieve {

inline constexpr std::string_view kAutogradOps[] = {
    "add",      "mul",   "scale",  "sum",           "cast",
    "reshape",  "slice", "linear", "embedding",     "layer_norm",
    "rms_norm", "gelu",  "swiglu", "cross_entropy", "linear_cross_entropy",
    "score",
};
constexpr std::span<const std::string_view> registered_ops() { return kAutogradOps; }

template <class Op>
constexpr bool is_registered() {
  std::span<const std::string_view> table = registered_ops();
  if constexpr (requires { Op::table; }) table = Op::table;
  for (std::string_view name : table)
    if (name == Op::name) return true;
  return false;
}

}  // namespace sieve
