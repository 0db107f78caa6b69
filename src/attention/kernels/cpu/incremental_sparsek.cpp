#include "attention/kernels/incremental_sparsek.h"

#include <algorithm>
#include <functional>

#include "core/error.h"

namespace sieve {
namespace {
constexpr double kInfinity = std::numeric_limits<double>::infinity();
}

IncrementalSparseK::IncrementalSparseK(std::int64_t k, std::int64_t pool_size) : k_(k), pool_size_(pool_size) {
  require(k >= 1 && (pool_size == 0 || pool_size >= k), "sparsek", "thresholds want 1 <= k <= pool, got k = ", k,
          ", pool = ", pool_size);
}

void IncrementalSparseK::clear() {
  tau_ = -kInfinity;
  saturated_.clear();
  fractional_.clear();
}

void IncrementalSparseK::push_saturated(double z) {
  saturated_.push_back(z);
  std::push_heap(saturated_.begin(), saturated_.end(), std::greater<>());
}

double IncrementalSparseK::pop_saturated() {
  std::pop_heap(saturated_.begin(), saturated_.end(), std::greater<>());
  const double z = saturated_.back();
  saturated_.pop_back();
  return z;
}

void IncrementalSparseK::push_fractional(double z) {
  if (fractional_.empty()) {
    centre_ = z;
    centred_sum_ = 0;
  }
  fractional_.push_back(z);
  std::push_heap(fractional_.begin(), fractional_.end(), std::greater<>());
  centred_sum_ += z - centre_;
  ++changes_;
}

void IncrementalSparseK::pop_fractional() {
  std::pop_heap(fractional_.begin(), fractional_.end(), std::greater<>());
  centred_sum_ -= fractional_.back() - centre_;
  fractional_.pop_back();
  ++changes_;
}

// A fresh sum about a fresh centre once per |F| changes: amortised O(1), and rounding never adds up over more than
// those.
void IncrementalSparseK::rebase() {
  if (changes_ < std::max<std::int64_t>(64, band())) return;
  changes_ = 0;
  if (fractional_.empty()) return;
  centre_ = fractional_.front();
  centred_sum_ = 0;
  for (double z : fractional_) centred_sum_ += z - centre_;
}

void IncrementalSparseK::add(double z) {
  if (z <= tau_) return;
  if (z - 1 >= tau_) push_saturated(z);
  else push_fractional(z);
  if (kept() < k_) return;
  if (pool_size_ > 0 && kept() > pool_size_) {  // no saturated score lies below a fractional one
    if (fractional_.empty()) pop_saturated();
    else pop_fractional();
  }
  rebase();
  settle();
}

// Raises tau to sup{t : f(t) >= k}: along the linear piece of f, or to its next breakpoint and on.
void IncrementalSparseK::settle() {
  for (;;) {
    const double leave_saturated = saturated_.empty() ? kInfinity : saturated_.front() - 1;
    if (fractional_.empty() && saturated() <= k_) {  // the plateau: its upper end, equation (2)
      tau_ = std::max(tau_, leave_saturated);
      return;
    }
    const double leave_band = fractional_.empty() ? kInfinity : fractional_.front();
    const double breakpoint = std::min(leave_saturated, leave_band);
    // With k saturated scores f >= k up to where one of them leaves: (1) would end there too, but for rounding.
    const double t = saturated() >= k_ ? kInfinity
                                       : centre_ + (centred_sum_ + static_cast<double>(saturated() - k_)) /
                                                       static_cast<double>(band());  // equation (1)
    if (t <= breakpoint) {
      tau_ = std::max(tau_, t);
      while (!fractional_.empty() && fractional_.front() <= tau_) pop_fractional();
      return;
    }
    tau_ = std::max(tau_, breakpoint);
    if (leave_saturated <= leave_band) push_fractional(pop_saturated());
    else pop_fractional();
  }
}

}  // namespace sieve
