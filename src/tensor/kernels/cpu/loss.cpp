// Cross entropy of rows of logits and its gradient, which may overwrite them. R rows, V vocabulary. Statistics in the
// compute dtype.
#include <algorithm>
#include <cmath>

#include "core/parallel_for.h"
#include "tensor/kernels/cpu/vec.h"
#include "tensor/kernels/kernels.h"

namespace sieve::cpu {
namespace {

void check_targets(const CrossEntropyArgs& a) {
  for (std::int64_t r = 0; r < a.R; ++r) {
    if (a.targets_R[r] >= a.V) {
      fail(Exit::data, "cross entropy", "target ", a.targets_R[r], " at position ", r, " is outside the vocabulary of ",
           a.V, ": was the data made with another tokenizer?");
    }
  }
}

// Lanes as in lane_sum; the maximum does not depend on the order, except that a NaN may be passed over: the sum then
// shows it.
template <class T>
compute_t<T> row_max(const T* x, std::int64_t n) {
  using C = compute_t<T>;
  constexpr int kLanes = 32;
  C lanes[kLanes];
  std::fill(lanes, lanes + kLanes, load(x[0]));
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes[l] = load(x[i + l]) > lanes[l] ? load(x[i + l]) : lanes[l];
  }
  for (; i < n; ++i) lanes[0] = load(x[i]) > lanes[0] ? load(x[i]) : lanes[0];
  return *std::max_element(lanes, lanes + kLanes);
}

template <class T, class G>
void cross_entropy_row(const T* x, G* dx, std::int64_t V, std::int32_t target, compute_t<T> scale, compute_t<T>* loss) {
  using C = compute_t<T>;
  if (target < 0) {
    if (loss != nullptr) *loss = 0;
    if (dx != nullptr) std::fill(dx, dx + V, G(0.f));
    return;
  }
  const C top = row_max(x, V);
  const C sum = lane_sum<C>(V, [x, top](std::int64_t i) { return exp(load(x[i]) - top); });
  const C at_target = load(x[target]);
  if (loss != nullptr) *loss = std::log(sum) + (top - at_target);
  if (dx == nullptr) return;
  const C factor = scale / sum;
#pragma GCC ivdep
  for (std::int64_t i = 0; i < V; ++i) dx[i] = G(factor * exp(load(x[i]) - top));
  // p - 1 at the target from one rounding, not from the rounded p
  dx[target] = G(factor * exp(at_target - top) - scale);
}

template <class T, class G>
void cross_entropy(const CrossEntropyArgs& a) {
  using C = compute_t<T>;
  C scale = static_cast<C>(a.grad_scale);
  if (a.grad_factor != nullptr) scale *= *static_cast<const C*>(a.grad_factor);
  parallel_for(a.R, row_grain(16 * a.V), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      G* dx = a.dlogits_RV == nullptr ? nullptr : static_cast<G*>(a.dlogits_RV) + r * a.ld;
      C* loss = a.losses_R == nullptr ? nullptr : static_cast<C*>(a.losses_R) + r;
      cross_entropy_row(static_cast<const T*>(a.logits_RV) + r * a.ld, dx, a.V, a.targets_R[r], scale, loss);
    }
  });
}

}  // namespace

void run(const CrossEntropyArgs& args) {
  require(args.V > 0 || args.R == 0, "cross entropy", "empty vocabulary");
  require(args.dlogits_RV != args.logits_RV || args.dlogits_dtype == args.dtype, "cross entropy",
          "in place with dtypes ", name_of(args.dtype), " and ", name_of(args.dlogits_dtype));
  check_targets(args);
  dispatch_float(args.dtype, "cross entropy", [&]<class T>() {
    dispatch_float(args.dlogits_RV == nullptr ? args.dtype : args.dlogits_dtype, "cross entropy",
                   [&]<class G>() { cross_entropy<T, G>(args); });
  });
}

}  // namespace sieve::cpu
