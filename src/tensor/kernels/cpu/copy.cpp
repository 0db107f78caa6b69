// Strided copies that convert, fills, and counter-based random numbers.
#include <algorithm>
#include <cstring>

#include "core/rng.h"
#include "tensor/kernels/cpu/strided.h"

namespace sieve::cpu {
namespace {

template <class F>
decltype(auto) dispatch_any(DType t, F&& f) {
  switch (t) {
    case DType::f32: return f.template operator()<float>();
    case DType::bf16: return f.template operator()<bf16>();
    case DType::f64: return f.template operator()<double>();
    case DType::i32: return f.template operator()<std::int32_t>();
    case DType::i64: return f.template operator()<std::int64_t>();
    case DType::u8: return f.template operator()<std::uint8_t>();
  }
  fail(Exit::internal, "copy", "unknown dtype ", static_cast<int>(t));
}

// Through float where bf16 is a side: it has no other conversions.
template <class D, class S>
D convert(S value) {
  if constexpr (std::is_same_v<D, S>) {
    return value;
  } else if constexpr (std::is_same_v<S, bf16>) {
    return static_cast<D>(static_cast<float>(value));
  } else if constexpr (std::is_same_v<D, bf16>) {
    return bf16(static_cast<float>(value));
  } else {
    return static_cast<D>(value);
  }
}

template <class S, class D>
void copy_row(const S* src, std::int64_t ss, D* dst, std::int64_t ds, std::int64_t n) {
  if (ss == 1 && ds == 1) {
    if constexpr (std::is_same_v<S, D>) {
      std::memcpy(dst, src, static_cast<std::size_t>(n) * sizeof(S));
    } else {
      for (std::int64_t i = 0; i < n; ++i) dst[i] = convert<D>(src[i]);
    }
  } else {
    for (std::int64_t i = 0; i < n; ++i) dst[i * ds] = convert<D>(src[i * ss]);
  }
}

}  // namespace

void run(const CopyArgs& args) {
  const auto view = coalesce(View<2>{args.rank, args.extents, {args.src_strides, args.dst_strides}});
  const std::int64_t ss = view.inner_stride(0), ds = view.inner_stride(1);
  dispatch_any(args.src_dtype, [&]<class S>() {
    dispatch_any(args.dst_dtype, [&]<class D>() {
      const S* src = static_cast<const S*>(args.src);
      D* dst = static_cast<D*>(args.dst);
      for_each_row(view, [=](std::int64_t begin, std::int64_t end, const std::array<std::int64_t, 2>& at) {
        copy_row(src + at[0] + begin * ss, ss, dst + at[1] + begin * ds, ds, end - begin);
      });
    });
  });
}

void run(const FillArgs& args) {
  dispatch_any(args.dtype, [&]<class T>() {
    T* dst = static_cast<T*>(args.dst);
    const T value = convert<T>(args.value);
    for_elements(args.n, 1, [=](std::int64_t begin, std::int64_t end) { std::fill(dst + begin, dst + end, value); });
  });
}

void run(const RandomArgs& args) {
  const Philox philox{args.seed, args.philox_stream};
  dispatch_float(args.dtype, "random", [&]<class T>() {
    T* dst = static_cast<T*>(args.dst);
    for_elements(args.n, 16, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const auto counter = static_cast<std::uint64_t>(i);
        const double value = args.kind == Random::normal ? args.a + args.b * philox.normal(counter)
                                                         : args.a + (args.b - args.a) * philox.uniform(counter);
        dst[i] = convert<T>(value);
      }
    });
  });
}

}  // namespace sieve::cpu
