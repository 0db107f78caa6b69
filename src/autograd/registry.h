// Which ops may enter a graph. record() refuses at compile time an op that is in no table, and a test demands an
// op_case (tests/support/op_case.h) for every name in every table: no op goes unchecked. Ops of other folders bring a
// table:
//   struct Attention {
//     static constexpr std::span<const std::string_view> table = kAttentionOps;
//     ...
#pragma once

#include <span>
#include <string_view>

#include "autograd/ops.h"

namespace sieve {

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
