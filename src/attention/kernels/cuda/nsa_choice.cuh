// Which blocks a query attends to: how much each matters, then the best in the order of the CPU. A warp owns a query.
#pragma once

#include "attention/kernels/cuda/nsa_attention.cuh"
#include "attention/kernels/pattern.h"

namespace sieve::cuda {

inline constexpr unsigned kWholeWarp = 0xffffffffu;

// Adds the probabilities p[from .. to - 1] of a query, that of its document's compressed key first + x at p[x], to the
// blocks' importance. The terms of a block in the order of the keys, whatever the chunks.
template <class C>
__device__ inline void add_importance(const CompressedJob& e, const C* p, int from, int to, int first, C* importance) {
  if (from >= to) return;
  const int stretches = e.block / e.grid.s, reach = e.grid.l / e.grid.s, low = (first + from) / stretches,
            high = (first + to - 1 + reach - 1) / stretches;
  for (int j = low + static_cast<int>(threadIdx.x) % 32; j <= high; j += 32) {
    const int begin = j * stretches, end = begin + stretches;
    const int m0 = spans::max(first + from, begin - reach + 1), m1 = spans::min(first + to, end);
    C sum = importance[j];
    for (int m = m0; m < m1; ++m)
      sum += p[m - first] * static_cast<C>(spans::min(m + reach, end) - spans::max(m, begin));
    importance[j] = sum;
  }
}

// The larger, of equal ones the later; every lane gets it. index -1: the lane has none.
template <class C>
__device__ inline int best_of_warp(C value, int index) {
  if constexpr (sizeof(C) == sizeof(float)) {  // not negative: ordered as their bits are
    const unsigned bits = index < 0 ? 0 : __float_as_uint(value), top = __reduce_max_sync(kWholeWarp, bits);
    return __reduce_max_sync(kWholeWarp, bits == top ? index : -1);
  } else {
    for (int offset = 16; offset > 0; offset /= 2) {
      const C other = __shfl_xor_sync(kWholeWarp, value, offset);
      const int at = __shfl_xor_sync(kWholeWarp, index, offset);
      if (index < 0 || (at >= 0 && (other > value || (other == value && at > index)))) value = other, index = at;
    }
    return index;
  }
}

// Takes the `places` best of blocks [1, end), more of them than places: their importance becomes -1.
template <class C>
__device__ inline void mark_best(C* importance, int end, int places) {
  for (int place = 0; place < places; ++place) {
    C best = 0;
    int at = -1;
    for (int j = 1 + static_cast<int>(threadIdx.x) % 32; j < end; j += 32) {
      C x = importance[j];
      if (x != x) x = static_cast<C>(INFINITY);
      if (x >= 0 && (at < 0 || x >= best)) best = x, at = j;
    }
    at = best_of_warp(best, at);
    __syncwarp();
    if (threadIdx.x % 32 == 0) importance[at] = -1;
    __syncwarp();
  }
}

// The list of a query at `position` of its document: kernels/nsa.h.
template <class C>
__device__ inline void write_choice(const CompressedJob& e, int position, C* importance, std::int32_t* out) {
  const int lane = static_cast<int>(threadIdx.x) % 32, own = position / e.block, end = own - 1;
  const int places = e.blocks - 3;
  int n = e.blocks >= 3 && own >= 2 ? 1 : 0;
  if (lane == 0 && n == 1) out[0] = 0;
  const bool all = end - 1 <= places;
  if (!all && places > 0) mark_best(importance, end, places);
  for (int base = 1; places > 0 && base < end; base += 32) {
    const int j = base + lane;
    const bool take = j < end && (all || importance[j] == -1);
    const unsigned taken = __ballot_sync(kWholeWarp, take);
    if (take) out[n + __popc(taken & ((1u << lane) - 1))] = j;
    n += __popc(taken);
  }
  const int nearest = e.blocks >= 2 && own >= 1 ? 2 : 1;  // with the query's own
  for (int x = lane; n + x < e.blocks; x += 32) out[n + x] = x < nearest ? own - nearest + 1 + x : kNoChoice;
}

}  // namespace sieve::cuda
