// The SparseK threshold of a growing set of scores (form b of attention/sparsek.h, which has the equations): two
// min-heaps, the saturated and the fractional scores. O(log w) a score with w = |S1| + |F|, at most the pool. Every
// score is pushed once, moves from S1 to F at most once and is dropped at most once: what tau has passed never counts
// again.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

namespace sieve {

class IncrementalSparseK {
 public:
  explicit IncrementalSparseK(std::int64_t k, std::int64_t pool_size = 0);  // pool_size: scores kept, >= k; 0 = all
  void add(double z);
  void clear();

  double tau() const { return tau_; }  // -inf while fewer than k scores were added
  std::int64_t band() const {
    return static_cast<std::int64_t>(fractional_.size());
  }  // F, its closed end z = tau + 1 included
  std::int64_t saturated() const { return static_cast<std::int64_t>(saturated_.size()); }
  std::int64_t kept() const { return band() + saturated(); }
  // The scores above tau, in no order.
  std::vector<double> scores() const {
    std::vector<double> all = saturated_;
    all.insert(all.end(), fractional_.begin(), fractional_.end());
    return all;
  }

 private:
  void push_saturated(double z);
  void push_fractional(double z);
  double pop_saturated();
  void pop_fractional();
  void rebase();
  void settle();

  std::int64_t k_, pool_size_;
  double tau_ = -std::numeric_limits<double>::infinity();
  double centre_ = 0, centred_sum_ = 0;         // sum over F of z - centre
  std::int64_t changes_ = 0;                    // of the sum since it was last computed afresh
  std::vector<double> saturated_, fractional_;  // min-heaps
};

}  // namespace sieve
