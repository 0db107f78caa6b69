#include <cmath>

#include "attention/kernels/cuda/launch.cuh"
#include "attention/kernels/softmax.h"
#include "tensor/kernels/cuda/block.cuh"

namespace sieve::cuda {
namespace {

// In fp64: at position 32k an fp32 angle would be off by 0.002.
template <class T>
__global__ void fill(const RotaryTableArgs a) {
  const std::int64_t R = a.rotary_dims / 2;
  SIEVE_GRID_STRIDE(x, a.positions * R) {
    const double frequency = pow(a.theta, -2.0 * static_cast<double>(x % R) / static_cast<double>(a.rotary_dims));
    const double angle = static_cast<double>(x / R) * frequency;
    static_cast<T*>(a.cos)[x] = static_cast<T>(cos(angle));
    static_cast<T*>(a.sin)[x] = static_cast<T>(sin(angle));
  }
}

}  // namespace

void run(const RotaryTableArgs& a, Stream stream) {
  const std::int64_t n = a.positions * (a.rotary_dims / 2);
  if (n == 0) return;
  if (a.dtype == DType::f64) start("rotary table", fill<double>, blocks_for(n), kThreads, 0, stream, a);
  else start("rotary table", fill<float>, blocks_for(n), kThreads, 0, stream, a);
}

}  // namespace sieve::cuda
