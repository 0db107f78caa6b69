// The elementwise ends of attention by recurrences.
#include "attention/kernels/cuda/launch.cuh"
#include "attention/kernels/linear.h"
#include "tensor/kernels/cuda/block.cuh"
#include "tensor/kernels/cuda/scratch.h"

namespace sieve::cuda {
namespace {

template <class T>
__global__ void silu_gate(const SiluGateArgs a) {
  using C = compute_t<T>;
  SIEVE_GRID_STRIDE(i, a.n) {
    const C x = load(static_cast<const T*>(a.x), i), g = load(static_cast<const T*>(a.gate), i);
    store(static_cast<T*>(a.y), i, x * g / (1 + exp(-g)));
  }
}

template <class T>
__global__ void silu_gate_backward(const SiluGateBackwardArgs a) {
  using C = compute_t<T>;
  SIEVE_GRID_STRIDE(i, a.n) {
    const C dy = load(static_cast<const T*>(a.dy), i), x = load(static_cast<const T*>(a.x), i),
            g = load(static_cast<const T*>(a.gate), i), s = 1 / (1 + exp(-g));
    store(static_cast<T*>(a.dgate), i, dy * x * s * (1 + g * (1 - s)));
    store(static_cast<T*>(a.dx), i, dy * g * s);
  }
}

// Of query head h.
template <class T>
__device__ compute_t<T> head_gate(const HeadGateArgs& a, std::int64_t h) {
  return 1 / (1 + exp(-load(static_cast<const T*>(a.gate_H), h)));
}

template <class T>
__global__ void head_gates(const HeadGateArgs a) {
  SIEVE_GRID_STRIDE(i, a.R * a.H * a.D) {
    const compute_t<T> x = load(static_cast<const T*>(a.x_RHD), i), gate = head_gate<T>(a, i / a.D % a.H);
    store(static_cast<T*>(a.out_RHD), i, load(static_cast<const T*>(a.base_RHD), i) + gate * x);
  }
}

// A block a head and a part of the rows: dx, and what they add to the gate's gradient, (H, parts).
template <class T>
__global__ void __launch_bounds__(kThreads)
    head_gates_backward(const HeadGateBackwardArgs b, std::int64_t parts, double* sums) {
  const HeadGateArgs& a = b.forward;
  const std::int64_t h = blockIdx.x / parts, part = blockIdx.x % parts, each = (a.R + parts - 1) / parts;
  const std::int64_t begin = part * each, end = begin + each < a.R ? begin + each : a.R;
  const compute_t<T> gate = head_gate<T>(a, h);
  double sum = 0;
  for (std::int64_t x = begin * a.D + threadIdx.x; x < end * a.D; x += kThreads) {
    const std::int64_t i = (x / a.D * a.H + h) * a.D + x % a.D;
    const compute_t<T> dout = load(static_cast<const T*>(b.dout_RHD), i);
    sum += static_cast<double>(dout * load(static_cast<const T*>(a.x_RHD), i));
    store(static_cast<T*>(b.dx_RHD), i, gate * dout);
  }
  sum = block_reduce(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// A block a head.
template <class T>
__global__ void __launch_bounds__(kThreads)
    head_gate_gradient(const HeadGateBackwardArgs b, std::int64_t parts, const double* sums) {
  using C = compute_t<T>;
  const std::int64_t h = blockIdx.x;
  double sum = 0;
  for (std::int64_t p = threadIdx.x; p < parts; p += kThreads) sum += sums[h * parts + p];
  sum = block_reduce(sum);
  const C gate = head_gate<T>(b.forward, h);
  if (threadIdx.x == 0) static_cast<C*>(b.dgate_H)[h] = static_cast<C>(sum) * gate * (1 - gate);
}

template <class F>
void by_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32: return f.template operator()<float>();
    case DType::bf16: return f.template operator()<bf16>();
    case DType::f64: return f.template operator()<double>();
    default: fail(Exit::internal, "gates", "wants f32, bf16 or f64, got ", name_of(dtype));
  }
}

}  // namespace

void run(const SiluGateArgs& a, Stream stream) {
  by_dtype(a.dtype, [&]<class T>() { start("silu gate", silu_gate<T>, blocks_for(a.n), kThreads, 0, stream, a); });
}

void run(const SiluGateBackwardArgs& a, Stream stream) {
  by_dtype(a.dtype, [&]<class T>() {
    start("silu gate backward", silu_gate_backward<T>, blocks_for(a.n), kThreads, 0, stream, a);
  });
}

void run(const HeadGateArgs& a, Stream stream) {
  by_dtype(a.dtype,
           [&]<class T>() { start("head gates", head_gates<T>, blocks_for(a.R * a.H * a.D), kThreads, 0, stream, a); });
}

void run(const HeadGateBackwardArgs& b, Stream stream) {
  const HeadGateArgs& a = b.forward;
  constexpr std::int64_t kRows = 256;  // of a part
  const std::int64_t parts = (a.R + kRows - 1) / kRows;
  const Scratch sums(static_cast<std::size_t>(a.H * parts) * sizeof(double), stream);
  by_dtype(a.dtype, [&]<class T>() {
    start("head gates backward", head_gates_backward<T>, a.H * parts, kThreads, 0, stream, b, parts, sums.as<double>());
    start("head gate", head_gate_gradient<T>, a.H, kThreads, 0, stream, b, parts,
          static_cast<const double*>(sums.as<double>()));
  });
}

}  // namespace sieve::cuda
