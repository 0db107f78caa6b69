#include "attention/sparsek.h"

#include <algorithm>
#include <cstddef>

#include "attention/kernels/threshold_walk.h"
#include "core/error.h"

namespace sieve {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The three classes of a score under tau = t. "z - 1 >= t" is the one definition of saturated in every form: monotone
// under rounding.
bool is_saturated(double z, double t) { return z - 1 >= t; }
bool in_band(double z, double t) { return z > t && !is_saturated(z, t); }

// f(t) - k; the saturated are counted, so that a plateau of f is exactly flat.
double excess(std::span<const double> z, double t, std::int64_t k) {
  std::int64_t saturated = 0;
  double sum = 0;
  for (double v : z) {
    if (is_saturated(v, t)) ++saturated;
    else if (v > t) sum += v - t;
  }
  return static_cast<double>(saturated - k) + sum;
}

}  // namespace

double sparsek_threshold(std::span<const double> z, std::int64_t k) {
  require(k >= 1, "sparsek", "k must be at least 1, got ", k);
  const auto n = static_cast<std::int64_t>(z.size());
  if (n < k) return -kInfinity;
  if (n == k) return *std::min_element(z.begin(), z.end()) - 1;
  std::vector<double> breakpoints(z.begin(), z.end());
  for (double v : z) breakpoints.push_back(v - 1);
  std::sort(breakpoints.begin(), breakpoints.end());
  // f >= k up to some breakpoint and below k from the next one on: f is linear between the two. The last breakpoint has
  // f = 0.
  const auto next =
      std::partition_point(breakpoints.begin(), breakpoints.end(), [&](double t) { return excess(z, t, k) >= 0; });
  const double low = *(next - 1);
  double centre = 0, sum = 0;
  std::int64_t saturated = 0, band = 0;
  for (double v : z) {
    if (v - 1 > low) {
      ++saturated;
    } else if (v > low) {  // includes v - 1 == low: above `low` it is fractional
      if (band++ == 0) centre = v;
      sum += v - centre;
    }
  }
  if (band == 0) return *next;  // two breakpoints that differ by rounding only
  return std::clamp(centre + (sum + static_cast<double>(saturated - k)) / static_cast<double>(band), low, *next);
}

double sparsek(std::span<const double> z, std::int64_t k, std::span<double> p) {
  require(p.size() == z.size(), "sparsek", "p has ", p.size(), " elements for ", z.size(), " scores");
  const double tau = sparsek_threshold(z, k);
  for (std::size_t j = 0; j < z.size(); ++j) p[j] = std::clamp(z[j] - tau, 0.0, 1.0);
  return tau;
}

void sparsek_vjp(std::span<const double> z, double tau, std::span<const double> g, std::span<double> dz) {
  require(g.size() == z.size() && dz.size() == z.size(), "sparsek", "gradient sizes ", g.size(), " and ", dz.size(),
          " for ", z.size(), " scores");
  double sum = 0;
  std::int64_t band = 0;
  for (std::size_t j = 0; j < z.size(); ++j) {
    if (!in_band(z[j], tau)) continue;
    sum += g[j];
    ++band;
  }
  const double mean = band > 0 ? sum / static_cast<double>(band) : 0;
  for (std::size_t j = 0; j < z.size(); ++j) dz[j] = in_band(z[j], tau) ? g[j] - mean : 0;
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
  if (is_saturated(z, tau_)) push_saturated(z);
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

void sparsek_prefix_thresholds(std::span<const double> z, std::int64_t k, std::int64_t pool_size, std::int64_t tile,
                               std::span<double> tau) {
  require(tau.size() == z.size() && tile >= 1, "sparsek", "prefix thresholds: ", tau.size(), " outputs for ", z.size(),
          " scores, tile ", tile);
  const auto n = static_cast<std::int64_t>(z.size());
  ThresholdWalk walk(k, pool_size == 0 ? std::max(n, k) : pool_size);
  for (std::int64_t p = 0; p < n; p += tile) {
    walk.tile(z.data() + p, z.data() + p, std::min(tile, n - p), p, tau.data() + p, nullptr);
  }
}

}  // namespace sieve
