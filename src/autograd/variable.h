// A Tensor that remembers how it was made. Variables form a graph of Nodes; the engine walks it backwards.
#pragma once

#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "tensor/tensor.h"

namespace sieve {

class Node;
struct Leaf;

class Variable {
 public:
  Variable() = default;                                  // undefined: an absent input (no bias, no scores)
  explicit Variable(Tensor value) : value_(std::move(value)) {}  // a constant
  static Variable leaf(Tensor value);                    // receives a gradient

  bool defined() const { return value_.defined(); }
  const Tensor& value() const { return value_; }
  const Shape& shape() const { return value_.shape(); }
  std::int64_t size(int axis) const { return value_.size(axis); }
  DType dtype() const { return value_.dtype(); }
  bool requires_grad() const { return node_ != nullptr || leaf_ != nullptr; }

  // Leaves only. The gradient is fp32 for fp32 and bf16 values, fp64 for fp64; undefined until the first backward reaches it.
  Tensor& grad() const;
  void zero_grad() const;
  // Fires once per backward, the moment this leaf's gradient has received its last contribution.
  void on_grad_ready(std::function<void()> hook) const;

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
  DType grad_dtype;
};

// One recorded op. `inputs` are the edges the engine follows; an edge is null where no gradient is wanted.
class Node {
 public:
  struct Edge {
    std::shared_ptr<Node> node;
    std::shared_ptr<Leaf> leaf;
    Shape shape;   // of the input: gradients are un-broadcast to it by the engine
    bool wanted() const { return node != nullptr || leaf != nullptr; }
  };
  virtual ~Node() = default;
  virtual std::string_view name() const = 0;
  // One gradient per input, in order; undefined where the edge is not wanted. Frees what it saved.
  virtual std::vector<Tensor> backward(const Tensor& grad) = 0;

  std::vector<Edge> edges;
};

// Runs backward from `root` (any shape) with gradient `seed` (same shape; a scalar root may omit it: 1).
// Iterative; counts uses first, so that a node runs once, when all its consumers have run, and a leaf's hook fires the moment its
// gradient is final. Where several nodes are ready, the one recorded last runs first. The graph is consumed.
void backward(const Variable& root, const Tensor& seed = {});

// While one of these lives on this thread, ops record nothing.
class NoGrad {
 public:
  NoGrad();
  ~NoGrad();
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  bool previous_;
};
bool grad_enabled();

// Recompute (activation checkpointing, Chen et al. 2016, arXiv 1604.06174): runs f without recording, keeps only its input, and runs it
// again in backward. f must be a pure function of its input and of leaves.
Variable recompute(const std::function<Variable(const Variable&)>& f, const Variable& input);

}  // namespace sieve
