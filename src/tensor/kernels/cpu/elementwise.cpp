// add, mul with broadcast; y = alpha x + beta y. `ivdep` is true where an output is an input: index i reads and writes
// i only.
#include <algorithm>

#include "tensor/kernels/cpu/strided.h"

namespace sieve::cpu {
namespace {

template <class T, class Op>
void binary_row(const T* a, std::int64_t sa, const T* b, std::int64_t sb, T* out, std::int64_t n, Op op) {
  // The cases that matter get loops with constant strides, which vectorise.
  if (sa == 1 && sb == 1) {
#pragma GCC ivdep
    for (std::int64_t i = 0; i < n; ++i) out[i] = T(op(load(a[i]), load(b[i])));
  } else if (sa == 1 && sb == 0) {
    const auto y = load(*b);
#pragma GCC ivdep
    for (std::int64_t i = 0; i < n; ++i) out[i] = T(op(load(a[i]), y));
  } else if (sa == 0 && sb == 1) {
    const auto x = load(*a);
#pragma GCC ivdep
    for (std::int64_t i = 0; i < n; ++i) out[i] = T(op(x, load(b[i])));
  } else {
#pragma GCC ivdep
    for (std::int64_t i = 0; i < n; ++i) out[i] = T(op(load(a[i * sa]), load(b[i * sb])));
  }
}

template <class X, class Y>
void axpby(const AxpbyArgs& args) {
  using C = std::conditional_t<std::is_same_v<X, double> || std::is_same_v<Y, double>, double, float>;
  const X* x = static_cast<const X*>(args.x);
  Y* y = static_cast<Y*>(args.y);
  C alpha = static_cast<C>(args.alpha);
  if (args.alpha_factor != nullptr) alpha *= static_cast<C>(*static_cast<const compute_t<X>*>(args.alpha_factor));
  const C beta = static_cast<C>(args.beta);
  for_elements(args.n, 1, [=](std::int64_t begin, std::int64_t end) {
    if (beta == 0) {
#pragma GCC ivdep
      for (std::int64_t i = begin; i < end; ++i) y[i] = Y(alpha * static_cast<C>(load(x[i])));
    } else {
#pragma GCC ivdep
      for (std::int64_t i = begin; i < end; ++i)
        y[i] = Y(alpha * static_cast<C>(load(x[i])) + beta * static_cast<C>(load(y[i])));
    }
  });
}

}  // namespace

void run(const BinaryArgs& args) {
  const auto view = coalesce(
      View<3>{args.rank, args.extents, {args.a_strides, args.b_strides, dense_strides(args.rank, args.extents)}});
  const std::int64_t sa = view.inner_stride(0), sb = view.inner_stride(1);
  dispatch_float(args.dtype, "elementwise", [&]<class T>() {
    const T* a = static_cast<const T*>(args.a);
    const T* b = static_cast<const T*>(args.b);
    T* out = static_cast<T*>(args.out);
    const auto rows = [&](auto op) {
      for_each_row(view, [&](std::int64_t begin, std::int64_t end, const std::array<std::int64_t, 3>& at) {
        binary_row(a + at[0] + begin * sa, sa, b + at[1] + begin * sb, sb, out + at[2] + begin, end - begin, op);
      });
    };
    switch (args.op) {
      case Binary::add: return rows([](auto x, auto y) { return x + y; });
      case Binary::mul: return rows([](auto x, auto y) { return x * y; });
    }
  });
}

void run(const AxpbyArgs& args) {
  dispatch_float(args.x_dtype, "axpby",
                 [&]<class X>() { dispatch_float(args.y_dtype, "axpby", [&]<class Y>() { axpby<X, Y>(args); }); });
}

}  // namespace sieve::cpu
