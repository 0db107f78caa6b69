// The elementwise ends of attention by recurrences.
#include "attention/kernels/linear.h"
#include "tensor/kernels/cuda/block.cuh"

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

template <class F>
void by_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32: return f.template operator()<float>();
    case DType::bf16: return f.template operator()<bf16>();
    case DType::f64: return f.template operator()<double>();
    default: fail(Exit::internal, "silu_gate", "wants f32, bf16 or f64, got ", name_of(dtype));
  }
}

[[noreturn]] void refuse_head_gates() {
  fail(Exit::config, "attention", "linear: true of type sparsek has no GPU kernel: run it with device.type=cpu");
}

}  // namespace

void run(const SiluGateArgs& a, Stream stream) {
  by_dtype(a.dtype, [&]<class T>() {
    silu_gate<T><<<blocks_for(a.n), kThreads, 0, handle_of(stream)>>>(a);
    check_launch("silu gate");
  });
}

void run(const SiluGateBackwardArgs& a, Stream stream) {
  by_dtype(a.dtype, [&]<class T>() {
    silu_gate_backward<T><<<blocks_for(a.n), kThreads, 0, handle_of(stream)>>>(a);
    check_launch("silu gate backward");
  });
}

void run(const HeadGateArgs&, Stream) { refuse_head_gates(); }
void run(const HeadGateBackwardArgs&, Stream) { refuse_head_gates(); }

}  // namespace sieve::cuda
