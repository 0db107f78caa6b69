// What every CUDA kernel shares: launch sizes, loads in the compute type, warp and block reductions in a fixed order.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "core/dtype.h"
#include "core/error.h"
#include "tensor/cuda/check.h"
#include "tensor/device.h"

namespace sieve::cuda {

inline constexpr int kThreads = 256;
// Blocks for n items of which each thread takes `per_thread`, in grid-stride loops: enough to fill any GPU, never above
// 2^31.
inline unsigned blocks_for(std::int64_t n, int per_thread = 1) {
  const std::int64_t per_block = static_cast<std::int64_t>(kThreads) * per_thread;
  return static_cast<unsigned>(std::clamp<std::int64_t>((n + per_block - 1) / per_block, 1, 1 << 16));
}

#define SIEVE_GRID_STRIDE(i, n)                                                                    \
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < (n); \
       i += static_cast<std::int64_t>(gridDim.x) * blockDim.x)

template <class T>
__device__ inline compute_t<T> load(const T* p, std::int64_t i) {
  return static_cast<compute_t<T>>(p[i]);
}
template <class T>
__device__ inline void store(T* p, std::int64_t i, compute_t<T> value) {
  p[i] = static_cast<T>(value);
}

// Butterfly sum: every lane ends with the same bits.
template <class A>
__device__ inline A warp_sum(A v) {
  for (int offset = 16; offset > 0; offset >>= 1) v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}
template <class A>
__device__ inline A warp_max(A v) {
  for (int offset = 16; offset > 0; offset >>= 1) {
    const A other = __shfl_xor_sync(0xffffffffu, v, offset);
    v = other > v ? other : v;
  }
  return v;
}

// Sum (or maximum) over a block of at most 1,024 threads, a multiple of 32; every thread gets it. Warps are combined in
// order.
template <class A, bool maximum = false>
__device__ inline A block_reduce(A v) {
  __shared__ A part[32];
  __shared__ A total;
  v = maximum ? warp_max(v) : warp_sum(v);
  const int warp = threadIdx.x / 32, warps = (blockDim.x + 31) / 32;
  __syncthreads();  // `part` may still be read by an earlier call
  if (threadIdx.x % 32 == 0) part[warp] = v;
  __syncthreads();
  if (threadIdx.x == 0) {
    A t = part[0];
    for (int w = 1; w < warps; ++w) t = maximum ? (part[w] > t ? part[w] : t) : t + part[w];
    total = t;
  }
  __syncthreads();
  return total;
}

}  // namespace sieve::cuda
