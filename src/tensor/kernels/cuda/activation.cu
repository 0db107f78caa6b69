// GELU and SwiGLU (formulas in kernels.h). bf16 takes the fast exponential and division: their error is a thousandth
// of its rounding; fp32 takes the accurate ones.
#include "tensor/kernels/cuda/map.cuh"
#include "tensor/kernels/kernels.h"

namespace sieve::cuda {
namespace {

template <class T>
__device__ compute_t<T> sigmoid(compute_t<T> x) {
  if constexpr (std::is_same_v<T, bf16>) {
    return __fdividef(1.f, 1.f + __expf(-x));
  } else {
    return compute_t<T>(1) / (compute_t<T>(1) + exp(-x));
  }
}

// 0.5 (1 + tanh u) = sigmoid(2u): one exponential, and no cancellation for negative x.
template <class T>
__device__ compute_t<T> tanh_gate(compute_t<T> x) {
  using C = compute_t<T>;
  return sigmoid<T>(C(1.5957691216057308) * (x + C(0.044715) * x * x * x));
}

template <class C>
__device__ C normal_cdf(C x) {
  return C(0.5) * erfc(x * C(-0.70710678118654752440));
}

template <class T, bool tanh_form>
struct Gelu {
  __device__ T operator()(T value) const {
    const auto x = to_compute(value);
    if constexpr (tanh_form) {
      return to_element<T>(x * tanh_gate<T>(x));
    } else {
      return to_element<T>(x * normal_cdf(x));
    }
  }
};

template <class T, bool tanh_form>
struct GeluSlope {
  __device__ T operator()(T dy, T value) const {
    using C = compute_t<T>;
    const C x = to_compute(value), d = to_compute(dy);
    if constexpr (tanh_form) {
      const C s = tanh_gate<T>(x);
      return to_element<T>(d * (s + x * s * (C(1) - s) * C(1.5957691216057308) * (C(1) + C(3 * 0.044715) * x * x)));
    } else {
      return to_element<T>(d * (normal_cdf(x) + x * C(0.39894228040143267794) * exp(C(-0.5) * x * x)));
    }
  }
};

// Rows [gate | up] of 2F elements in packs of N; `packs` of them hold a half. N is 1 where F or an address is no
// multiple of the pack.
template <int N, class T>
__global__ void __launch_bounds__(kThreads)
    swiglu(const T* __restrict__ x, T* __restrict__ y, std::int64_t R, std::int64_t packs) {
  SIEVE_GRID_STRIDE(i, R * packs) {
    const std::int64_t at = (i / packs * packs + i) * N;  // row * 2F + column
    const Pack<T, N> gate = load_pack<N>(x + at), up = load_pack<N>(x + at + packs * N);
    Pack<T, N> out;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const auto g = to_compute(gate.at[k]);
      out.at[k] = to_element<T>(g * sigmoid<T>(g) * to_compute(up.at[k]));
    }
    store_pack<N>(y + i * N, out);
  }
}

template <int N, class T>
__global__ void __launch_bounds__(kThreads) swiglu_backward(const T* __restrict__ dy, const T* __restrict__ x,
                                                            T* __restrict__ dx, std::int64_t R, std::int64_t packs) {
  using C = compute_t<T>;
  SIEVE_GRID_STRIDE(i, R * packs) {
    const std::int64_t at = (i / packs * packs + i) * N;
    const Pack<T, N> gate = load_pack<N>(x + at), up = load_pack<N>(x + at + packs * N), d = load_pack<N>(dy + i * N);
    Pack<T, N> dgate, dup;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const C g = to_compute(gate.at[k]), u = to_compute(up.at[k]), v = to_compute(d.at[k]), s = sigmoid<T>(g);
      dgate.at[k] = to_element<T>(v * u * s * (C(1) + g * (C(1) - s)));
      dup.at[k] = to_element<T>(v * g * s);
    }
    store_pack<N>(dx + at, dgate);
    store_pack<N>(dx + at + packs * N, dup);
  }
}

}  // namespace

void run(const GeluArgs& a, Stream stream) {
  dispatch_float(a.dtype, "gelu", [&]<class T>() {
    const T* x = static_cast<const T*>(a.x);
    T* y = static_cast<T*>(a.y);
    if (a.tanh_form) {
      map(a.n, Gelu<T, true>{}, y, x, stream, "gelu");
    } else {
      map(a.n, Gelu<T, false>{}, y, x, stream, "gelu");
    }
  });
}

void run(const GeluBackwardArgs& a, Stream stream) {
  dispatch_float(a.dtype, "gelu", [&]<class T>() {
    const T* dy = static_cast<const T*>(a.dy);
    const T* x = static_cast<const T*>(a.x);
    T* dx = static_cast<T*>(a.dx);
    if (a.tanh_form) {
      map(a.n, GeluSlope<T, true>{}, dx, dy, x, stream, "gelu backward");
    } else {
      map(a.n, GeluSlope<T, false>{}, dx, dy, x, stream, "gelu backward");
    }
  });
}

void run(const SwigluArgs& a, Stream stream) {
  if (a.R * a.F == 0) return;
  dispatch_float(a.dtype, "swiglu", [&]<class T>() {
    constexpr int N = kPack<T>;
    const T* x = static_cast<const T*>(a.x_R2F);
    T* y = static_cast<T*>(a.y_RF);
    if (a.F % N == 0 && aligned<N>(x) && aligned<N>(y)) {
      swiglu<N, T><<<blocks_for(a.R * a.F / N), kThreads, 0, handle_of(stream)>>>(x, y, a.R, a.F / N);
    } else {
      swiglu<1, T><<<blocks_for(a.R * a.F), kThreads, 0, handle_of(stream)>>>(x, y, a.R, a.F);
    }
  });
  check_launch("swiglu");
}

void run(const SwigluBackwardArgs& a, Stream stream) {
  if (a.R * a.F == 0) return;
  dispatch_float(a.dtype, "swiglu", [&]<class T>() {
    constexpr int N = kPack<T>;
    const T* dy = static_cast<const T*>(a.dy_RF);
    const T* x = static_cast<const T*>(a.x_R2F);
    T* dx = static_cast<T*>(a.dx_R2F);
    if (a.F % N == 0 && aligned<N>(x) && aligned<N>(dy) && aligned<N>(dx)) {
      swiglu_backward<N, T><<<blocks_for(a.R * a.F / N), kThreads, 0, handle_of(stream)>>>(dy, x, dx, a.R, a.F / N);
    } else {
      swiglu_backward<1, T><<<blocks_for(a.R * a.F), kThreads, 0, handle_of(stream)>>>(dy, x, dx, a.R, a.F);
    }
  });
  check_launch("swiglu backward");
}

}  // namespace sieve::cuda
