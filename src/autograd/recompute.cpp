#include <algorithm>

#include "autograd/mode.h"
#include "autograd/record.h"
#include "core/error.h"

namespace sieve {
namespace {

class Mode {  // sets the thread's mode, and puts the old one back
 public:
  explicit Mode(GradMode mode) : previous_(std::exchange(grad_mode(), std::move(mode))) {}
  ~Mode() { grad_mode() = std::move(previous_); }
  Mode(const Mode&) = delete;
  Mode& operator=(const Mode&) = delete;

 private:
  GradMode previous_;
};

// Stands for the input in the inner walk and catches its gradient. It is a value like any other there, so that the
// inner walk has the order and the sums of a plain graph; the gradient is rounded by the outer one.
class InputNode final : public Node {
 public:
  std::string_view name() const override { return "recompute's input"; }
  std::vector<Tensor> backward(const Tensor& grad) override {
    caught = grad;
    return {};
  }
  Tensor caught;
};

// Edge 0 is the input; the others are the leaves that f reads. Their gradients are accumulated by the inner walk
// itself; the edges only keep their hooks from firing before that, and gradients of one leaf inside and outside are
// added in the order of a plain graph.
class RecomputeNode final : public Node {
 public:
  std::string_view name() const override { return "recompute"; }
  std::vector<Tensor> backward(const Tensor& grad) override {
    const Mode mode({.kind = GradMode::Kind::record});
    const auto f = std::exchange(function, nullptr);
    Variable again = input;  // a leaf or a constant stands for itself
    std::shared_ptr<InputNode> source;
    if (edges[0].node) {
      source = std::make_shared<InputNode>();
      source->shape = input.shape();
      source->dtype = compute_dtype(input.dtype());
      source->sequence = detail::next_sequence();
      again = Variable(input.value(), source);
    }
    input = Variable();
    {
      const Variable out = f(again);
      require(out.shape() == shape && out.dtype() == dtype, "recompute", "f gave ", name_of(out.dtype()), " ",
              out.shape(), " the second time, ", name_of(dtype), " ", shape, " the first");
      if (out.requires_grad()) sieve::backward(out, grad);
    }
    std::vector<Tensor> grads(edges.size());
    if (source) grads[0] = std::move(source->caught);
    return grads;
  }

  std::function<Variable(const Variable&)> function;
  Variable input;
};

}  // namespace

Variable recompute(const std::function<Variable(const Variable&)>& f, const Variable& input) {
  if (!grad_enabled()) return f(input);
  auto node = std::make_shared<RecomputeNode>();
  node->edges.push_back(detail::edge_of(input));
  Tensor value;
  {
    const Mode mode({.kind = GradMode::Kind::note, .note = [&](const Variable& v) {
                       require(v.leaf_state() != nullptr, "recompute",
                               "f reads a recorded value besides its input: make it the input, ",
                               "or move the op that made it into f");
                       const auto is_v = [&](const Node::Edge& e) { return e.leaf == v.leaf_state(); };
                       if (std::none_of(node->edges.begin(), node->edges.end(), is_v))
                         node->edges.push_back(detail::edge_of(v));
                     }});
    value = f(Variable(input.value())).value();
  }
  const auto wanted = [](const Node::Edge& e) { return e.wanted(); };
  if (std::none_of(node->edges.begin(), node->edges.end(), wanted)) return Variable(std::move(value));
  node->function = f;
  // A leaf stands for itself again. Of a recorded value f needs no more than the value.
  node->input = input.leaf_state() ? input : Variable(input.value());
  node->shape = value.shape();
  node->dtype = value.dtype();
  node->sequence = detail::next_sequence();
  return Variable(std::move(value), std::move(node));
}

}  // namespace sieve
