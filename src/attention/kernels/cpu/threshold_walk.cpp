#include "attention/kernels/threshold_walk.h"

#include <algorithm>

#include "core/error.h"

namespace sieve {
namespace {
constexpr double kInfinity = std::numeric_limits<double>::infinity();
}

ThresholdWalk::ThresholdWalk(std::int64_t k, std::int64_t pool_size) : k_(k), pool_size_(pool_size) {
  require(k >= 1 && pool_size >= k, "sparsek", "thresholds want 1 <= k <= pool, got k = ", k, ", pool = ", pool_size);
}

void ThresholdWalk::clear() {
  tau_ = -kInfinity;
  centre_ = centred_sum_ = 0;
  n_fractional_ = n_saturated_ = 0;
  fractional_cursor_ = saturated_cursor_ = 0;
  list_.clear();
}

void ThresholdWalk::tile(const double* u, const double* z, std::int64_t n, std::int64_t first_key, double* tau,
                         std::int32_t* left_pool) {
  if (!merge(u, z, n, first_key)) {
    std::fill(tau, tau + n, tau_);
    return;
  }
  for (std::int64_t p = 0; p < n; ++p) {
    const std::int32_t rank = rank_[static_cast<std::size_t>(p)];
    if (rank >= 0) activate(static_cast<std::size_t>(rank), left_pool);
    tau[p] = tau_;
  }
}

// Compacts the retained list, merges the tile's scores that lie above tau into it and recomputes the centred sum, so
// that rounding never adds up over more than one tile. False: no score of the tile can matter.
bool ThresholdWalk::merge(const double* u, const double* z, std::int64_t n, std::int64_t first_key) {
  fresh_.clear();
  for (std::int64_t p = 0; p < n; ++p) {
    if (z[p] > tau_) fresh_.push_back({u[p], z[p], static_cast<std::int32_t>(first_key + p), State::waiting});
  }
  if (fresh_.empty()) return false;
  std::sort(fresh_.begin(), fresh_.end(),
            [](const Entry& a, const Entry& b) { return a.u < b.u || (a.u == b.u && a.key < b.key); });

  rank_.assign(static_cast<std::size_t>(n), -1);
  merged_.resize(list_.size() + fresh_.size());
  Entry* out = merged_.data();
  const Entry* old = list_.data();
  const Entry* const old_end = old + list_.size();
  const auto copy_alive = [&](const Entry& e) {
    *out = e;
    out += e.state != State::gone;
  };
  for (const Entry& e : fresh_) {
    while (old != old_end && old->u <= e.u) copy_alive(*old++);  // on a tie the older key ranks lower
    rank_[static_cast<std::size_t>(e.key - first_key)] = static_cast<std::int32_t>(out - merged_.data());
    *out++ = e;
  }
  while (old != old_end) copy_alive(*old++);
  merged_.resize(static_cast<std::size_t>(out - merged_.data()));
  list_.swap(merged_);

  fractional_cursor_ = saturated_cursor_ = 0;
  centred_sum_ = 0;
  if (n_fractional_ > 0) {
    centre_ = list_[least_fractional()].z;
    std::int64_t left = n_fractional_;
    for (std::size_t r = fractional_cursor_; left > 0; ++r) {
      if (list_[r].state != State::fractional) continue;
      centred_sum_ += list_[r].z - centre_;
      --left;
    }
  }
  return true;
}

std::size_t ThresholdWalk::least_fractional() {
  while (list_[fractional_cursor_].state != State::fractional) ++fractional_cursor_;
  return fractional_cursor_;
}

std::size_t ThresholdWalk::least_saturated() {
  while (list_[saturated_cursor_].state != State::saturated) ++saturated_cursor_;
  return saturated_cursor_;
}

void ThresholdWalk::add_fractional(Entry& e) {
  e.state = State::fractional;
  // A score as the centre keeps the differences exact for scores of similar size.
  if (n_fractional_++ == 0) {
    centre_ = e.z;
    centred_sum_ = 0;
  } else {
    centred_sum_ += e.z - centre_;
  }
}

void ThresholdWalk::drop_fractional(Entry& e) {
  e.state = State::gone;
  --n_fractional_;
  centred_sum_ -= e.z - centre_;
}

void ThresholdWalk::activate(std::size_t rank, std::int32_t* left_pool) {
  Entry& e = list_[rank];
  if (e.z <= tau_) {
    e.state = State::gone;
    return;
  }
  // "z - 1 >= tau" is the one definition of saturated, here, in the intervals and in the other forms: monotone in both
  // under rounding.
  if (e.z - 1 >= tau_) {
    e.state = State::saturated;
    ++n_saturated_;
    saturated_cursor_ = std::min(saturated_cursor_, rank);
  } else {
    add_fractional(e);
    fractional_cursor_ = std::min(fractional_cursor_, rank);
  }
  const std::int64_t active = n_fractional_ + n_saturated_;
  if (active > pool_size_) push_out_least(e.key, left_pool);
  if (active >= k_) settle();
}

void ThresholdWalk::push_out_least(std::int32_t arriving_key, std::int32_t* left_pool) {
  const bool fractional = n_saturated_ == 0 || (n_fractional_ > 0 && least_fractional() < least_saturated());
  Entry& out = list_[fractional ? least_fractional() : least_saturated()];
  if (fractional) {
    drop_fractional(out);
  } else {
    out.state = State::gone;
    --n_saturated_;
  }
  if (left_pool != nullptr) left_pool[out.key] = arriving_key;
}

// Raises tau to sup{t : f(t) >= k}: along the linear piece of f, or to its next breakpoint and on.
void ThresholdWalk::settle() {
  for (;;) {
    const double leave_saturated = n_saturated_ > 0 ? list_[least_saturated()].z - 1 : kInfinity;
    if (n_fractional_ == 0 && n_saturated_ <= k_) {  // the plateau: its upper end, equation (2)
      tau_ = std::max(tau_, leave_saturated);
      return;
    }
    const double leave_band = n_fractional_ > 0 ? list_[least_fractional()].z : kInfinity;
    // With k saturated scores f >= k up to where one of them leaves: (1) would end there too, but for rounding.
    const double t = n_saturated_ >= k_ ? kInfinity
                                        : centre_ + (centred_sum_ + static_cast<double>(n_saturated_ - k_)) /
                                                        static_cast<double>(n_fractional_);  // equation (1)
    const double breakpoint = std::min(leave_saturated, leave_band);
    if (t <= breakpoint) {
      tau_ = std::max(tau_, t);
      while (n_fractional_ > 0 && list_[least_fractional()].z <= tau_) drop_fractional(list_[least_fractional()]);
      return;
    }
    tau_ = std::max(tau_, breakpoint);
    if (leave_saturated <= leave_band) {
      Entry& e = list_[least_saturated()];
      --n_saturated_;
      add_fractional(e);
      fractional_cursor_ = std::min(fractional_cursor_, saturated_cursor_);
    } else {
      drop_fractional(list_[least_fractional()]);
    }
  }
}

}  // namespace sieve
