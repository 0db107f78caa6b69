// Prefix sums along a row by one block of threads, in a fixed order.
#pragma once

#include <cstdint>

namespace sieve::cuda {

inline constexpr int kScanThreads = 1024;

// write(i, read(0) + ... + read(i)) for i = 0 .. n - 1, where writing i changes no later read. All kScanThreads threads
// of the block call it.
template <class A, class Read, class Write>
__device__ void scan_row(std::int64_t n, const Read& read, const Write& write) {
  constexpr int kEach = 4;
  __shared__ A sums[2][kScanThreads / 32];
  const auto thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const auto fetch = [&](std::int64_t first, A(&values)[kEach]) {
#pragma unroll
    for (int x = 0; x < kEach; ++x) values[x] = first + x < n ? read(first + x) : A(0);
  };
  A carry = 0, next[kEach];
  fetch(thread * kEach, next);
  int turn = 0;
  for (std::int64_t base = 0; base < n; base += kScanThreads * kEach, turn ^= 1) {
    const std::int64_t first = base + thread * kEach;
    A values[kEach];
#pragma unroll
    for (int x = 0; x < kEach; ++x) values[x] = next[x];
    fetch(first + kScanThreads * kEach, next);  // arrives while this turn is summed up
#pragma unroll
    for (int x = 1; x < kEach; ++x) values[x] += values[x - 1];
    A up = values[kEach - 1];
    for (int step = 1; step < 32; step *= 2) {
      const A other = __shfl_up_sync(0xffffffffu, up, step);
      if (lane >= step) up += other;
    }
    if (lane == 31) sums[turn][warp] = up;
    __syncthreads();              // a block's earlier reads of sums[turn] lie behind the barrier of the turn between
    A inside = sums[turn][lane];  // every warp sums up the warps
    for (int step = 1; step < 32; step *= 2) {
      const A other = __shfl_up_sync(0xffffffffu, inside, step);
      if (lane >= step) inside += other;
    }
    const A before_warp = __shfl_sync(0xffffffffu, inside, warp > 0 ? warp - 1 : 0);
    const A before_lane = __shfl_up_sync(0xffffffffu, up, 1);
    const A before = carry + (warp > 0 ? before_warp : A(0)) + (lane > 0 ? before_lane : A(0));
#pragma unroll
    for (int x = 0; x < kEach; ++x) {
      if (first + x < n) write(first + x, before + values[x]);
    }
    carry += __shfl_sync(0xffffffffu, inside, 31);
  }
}

}  // namespace sieve::cuda
