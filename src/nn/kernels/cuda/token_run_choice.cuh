// The end of a token that runs in one launch: its choice.
#pragma once

#include <cmath>
#include <cstring>

#include "nn/kernels/cuda/best.cuh"
#include "nn/kernels/cuda/token_run_attend.cuh"

namespace sieve::cuda {

// The block that is through last chooses, and leaves everything ready for the next token. All lanes of a warp have
// the same best.
__device__ inline void choose(const TokenRunArgs& a, std::uint32_t tag, Best best) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  __shared__ Best of_warps[kRunWarps];
  __shared__ bool last;
  if (lane == 0) of_warps[warp] = best;
  __syncthreads();
  if (warp == 0) {
    best = warp_best(lane < kRunWarps ? of_warps[lane] : no_best());
    if (lane == 0) {
      std::uint64_t bits;
      memcpy(&bits, &best, 8);
      a.best[blockIdx.x] = bits;
      __threadfence();
      last = atomicAdd(a.epoch + 1, 1u) == a.G - 1;
      __threadfence();
    }
  }
  __syncthreads();
  if (!last || warp != 0) return;
  best = no_best();
#pragma unroll 2
  for (int b = lane; b < a.G; b += 32) {
    const auto bits = __ldcg(reinterpret_cast<const unsigned long long*>(a.best) + b);
    Best other;
    memcpy(&other, &bits, 8);
    best = best.joined(other);
  }
  best = warp_best(best);
  if (lane != 0) return;
  const std::int64_t position = *a.position;
  const std::int32_t id = isfinite(best.logit) ? best.id : -1;
  *a.id = id, a.history_T[position % a.kept] = id;
  *a.position = position + 1;
  a.epoch[0] = tag, a.epoch[1] = 0;
}

}  // namespace sieve::cuda
