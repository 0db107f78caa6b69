// A Tensor that remembers how it was made. Variables form a graph of Nodes; the engine walks it backwards.
//
// Dtypes of gradients. An op may return the gradient of an input in any float dtype (fp32 for a bf16 weight, say); the
// engine brings it home:
//   - of a leaf: accumulated in fp32 for fp32 and bf16 values, in fp64 for fp64 values;
//   - of an intermediate value: contributions are summed in fp32 (fp64) and rounded once to the value's own dtype, for
//     any number of consumers. An op's backward receives a contiguous gradient of the shape and dtype of its output.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "tensor/tensor.h"

namespace sieve {

class Node;
struct Leaf;

class Variable {
 public:
  Variable() = default;                                          // undefined: an absent input (no bias, no scores)
  explicit Variable(Tensor value) : value_(std::move(value)) {}  // a constant
  static Variable leaf(Tensor value);                            // receives a gradient

  bool defined() const { return value_.defined(); }
  const Tensor& value() const { return value_; }
  const Shape& shape() const { return value_.shape(); }
  std::int64_t size(int axis) const { return value_.size(axis); }
  DType dtype() const { return value_.dtype(); }
  bool requires_grad() const { return node_ != nullptr || leaf_ != nullptr; }

  // Leaves only. Undefined until the first backward reaches it and after zero_grad(), which costs nothing: the next
  // backward's first contribution becomes the gradient without a fill. A gradient that is defined is added to in place,
  // so its storage stays.
  Tensor& grad() const;
  void zero_grad() const;
  // Fires once per backward whose graph holds this leaf, the moment its gradient has received its last contribution. (A
  // leaf inside recompute: when the whole recomputed piece has run.) The gradient may be undefined then, if no op had
  // one for it.
  void on_grad_ready(std::function<void()> hook) const;
  // The same leaf, its value at another place (device, buffer): shape and dtype stay, the gradient is dropped.
  void replace_value(Tensor value);

  // For the engine and for record().
  Variable(Tensor value, std::shared_ptr<Node> node) : value_(std::move(value)), node_(std::move(node)) {}
  const std::shared_ptr<Node>& node() const { return node_; }
  const std::shared_ptr<Leaf>& leaf_state() const { return leaf_; }

 private:
  Tensor value_;
  std::shared_ptr<Node> node_;  // made by an op
  std::shared_ptr<Leaf> leaf_;  // or a leaf
};

struct Leaf {
  Tensor grad;
  std::function<void()> ready;
  Shape shape;
  DType grad_dtype = DType::f32;
  std::int64_t pending = 0;  // contributions a running backward still expects
};

// One recorded op. `edges` lead to its inputs, in order; an edge is null where no gradient is wanted.
class Node {
 public:
  struct Edge {
    std::shared_ptr<Node> node;
    std::shared_ptr<Leaf> leaf;
    bool wanted() const { return node != nullptr || leaf != nullptr; }
  };
  Node() = default;
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;
  virtual ~Node();  // iterative: a graph of any depth dies without recursion
  virtual std::string_view name() const = 0;
  // One gradient per edge, in order; undefined where the edge is not wanted or the gradient is zero. Its shape is the
  // input's, or one the input broadcasts to: the engine sums it back. Frees what it saved.
  virtual std::vector<Tensor> backward(const Tensor& grad) = 0;
  // Before backward(): the other gradients of input 0 are added up in `so_far` and none is to come after this node's. A
  // node that can add them to its own takes them (true), and what it returns for input 0 is then the whole sum.
  virtual bool take(Tensor& so_far) { return false; }

  std::vector<Edge> edges;
  Shape shape;                 // of the output
  DType dtype = DType::f32;    // of the output
  std::uint64_t sequence = 0;  // when it was recorded
  bool unit_grad = false;      // the walk begins here and the gradient is 1: known without looking at device memory

 private:
  friend class Engine;  // what a running backward writes on the graph
  Tensor grad_;
  std::int64_t uses_ = 0;  // consumers that have not run yet
  bool consumed_ = false;
};

// Runs backward from `root` (any shape) with gradient `seed` (same shape; a root of one element may omit it: 1).
// Iterative; counts uses first, so that a node runs once, when all its consumers have run, and a leaf's hook fires the
// moment its gradient is final. Of several ready nodes those that feed leaves alone go first (they finish gradients and
// hold no one up), then the one recorded last. The order, hence every sum, is a function of the graph only. The graph
// is consumed: a second backward through any part of it is an error.
void backward(const Variable& root, const Tensor& seed = {});

// While one of these lives on this thread, ops record nothing.
class NoGrad {
 public:
  NoGrad();
  ~NoGrad();
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  int previous_;
};
bool grad_enabled();

// Recompute (activation checkpointing, Chen et al. 2016, arXiv 1604.06174): runs f without recording, keeps only its
// input, and runs it again in backward. f must be a pure function of its input and of leaves: a value made by an op
// outside that f captures would silently get no gradient, so that is an error in forward.
Variable recompute(const std::function<Variable(const Variable&)>& f, const Variable& input);

}  // namespace sieve
