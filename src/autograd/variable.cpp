#include "autograd/variable.h"

#include "autograd/mode.h"
#include "autograd/record.h"
#include "core/error.h"

namespace sieve {

Variable Variable::leaf(Tensor value) {
  require(value.defined() && is_float(value.dtype()), "leaf", "wants a float tensor");
  Variable v(std::move(value));
  v.leaf_ = std::make_shared<Leaf>();
  v.leaf_->shape = v.shape();
  v.leaf_->grad_dtype = compute_dtype(v.dtype());
  return v;
}

Tensor& Variable::grad() const {
  require(leaf_ != nullptr, "grad", "only a leaf keeps its gradient");
  return leaf_->grad;
}

void Variable::zero_grad() const { grad() = Tensor(); }

void Variable::on_grad_ready(std::function<void()> hook) const {
  require(leaf_ != nullptr, "on_grad_ready", "only a leaf has a gradient to wait for");
  leaf_->ready = std::move(hook);
}

void Variable::replace_value(Tensor value) {
  require(leaf_ != nullptr, "replace_value", "only a leaf has a place of its own");
  require(value.defined() && value.shape() == shape() && value.dtype() == dtype(), "replace_value",
          value.defined() ? value.shape().str() : "undefined", " for a leaf of shape ", shape());
  zero_grad();
  value_ = std::move(value);
}

// The default would destroy edges[0].node, which destroys its edges[0].node, and so on: a stack frame per recorded op.
Node::~Node() {
  std::vector<std::shared_ptr<Node>> dying;
  const auto take = [&dying](std::vector<Edge>& edges) {
    for (Edge& e : edges)
      if (e.node) dying.push_back(std::move(e.node));
  };
  take(edges);
  while (!dying.empty()) {
    const std::shared_ptr<Node> node = std::move(dying.back());
    dying.pop_back();
    if (node.use_count() == 1) take(node->edges);  // nobody else holds it: it dies here, already without inputs
  }
}

GradMode& grad_mode() {
  thread_local GradMode mode;
  return mode;
}

NoGrad::NoGrad() : previous_(static_cast<int>(grad_mode().kind)) { grad_mode().kind = GradMode::Kind::off; }
NoGrad::~NoGrad() { grad_mode().kind = static_cast<GradMode::Kind>(previous_); }
bool grad_enabled() { return grad_mode().kind == GradMode::Kind::record; }

namespace detail {

Node::Edge edge_of(const Variable& v) { return {v.node(), v.leaf_state()}; }

bool wants_grad(const Variable* begin, std::size_t n) {
  GradMode& mode = grad_mode();
  if (mode.kind == GradMode::Kind::off) return false;
  bool any = false;
  for (const Variable* v = begin; v != begin + n; ++v) {
    any = any || v->requires_grad();
    if (mode.kind == GradMode::Kind::note && v->requires_grad()) mode.note(*v);
  }
  return any && mode.kind == GradMode::Kind::record;
}

}  // namespace detail
}  // namespace sieve
