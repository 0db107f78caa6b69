#include <algorithm>
#include <atomic>
#include <queue>

#include "autograd/gradient.h"
#include "autograd/variable.h"
#include "core/error.h"
#include "tensor/same_device.h"

namespace sieve {

// One walk over one graph. Nested walks (recompute) have disjoint nodes and share leaves: a leaf's `pending` counts the
// contributions expected by all walks under way, so that its hook fires once, after the last one.
class Engine {
 public:
  Engine() = default;
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  ~Engine();
  void run(const Variable& root, Tensor seed);

 private:
  using Held = std::shared_ptr<Node>;
  struct Later {  // of two ready nodes, does b go first?
    static bool leaves_only(const Node& n) {
      return std::all_of(n.edges.begin(), n.edges.end(), [](const Node::Edge& e) { return e.node == nullptr; });
    }
    bool operator()(const Held& a, const Held& b) const {
      const bool a_ends = leaves_only(*a), b_ends = leaves_only(*b);
      return a_ends != b_ends ? b_ends : a->sequence < b->sequence;
    }
  };

  void count_uses(const Held& root);
  void run_node(const Held& node);
  void hand_over(Node& node);
  void deliver(const Node::Edge& edge, Tensor grad);
  void leave(const std::shared_ptr<Leaf>& leaf);

  std::vector<Held> graph_;  // every node, until the walk ends: its scratch is reset even when an op throws
  std::vector<std::shared_ptr<Leaf>> leaves_;  // those first met by this walk
  std::priority_queue<Held, std::vector<Held>, Later> ready_;
};

Engine::~Engine() {
  for (const Held& node : graph_) {
    node->grad_ = Tensor();
    node->uses_ = 0;
  }
  for (const auto& leaf : leaves_) leaf->pending = 0;
}

void Engine::count_uses(const Held& root) {
  graph_.push_back(root);
  for (std::size_t i = 0; i < graph_.size(); ++i) {  // graph_ is the work list of a breadth-first walk
    const Held node = graph_[i];
    require(!node->consumed_, "backward", "the graph of '", node->name(),
            "' was already walked by an earlier backward, which freed what it saved; run forward again");
    for (const Node::Edge& edge : node->edges) {
      if (edge.leaf && edge.leaf->pending++ == 0) leaves_.push_back(edge.leaf);
      if (edge.node && edge.node->uses_++ == 0) graph_.push_back(edge.node);
    }
  }
  for (const Held& node : graph_) node->consumed_ = true;
}

void Engine::leave(const std::shared_ptr<Leaf>& leaf) {
  if (--leaf->pending == 0 && leaf->ready) leaf->ready();
}

void Engine::deliver(const Node::Edge& edge, Tensor grad) {
  if (edge.leaf) {
    if (grad.defined()) {
      grad = unbroadcast(grad, edge.leaf->shape);
      accumulate(edge.leaf->grad, std::move(grad), edge.leaf->grad_dtype);
    }
    leave(edge.leaf);
  } else if (edge.node) {
    Node& producer = *edge.node;
    const bool last = --producer.uses_ == 0;
    if (grad.defined()) {
      grad = unbroadcast(grad, producer.shape);
      // All but the last sum stay in the compute dtype, so that a bf16 gradient is rounded once whatever the number of
      // consumers.
      producer.grad_ =
          sum_of(std::move(producer.grad_), std::move(grad), last ? producer.dtype : compute_dtype(producer.dtype));
    }
    if (last) ready_.push(edge.node);
  }
}

// The last of several consumers adds what the others left, if it can: one kernel less, and nothing is rounded between.
// (A norm beside a residual is that: its gradient and the one that came past it.)
void Engine::hand_over(Node& node) {
  if (node.edges.empty() || node.edges[0].node == nullptr) return;
  Node& producer = *node.edges[0].node;
  if (producer.uses_ == 1 && producer.grad_.defined()) node.take(producer.grad_);
}

void Engine::run_node(const Held& node) {
  std::vector<Tensor> grads(node->edges.size());
  if (node->grad_.defined()) {
    hand_over(*node);
    Tensor grad = std::exchange(node->grad_, Tensor()).contiguous().to(node->dtype);
    grads = node->backward(grad);
    require(grads.size() == node->edges.size(), "backward", "'", node->name(), "' returned ", grads.size(),
            " gradients for ", node->edges.size(), " inputs");
  }  // nobody downstream had a gradient: it is zero, and so are its inputs', but their counts and hooks go on
  std::vector<Node::Edge> edges = std::exchange(node->edges, {});
  for (std::size_t i = 0; i < edges.size(); ++i) deliver(edges[i], std::move(grads[i]));
}

void Engine::run(const Variable& root, Tensor seed) {
  if (root.leaf_state()) {
    const std::shared_ptr<Leaf>& leaf = root.leaf_state();
    leaves_.push_back(leaf);
    ++leaf->pending;
    deliver({nullptr, leaf}, std::move(seed));
    return;
  }
  count_uses(root.node());
  root.node()->grad_ = std::move(seed);
  ready_.push(root.node());
  while (!ready_.empty()) {
    const Held node = ready_.top();
    ready_.pop();
    run_node(node);
  }
}

void backward(const Variable& root, const Tensor& seed) {
  require(root.defined() && root.requires_grad(), "backward", "the root depends on no leaf: nothing to differentiate");
  Tensor grad = seed;
  if (!grad.defined()) {
    require(root.value().numel() == 1, "backward", "the root has shape ", root.shape(),
            ": give a seed of that shape, or reduce it to one element");
    grad = full(root.shape(), 1, compute_dtype(root.dtype()), root.value().stream());
    if (root.node()) root.node()->unit_grad = true;
  }
  require(grad.shape() == root.shape(), "backward", "seed ", grad.shape(), " for a root of shape ", root.shape());
  require(is_float(grad.dtype()), "backward", "seed of dtype ", name_of(grad.dtype()));
  require_on(root.value().device(), "backward", {{"seed", grad}});
  Engine().run(root, std::move(grad));
}

namespace detail {
std::uint64_t next_sequence() {
  static std::atomic<std::uint64_t> counter{0};
  return counter.fetch_add(1, std::memory_order_relaxed) + 1;
}
}  // namespace detail

}  // namespace sieve
