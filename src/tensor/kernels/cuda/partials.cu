#include "tensor/kernels/cuda/block.cuh"
#include "tensor/kernels/cuda/partials.h"

namespace sieve::cuda {
namespace {

constexpr int kWarps = 8;

// A block owns 32 columns, a lane one of them. A warp adds an eighth of the rows in order; the warps' sums are added in
// order, in fp64.
template <class C>
__global__ void __launch_bounds__(32 * kWarps)
    add_rows(const C* __restrict__ partial, std::int64_t S, std::int64_t N, C* out, bool accumulate) {
  __shared__ double sums[kWarps][32];
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * 32 + lane;
  const std::int64_t share = (S + kWarps - 1) / kWarps, begin = warp * share, end = min(S, begin + share);
  double sum = 0;
  if (column < N) {
#pragma unroll 8
    for (std::int64_t s = begin; s < end; ++s) sum += static_cast<double>(partial[s * N + column]);
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || column >= N) return;
  double total = accumulate ? static_cast<double>(out[column]) : 0.0;
  for (int w = 0; w < kWarps; ++w) total += sums[w][lane];
  out[column] = static_cast<C>(total);
}

template <class C>
void launch_add(const C* partial, std::int64_t S, std::int64_t N, C* out, bool accumulate, const Stream& stream) {
  if (N == 0) return;
  const auto blocks = static_cast<unsigned>((N + 31) / 32);
  add_rows<C><<<blocks, 32 * kWarps, 0, handle_of(stream)>>>(partial, S, N, out, accumulate);
  check_launch("sum of partial sums");
}

}  // namespace

void add_partials(const float* partial_SN, std::int64_t S, std::int64_t N, float* out_N, bool accumulate,
                  const Stream& stream) {
  launch_add(partial_SN, S, N, out_N, accumulate, stream);
}
void add_partials(const double* partial_SN, std::int64_t S, std::int64_t N, double* out_N, bool accumulate,
                  const Stream& stream) {
  launch_add(partial_SN, S, N, out_N, accumulate, stream);
}

}  // namespace sieve::cuda
