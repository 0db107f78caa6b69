// delta = dO . o of every query and head in one sweep over both, 16 bytes a load.
#include <cuda_bf16.h>

#include "attention/kernels/cuda/hopper/hopper.h"
#include "tensor/kernels/cuda/block.cuh"

namespace sieve::cuda::hopper {
namespace {

constexpr int kPositions = 32, kHeads = 8;  // of a block

__device__ inline float dot_of_2(std::uint32_t a, std::uint32_t b) {
  const float2 x = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(a)),
               y = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(b));
  return x.x * y.x + x.y * y.y;
}

// A row of D features is read by D / 8 lanes; the block's sums are turned in shared memory, since neighbours in `delta`
// (B, H, T) are positions.
template <int D>
__global__ void __launch_bounds__(kThreads) sum_products(const Engine e, float* delta) {
  constexpr int kLanes = D / 8, kRows = kThreads / kLanes;
  __shared__ float sums[kHeads][kPositions + 1];
  const std::int64_t tiles = (e.T + kPositions - 1) / kPositions, groups = (e.H + kHeads - 1) / kHeads;
  const std::int64_t h0 = blockIdx.x % groups * kHeads, i0 = blockIdx.x / groups % tiles * kPositions,
                     b = blockIdx.x / groups / tiles;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kLanes;
  const auto* dout = static_cast<const bf16*>(e.dout.base) + e.dout.offset;
  const auto* out = static_cast<const bf16*>(e.out);
#pragma unroll 4
  for (int r = thread / kLanes; r < kPositions * kHeads; r += kRows) {
    const std::int64_t i = i0 + r / kHeads, h = h0 + r % kHeads;
    float sum = 0;
    if (i < e.T && h < e.H) {
      const std::int64_t row = b * e.T + i;
      const uint4 x = *reinterpret_cast<const uint4*>(dout + row * e.dout.stride + h * D + lane * 8),
                  y = *reinterpret_cast<const uint4*>(out + (row * e.H + h) * D + lane * 8);
      sum = dot_of_2(x.x, y.x) + dot_of_2(x.y, y.y) + dot_of_2(x.z, y.z) + dot_of_2(x.w, y.w);
    }
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (lane == 0) sums[r % kHeads][r / kHeads] = sum;
  }
  __syncthreads();
  static_assert(kThreads == kPositions * kHeads);
  const std::int64_t i = i0 + thread % kPositions, h = h0 + thread / kPositions;
  if (i < e.T && h < e.H) delta[(b * e.H + h) * e.T + i] = sums[thread / kPositions][thread % kPositions];
}

}  // namespace

void make_delta(const Engine& e, float* delta, Stream stream) {
  const std::int64_t blocks = e.B * ((e.T + kPositions - 1) / kPositions) * ((e.H + kHeads - 1) / kHeads);
  e.D == 64 ? start("attention delta", sum_products<64>, blocks, kThreads, 0, stream, e, delta)
            : start("attention delta", sum_products<128>, blocks, kThreads, 0, stream, e, delta);
}

}  // namespace sieve::cuda::hopper
