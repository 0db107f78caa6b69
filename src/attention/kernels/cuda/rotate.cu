#include "attention/kernels/cuda/launch.cuh"
#include "attention/kernels/rotate.h"
#include "tensor/dispatch.h"
#include "tensor/kernels/cuda/block.cuh"

namespace sieve::cuda {
namespace {

// A thread a pair of features that turn together, or one that stays.
template <class T>
__global__ void __launch_bounds__(kThreads) rotate(const RotateArgs a) {
  using Real = compute_t<T>;
  const std::int64_t R = a.rotary.cos == nullptr ? 0 : a.rotary.rotary_dims / 2, parts = a.D - R;
  SIEVE_GRID_STRIDE(x, a.B * a.H * a.T * parts) {
    const std::int64_t part = x % parts, h = x / parts % a.H, t = x / parts / a.H % a.T, b = x / parts / a.H / a.T;
    const T* in = static_cast<const T*>(a.x) + b * a.from.batch + h * a.from.head + t * a.from.row;
    T* out = static_cast<T*>(a.out) + b * a.to.batch + h * a.to.head + t * a.to.row;
    if (part >= R) {
      out[part + R] = in[part + R];
      continue;
    }
    const std::int64_t turn = (a.first_position + t) * R + part;
    const Real c = static_cast<const Real*>(a.rotary.cos)[turn],
               s = static_cast<const Real*>(a.rotary.sin)[turn] * (a.back ? Real(-1) : Real(1));
    const Real u = load(in, part), v = load(in, part + R);
    store(out, part, u * c - v * s);
    store(out, part + R, v * c + u * s);
  }
}

}  // namespace

void run(const RotateArgs& a, Stream stream) {
  const std::int64_t R = a.rotary.cos == nullptr ? 0 : a.rotary.rotary_dims / 2, n = a.B * a.H * a.T * (a.D - R);
  if (n == 0) return;
  if (a.dtype == DType::f64) start("rotate", rotate<double>, blocks_for(n), kThreads, 0, stream, a);
  else if (a.dtype == DType::bf16) start("rotate", rotate<bf16>, blocks_for(n), kThreads, 0, stream, a);
  else start("rotate", rotate<float>, blocks_for(n), kThreads, 0, stream, a);
}

}  // namespace sieve::cuda
