// GELU and SwiGLU, forward and backward. An index is read before it is written, so gradients may overwrite their input
// (ivdep).
#include "core/parallel_for.h"
#include "tensor/kernels/cpu/gelu.h"
#include "tensor/kernels/kernels.h"

namespace sieve::cpu {
namespace {

template <class T, class Form>
void gelu_forward(const GeluArgs& a, Form form) {
  const T* x = static_cast<const T*>(a.x);
  T* y = static_cast<T*>(a.y);
  for_elements(a.n, 4, [=](std::int64_t begin, std::int64_t end) {
#pragma GCC ivdep
    for (std::int64_t i = begin; i < end; ++i) y[i] = T(gelu(load(x[i]), form));
  });
}

template <class T, class Form>
void gelu_backward(const GeluBackwardArgs& a, Form form) {
  const T* x = static_cast<const T*>(a.x);
  const T* dy = static_cast<const T*>(a.dy);
  T* dx = static_cast<T*>(a.dx);
  for_elements(a.n, 4, [=](std::int64_t begin, std::int64_t end) {
#pragma GCC ivdep
    for (std::int64_t i = begin; i < end; ++i) dx[i] = T(load(dy[i]) * gelu_slope(load(x[i]), form));
  });
}

}  // namespace

void run(const GeluArgs& args) {
  dispatch_float(args.dtype, "gelu", [&]<class T>() {
    if (args.tanh_form) {
      gelu_forward<T>(args, std::true_type{});
    } else {
      gelu_forward<T>(args, std::false_type{});
    }
  });
}

void run(const GeluBackwardArgs& args) {
  dispatch_float(args.dtype, "gelu", [&]<class T>() {
    if (args.tanh_form) {
      gelu_backward<T>(args, std::true_type{});
    } else {
      gelu_backward<T>(args, std::false_type{});
    }
  });
}

void run(const SwigluArgs& args) {
  dispatch_float(args.dtype, "swiglu", [&]<class T>() {
    parallel_for(args.R, row_grain(4 * args.F), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        const T* gate = static_cast<const T*>(args.x_R2F) + r * 2 * args.F;
        const T* up = gate + args.F;
        T* y = static_cast<T*>(args.y_RF) + r * args.F;
#pragma GCC ivdep
        for (std::int64_t i = 0; i < args.F; ++i) y[i] = T(load(gate[i]) * sigmoid(load(gate[i])) * load(up[i]));
      }
    });
  });
}

// d silu(g) / dg = s (1 + g (1 - s)), s = sigmoid(g)
void run(const SwigluBackwardArgs& args) {
  dispatch_float(args.dtype, "swiglu", [&]<class T>() {
    using C = compute_t<T>;
    parallel_for(args.R, row_grain(4 * args.F), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        const T* dy = static_cast<const T*>(args.dy_RF) + r * args.F;
        const T* gate = static_cast<const T*>(args.x_R2F) + r * 2 * args.F;
        const T* up = gate + args.F;
        T* dgate = static_cast<T*>(args.dx_R2F) + r * 2 * args.F;
        T* dup = dgate + args.F;
#pragma GCC ivdep
        for (std::int64_t i = 0; i < args.F; ++i) {
          const C g = load(gate[i]), s = sigmoid(g), d = load(dy[i]), u = load(up[i]);
          dgate[i] = T(d * u * s * (C(1) + g * (C(1) - s)));
          dup[i] = T(d * g * s);
        }
      }
    });
  });
}

}  // namespace sieve::cpu
