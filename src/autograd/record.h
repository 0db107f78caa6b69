// How an op enters the graph. An op is a struct: its saved tensors are its members, forward fills them, backward reads
// them.
//
//   struct Scale {
//     static constexpr std::string_view name = "scale";
//     static constexpr std::size_t arity = 1;
//     double factor;
//     Tensor forward(const std::array<Tensor, 1>& in, double f);
//     std::array<Tensor, 1> backward(const Tensor& grad, Needs<1> need);
//   };
//   Variable scale(const Variable& x, double f) { return record<Scale>({x}, f); }
//
// Inputs lie on one device (record() checks it), may be strided views and may be empty; `grad` is contiguous, with
// shape and dtype of the output. An op whose forward wants to know which gradients will be asked for declares a member
// `Needs<arity> need{}`: record() fills it before forward runs. Two more members are optional, filled before backward
// runs:
//   Tensor so_far;            dense, the op's dtype: gradients that input 0 has from its other consumers. Backward adds
//                             them before it rounds; undefined where there are none, or they are still to come. Nobody
//                             else needs it: if its use_count() is 1 it may be overwritten.
//   bool unit_grad = false;   true if `grad` is the 1 that backward() starts with by default.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "autograd/registry.h"
#include "autograd/variable.h"
#include "tensor/same_device.h"

namespace sieve {

template <std::size_t N>
using Needs = std::array<bool, N>;  // which inputs want a gradient

namespace detail {
std::uint64_t next_sequence();
Node::Edge edge_of(const Variable& v);
bool wants_grad(const Variable* begin, std::size_t n);
}  // namespace detail

template <class Op>
class OpNode final : public Node {
 public:
  std::string_view name() const override { return Op::name; }
  std::vector<Tensor> backward(const Tensor& grad) override {
    if constexpr (requires { op.unit_grad = true; }) op.unit_grad = unit_grad;
    auto grads = op.backward(grad, need);
    op = Op{};  // saved tensors go back to the allocator as soon as they were used
    return {std::make_move_iterator(grads.begin()), std::make_move_iterator(grads.end())};
  }
  bool take(Tensor& so_far) override {
    if constexpr (requires { op.so_far = so_far; }) {
      if (!need[0] || so_far.dtype() != dtype) return false;
      op.so_far = std::exchange(so_far, Tensor()).contiguous();
      return true;
    }
    return false;
  }
  Op op{};
  Needs<Op::arity> need{};
};

template <class Op, class... Args>
Variable record(const std::array<Variable, Op::arity>& inputs, Args&&... args) {
  static_assert(is_registered<Op>(), "list the op's name in autograd/registry.h or in the op's own table");
  std::array<Tensor, Op::arity> values;
  for (std::size_t i = 0; i < Op::arity; ++i) values[i] = inputs[i].value();
  require_together(Op::name, values);
  if (!detail::wants_grad(inputs.data(), Op::arity)) {
    Op op{};
    return Variable(op.forward(values, std::forward<Args>(args)...));
  }
  auto node = std::make_shared<OpNode<Op>>();
  for (std::size_t i = 0; i < Op::arity; ++i) {
    node->edges.push_back(detail::edge_of(inputs[i]));
    node->need[i] = node->edges.back().wanted();
  }
  if constexpr (requires { node->op.need = node->need; }) node->op.need = node->need;
  Tensor out = node->op.forward(values, std::forward<Args>(args)...);
  node->shape = out.shape();
  node->dtype = out.dtype();
  node->sequence = detail::next_sequence();
  return Variable(std::move(out), std::move(node));
}

}  // namespace sieve
