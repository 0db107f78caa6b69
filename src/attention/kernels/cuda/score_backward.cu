// From gate gradients back to the scores through every prefix: two look-ups per key in a prefix sum (docs/attention.md,
// "The way back"). The sums run on over documents: an interval never leaves its own.
#include <cmath>

#include "attention/kernels/cuda/launch.cuh"
#include "attention/kernels/cuda/row_scan.cuh"
#include "attention/kernels/select.h"
#include "tensor/kernels/cuda/block.cuh"
#include "tensor/kernels/cuda/scratch.h"

namespace sieve::cuda {
namespace {

// G (rows, T + 1): prefix sums of row_i / |F_i|. One block a row.
__global__ void __launch_bounds__(kScanThreads) sum_prefixes(const SelectBackwardArgs a, double* G) {
  const std::int64_t row = blockIdx.x * a.T;
  double* out = G + blockIdx.x * (a.T + 1);
  if (threadIdx.x == 0) out[0] = 0;
  scan_row<double>(
      a.T,
      [&](std::int64_t i) {
        const std::int32_t band = a.band_BHT[row + i];
        return band > 0 ? a.row_BHT[row + i] / band : 0;
      },
      [&](std::int64_t i, double sum) { out[i + 1] = sum; });
}

__global__ void score_gradients(const SelectBackwardArgs a, const double* G) {
  SIEVE_GRID_STRIDE(x, a.B * a.H * a.T) {
    const double* sums = G + x / a.T * (a.T + 1);
    const std::int32_t from = a.band_from_BHT[x], to = a.band_to_BHT[x];
    const double du = from == to ? 0 : a.column_BHT[x] - (sums[to] - sums[from]), ds = du / a.temperature;
    if (a.dtype == DType::f32) static_cast<float*>(a.dscores_BHT)[x] = static_cast<float>(ds);
    else static_cast<double*>(a.dscores_BHT)[x] = ds;
  }
}

template <class T>
__global__ void poison(const PoisonArgs a) {
  if (*a.nan_count == 0) return;
  SIEVE_GRID_STRIDE(x, a.n) static_cast<T*>(a.out)[x] = static_cast<T>(NAN);
}

}  // namespace

void run(const SelectBackwardArgs& a, Stream stream) {
  require(a.dtype == DType::f32 || a.dtype == DType::f64, "sparsek", "score gradients want f32 or f64, got ",
          name_of(a.dtype));
  const std::int64_t rows = a.B * a.H;
  if (rows * a.T == 0) return;
  const Scratch G(static_cast<std::size_t>(rows * (a.T + 1)) * sizeof(double), stream);
  start("score gradient: prefix sums", sum_prefixes, rows, kScanThreads, 0, stream, a, G.as<double>());
  start("score gradient", score_gradients, blocks_for(rows * a.T), kThreads, 0, stream, a, G.as<double>());
}

void run(const PoisonArgs& a, Stream stream) {
  if (a.n == 0) return;
  dispatch_float(a.dtype, "sparsek",
                 [&]<class T>() { start("poison", poison<T>, blocks_for(a.n, 8), kThreads, 0, stream, a); });
}

}  // namespace sieve::cuda
