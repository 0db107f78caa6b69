// What walks a row of scores in the order of time: the members of the hard top k, kept by one warp, and the SparseK
// threshold of every prefix (kernels/threshold_walk.h), prepared by a block and followed by one thread.
#pragma once

#include <cmath>
#include <cstdint>

#include "tensor/kernels/cuda/block.cuh"

namespace sieve::cuda {

inline constexpr int kWalkThreads = 256;
inline constexpr int kWalkTile = 64;  // scores merged at a time

// The top k under "larger u, then the later key". Lane l holds the least of the slots l, l + 32, ..., so that a
// newcomer costs one column of the list and one step across the warp.
class Members {
 public:
  SIEVE_HD static std::size_t bytes(std::int64_t slots) { return static_cast<std::size_t>(slots + 1) / 2 * 2 * 12; }
  __device__ Members(unsigned char* memory, std::int64_t slots, std::int32_t* to)
      : u_(reinterpret_cast<double*>(memory)),
        key_(reinterpret_cast<std::int32_t*>(u_ + (slots + 1) / 2 * 2)),
        slots_(slots),
        to_(to) {}

  __device__ void clear() { size_ = 0; }

  // n scores of the keys first, first + 1, ...; called by one whole warp. to_[key] becomes `end` for a newcomer, and
  // for whom it evicts the query at which it competes.
  __device__ void offer(const double* u, int n, std::int64_t first, std::int64_t delay, std::int64_t end) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    for (int base = 0; base < n; base += 32) {
      const int p = base + lane;
      const double mine = p < n ? u[p] : 0;
      int taken = 0;
      if (size_ < slots_) {
        const std::int64_t room = slots_ - size_;
        taken = static_cast<int>(room < n - base ? room : n - base);
        taken = taken < 32 ? taken : 32;
        if (lane < taken) {
          u_[size_ + lane] = mine;
          key_[size_ + lane] = static_cast<std::int32_t>(first + p);
          to_[first + p] = static_cast<std::int32_t>(end);
        }
        size_ += taken;
        __syncwarp();
        if (size_ < slots_) continue;
        rescan();
        find_least();
      }
      std::int64_t next = taken;
      for (;;) {  // those that beat the least, in their order; the least rises with each
        const unsigned better = __ballot_sync(0xffffffffu, lane >= next && p < n && !(mine < least_u_));
        if (better == 0) break;
        const int winner = __ffs(static_cast<int>(better)) - 1;
        const double value = __shfl_sync(0xffffffffu, mine, winner);
        const auto key = static_cast<std::int32_t>(first + base + winner);
        if (lane == least_slot_ % 32) {
          to_[key_[least_slot_]] = static_cast<std::int32_t>(key + delay);
          to_[key] = static_cast<std::int32_t>(end);
          u_[least_slot_] = value;
          key_[least_slot_] = key;
          rescan();
        }
        __syncwarp();
        find_least();
        next = winner + 1;
      }
    }
  }

 private:
  __device__ static bool less(double u, std::int32_t key, double other, std::int32_t other_key) {
    return u < other || (u == other && key < other_key);
  }
  // The least of the lane's column.
  __device__ void rescan() {
    column_key_ = 0x7fffffff, column_u_ = INFINITY, column_slot_ = -1;
    for (auto s = static_cast<int>(threadIdx.x) % 32; s < size_; s += 32) {
      if (column_slot_ >= 0 && !less(u_[s], key_[s], column_u_, column_key_)) continue;
      column_u_ = u_[s], column_key_ = key_[s], column_slot_ = s;
    }
  }
  __device__ void find_least() {
    least_u_ = column_u_, least_slot_ = column_slot_;
    std::int32_t key = column_key_;
    for (int offset = 16; offset > 0; offset /= 2) {
      const double u = __shfl_xor_sync(0xffffffffu, least_u_, offset);
      const std::int32_t other = __shfl_xor_sync(0xffffffffu, key, offset);
      const int slot = __shfl_xor_sync(0xffffffffu, least_slot_, offset);
      if (slot >= 0 && (least_slot_ < 0 || less(u, other, least_u_, key)))
        least_u_ = u, key = other, least_slot_ = slot;
    }
  }

  double* u_;
  std::int32_t* key_;
  std::int64_t slots_, size_ = 0;
  std::int32_t* to_;
  double column_u_ = 0, least_u_ = 0;
  std::int32_t column_key_ = 0;
  int column_slot_ = -1, least_slot_ = -1;
};

// The retained list ascends by u, then key; `spare` is where it is compacted to before every merge.
struct WalkList {
  double *u, *z;
  std::int32_t* key;
  std::uint8_t* state;

  SIEVE_HD static std::size_t bytes(std::int64_t n) { return (static_cast<std::size_t>(n) * 21 + 7) / 8 * 8; }
  __device__ WalkList(unsigned char* memory, std::int64_t n)
      : u(reinterpret_cast<double*>(memory)),
        z(u + n),
        key(reinterpret_cast<std::int32_t*>(z + n)),
        state(reinterpret_cast<std::uint8_t*>(key + n)) {}
};

enum : std::uint8_t { kWaiting, kFractional, kSaturated, kGone };

// What threads tell each other between merge() and follow().
struct WalkShared {
  double tau, centre, sum;
  std::int64_t size, fractional, saturated;
  double u[kWalkTile], z[kWalkTile];  // fresh scores, ascending
  int place[kWalkTile];               // p-th score of the tile: its rank among the fresh, then its place in the list
  int sorted[kWalkTile];              // the fresh score of a rank
  int counts[kWalkThreads / 32];
};

class Walk {
 public:
  SIEVE_HD static std::size_t bytes(std::int64_t capacity) { return capacity == 0 ? 0 : 2 * WalkList::bytes(capacity); }
  __device__ Walk(unsigned char* memory, std::int64_t capacity, std::int64_t k, std::int64_t pool)
      : list_(memory, capacity), spare_(memory + WalkList::bytes(capacity), capacity), k_(k), pool_(pool) {}

  __device__ void clear() {
    if (threadIdx.x == 0) {
      shared().tau = -INFINITY;
      shared().size = shared().fractional = shared().saturated = 0;
    }
    __syncthreads();
  }

  // The whole block: sorts the tile's scores above tau and merges them into the list. Ends with a barrier.
  __device__ void merge(const double* u, const double* z, int n, std::int32_t first_key) {
    WalkShared& w = shared();
    const auto thread = static_cast<int>(threadIdx.x);
    const bool fresh = thread < n && z[thread] > w.tau;
    if (thread < kWalkTile) w.place[thread] = fresh ? 0 : -1;
    const int count = __syncthreads_count(fresh);
    if (count == 0) return;
    if (fresh) {
      int rank = 0;
      for (int q = 0; q < n; ++q) rank += w.place[q] >= 0 && (u[q] < u[thread] || (u[q] == u[thread] && q < thread));
      w.sorted[rank] = thread, w.u[rank] = u[thread], w.z[rank] = z[thread];
    }
    const std::int64_t alive = compact();
    place_fresh(alive, count, first_key);
    // On a tie the older key ranks lower.
    for (std::int64_t x = thread; x < alive; x += kWalkThreads) {
      const std::int64_t to = x + below(w.u, count, spare_.u[x]);
      list_.u[to] = spare_.u[x], list_.z[to] = spare_.z[x], list_.key[to] = spare_.key[x];
      list_.state[to] = spare_.state[x];
    }
    // Any score of the band may be the centre; the least alive is one, but for ties at the band's closed end.
    double sum = 0;
    const double centre = alive > 0 ? spare_.z[0] : 0;
    for (std::int64_t x = thread; x < alive; x += kWalkThreads)
      sum += spare_.state[x] == kFractional ? spare_.z[x] - centre : 0;
    sum = block_reduce(sum);
    if (thread == 0) w.centre = centre, w.sum = sum, w.size = alive + count;
    __syncthreads();
  }

  // One thread: activates the tile's scores in their order. tau[p] belongs to the prefix that ends with score p.
  __device__ void follow(int n, std::int32_t first_key, double* tau, std::int32_t* left_pool) {
    WalkShared& w = shared();
    tau_ = w.tau, centre_ = w.centre, sum_ = w.sum;
    n_fractional_ = w.fractional, n_saturated_ = w.saturated;
    fractional_cursor_ = saturated_cursor_ = 0;
    for (int p = 0; p < n; ++p) {
      if (w.place[p] >= 0) activate(w.place[p], left_pool);
      if (first_key + p >= k_) tau[p] = tau_;  // prefixes of at most k candidates select everything
    }
    w.tau = tau_;
    w.fractional = n_fractional_, w.saturated = n_saturated_;
  }

 private:
  __device__ static WalkShared& shared() {
    __shared__ WalkShared memory;
    return memory;
  }
  // Entries of an ascending array below u.
  __device__ static std::int64_t below(const double* values, std::int64_t n, double u) {
    std::int64_t low = 0;
    while (low < n) {
      const std::int64_t middle = (low + n) / 2;
      if (values[middle] < u) low = middle + 1;
      else n = middle;
    }
    return low;
  }

  // Copies what is not gone to the spare list; returns its size. Begins and ends with a barrier.
  __device__ std::int64_t compact() {
    WalkShared& w = shared();
    const auto thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
    const std::int64_t each = (w.size + kWalkThreads - 1) / kWalkThreads, begin = thread * each,
                       end = begin + each < w.size ? begin + each : w.size;
    int mine = 0;
    for (std::int64_t x = begin; x < end; ++x) mine += list_.state[x] != kGone;
    int up = mine;
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, up, step);
      if (lane >= step) up += other;
    }
    if (lane == 31) w.counts[warp] = up;
    __syncthreads();
    std::int64_t at = up - mine, all = 0;
    for (int x = 0; x < kWalkThreads / 32; ++x) {
      if (x < warp) at += w.counts[x];
      all += w.counts[x];
    }
    for (std::int64_t x = begin; x < end; ++x) {
      if (list_.state[x] == kGone) continue;
      spare_.u[at] = list_.u[x], spare_.z[at] = list_.z[x], spare_.key[at] = list_.key[x];
      spare_.state[at++] = list_.state[x];
    }
    __syncthreads();
    return all;
  }

  __device__ void place_fresh(std::int64_t alive, int count, std::int32_t first_key) {
    WalkShared& w = shared();
    const auto rank = static_cast<int>(threadIdx.x);
    if (rank >= count) return;
    std::int64_t low = 0, high = alive;  // old scores that do not exceed it
    while (low < high) {
      const std::int64_t middle = (low + high) / 2;
      if (spare_.u[middle] <= w.u[rank]) low = middle + 1;
      else high = middle;
    }
    const std::int64_t to = low + rank;
    list_.u[to] = w.u[rank], list_.z[to] = w.z[rank], list_.key[to] = first_key + w.sorted[rank];
    list_.state[to] = kWaiting;
    w.place[w.sorted[rank]] = static_cast<int>(to);
  }

  // ---- follow(): as kernels/cpu/threshold_walk.cpp
  __device__ std::int64_t least_fractional() {
    while (list_.state[fractional_cursor_] != kFractional) ++fractional_cursor_;
    return fractional_cursor_;
  }
  __device__ std::int64_t least_saturated() {
    while (list_.state[saturated_cursor_] != kSaturated) ++saturated_cursor_;
    return saturated_cursor_;
  }
  __device__ void add_fractional(std::int64_t at) {
    list_.state[at] = kFractional;
    if (n_fractional_++ == 0) centre_ = list_.z[at], sum_ = 0;
    else sum_ += list_.z[at] - centre_;
  }
  __device__ void drop_fractional(std::int64_t at) {
    list_.state[at] = kGone;
    --n_fractional_;
    sum_ -= list_.z[at] - centre_;
  }

  __device__ void activate(std::int64_t rank, std::int32_t* left_pool) {
    const double z = list_.z[rank];
    if (z <= tau_) {
      list_.state[rank] = kGone;
      return;
    }
    if (z - 1 >= tau_) {
      list_.state[rank] = kSaturated;
      ++n_saturated_;
      if (rank < saturated_cursor_) saturated_cursor_ = rank;
    } else {
      add_fractional(rank);
      if (rank < fractional_cursor_) fractional_cursor_ = rank;
    }
    const std::int64_t active = n_fractional_ + n_saturated_;
    if (active > pool_) push_out_least(list_.key[rank], left_pool);
    if (active >= k_) settle();
  }

  __device__ void push_out_least(std::int32_t arriving, std::int32_t* left_pool) {
    const bool fractional = n_saturated_ == 0 || (n_fractional_ > 0 && least_fractional() < least_saturated());
    const std::int64_t out = fractional ? least_fractional() : least_saturated();
    if (fractional) {
      drop_fractional(out);
    } else {
      list_.state[out] = kGone;
      --n_saturated_;
    }
    left_pool[list_.key[out]] = arriving;
  }

  __device__ void settle() {
    for (;;) {
      const double leave_saturated = n_saturated_ > 0 ? list_.z[least_saturated()] - 1 : INFINITY;
      if (n_fractional_ == 0 && n_saturated_ <= k_) {
        if (leave_saturated > tau_) tau_ = leave_saturated;
        return;
      }
      const double leave_band = n_fractional_ > 0 ? list_.z[least_fractional()] : INFINITY;
      const double t = n_saturated_ >= k_ ? INFINITY
                                          : centre_ + (sum_ + static_cast<double>(n_saturated_ - k_)) /
                                                          static_cast<double>(n_fractional_);
      const double breakpoint = leave_saturated < leave_band ? leave_saturated : leave_band;
      if (t <= breakpoint) {
        if (t > tau_) tau_ = t;
        while (n_fractional_ > 0 && list_.z[least_fractional()] <= tau_) drop_fractional(least_fractional());
        return;
      }
      if (breakpoint > tau_) tau_ = breakpoint;
      if (leave_saturated <= leave_band) {
        const std::int64_t at = least_saturated();
        --n_saturated_;
        add_fractional(at);
        if (saturated_cursor_ < fractional_cursor_) fractional_cursor_ = saturated_cursor_;
      } else {
        drop_fractional(least_fractional());
      }
    }
  }

  WalkList list_, spare_;
  std::int64_t k_, pool_;
  double tau_ = 0, centre_ = 0, sum_ = 0;
  std::int64_t n_fractional_ = 0, n_saturated_ = 0, fractional_cursor_ = 0, saturated_cursor_ = 0;
};

}  // namespace sieve::cuda
