// add and mul with broadcast, y = alpha x + beta y. Views are coalesced first: what is dense in all operands runs as
// one row of packs.
#include "tensor/kernels/cuda/map.cuh"
#include "tensor/kernels/cuda/strided.cuh"
#include "tensor/kernels/kernels.h"

namespace sieve::cuda {
namespace {

template <class T>
struct Combine {
  Binary op;
  __device__ T operator()(T a, T b) const {
    const auto x = to_compute(a), y = to_compute(b);
    return to_element<T>(op == Binary::add ? x + y : x * y);
  }
};

template <int N, class T>
__device__ Pack<T, N> load_strided(const T* p, bool moves) {
  if (moves) return load_pack<N>(p);
  Pack<T, N> out;
  const T one = *p;
#pragma unroll
  for (int k = 0; k < N; ++k) out.at[k] = one;
  return out;
}

// The i-th pack of N neighbours of out; the view counts packs, and its innermost strides are N elements or 0.
template <int N, class Index, class T>
__global__ void __launch_bounds__(kThreads) binary_view(std::int64_t packs, Combine<T> f, DeviceView<Index, 2> view,
                                                        bool a_moves, bool b_moves, const T* a, const T* b, T* out) {
  SIEVE_GRID_STRIDE(i, packs) {
    std::int64_t at[2];
    view.offsets(static_cast<Index>(i), at);
    const Pack<T, N> x = load_strided<N>(a + at[0], a_moves), y = load_strided<N>(b + at[1], b_moves);
    Pack<T, N> z;
#pragma unroll
    for (int k = 0; k < N; ++k) z.at[k] = f(x.at[k], y.at[k]);
    store_pack<N>(out + i * N, z);
  }
}

// Whether each operand is read in whole aligned packs, or one element for all of a pack.
template <int N, class T>
bool packs_fit(const cpu::View<2>& view, const T* a, const T* b, const T* out) {
  bool fits = view.inner() % N == 0 && aligned<N>(out);
  for (std::size_t s = 0; s < 2; ++s) {
    if (view.inner_stride(s) == 0) continue;
    fits = fits && view.inner_stride(s) == 1 && aligned<N>(s == 0 ? a : b);
    for (int axis = 0; axis + 1 < view.rank; ++axis)
      fits = fits && view.strides[s][static_cast<std::size_t>(axis)] % N == 0;
  }
  return fits;
}

template <int N, class T>
void launch_view(cpu::View<2> view, const BinaryArgs& args, const Stream& stream) {
  const T* a = static_cast<const T*>(args.a);
  const T* b = static_cast<const T*>(args.b);
  const bool a_moves = N == 1 || view.inner_stride(0) != 0, b_moves = N == 1 || view.inner_stride(1) != 0;
  const auto last = static_cast<std::size_t>(view.rank - 1);
  view.extents[last] /= N;
  for (auto& strides : view.strides) strides[last] *= N;
  const std::int64_t packs = count_of(view);
  with_index(packs, [&](auto zero) {
    using Index = decltype(zero);
    binary_view<N, Index, T><<<blocks_for(packs), kThreads, 0, handle_of(stream)>>>(
        packs, Combine<T>{args.op}, device_view<Index>(view), a_moves, b_moves, a, b, static_cast<T*>(args.out));
  });
  check_launch("binary");
}

// y = alpha x + beta y in C; factor lies on the device.
template <class C, class X, class Y>
struct Axpby {
  C alpha, beta;
  const compute_t<X>* factor;
  __device__ C scale() const { return factor != nullptr ? alpha * static_cast<C>(*factor) : alpha; }
  __device__ Y operator()(X x) const {
    return to_element<Y>(static_cast<compute_t<Y>>(scale() * static_cast<C>(to_compute(x))));
  }
  __device__ Y operator()(X x, Y y) const {
    return to_element<Y>(
        static_cast<compute_t<Y>>(scale() * static_cast<C>(to_compute(x)) + beta * static_cast<C>(to_compute(y))));
  }
};

}  // namespace

void run(const BinaryArgs& args, Stream stream) {
  const auto dense = cpu::dense_strides(args.rank, args.extents);
  // With out's strides in it, axes join only where out is dense over them too.
  const auto all = cpu::coalesce(cpu::View<3>{args.rank, args.extents, {args.a_strides, args.b_strides, dense}});
  const cpu::View<2> view{all.rank, all.extents, {all.strides[0], all.strides[1]}};
  if (count_of(view) == 0) return;
  dispatch_float(args.dtype, "binary", [&]<class T>() {
    const T* a = static_cast<const T*>(args.a);
    const T* b = static_cast<const T*>(args.b);
    T* out = static_cast<T*>(args.out);
    if (view.rank == 1 && view.inner_stride(0) == 1 && view.inner_stride(1) == 1) {
      map(view.inner(), Combine<T>{args.op}, out, a, b, stream, "binary");
    } else if (packs_fit<kPack<T>>(view, a, b, out)) {
      launch_view<kPack<T>, T>(view, args, stream);
    } else {
      launch_view<1, T>(view, args, stream);
    }
  });
}

void run(const AxpbyArgs& args, Stream stream) {
  dispatch_float(args.x_dtype, "axpby", [&]<class X>() {
    dispatch_float(args.y_dtype, "axpby", [&]<class Y>() {
      using C = std::conditional_t<std::is_same_v<X, double> || std::is_same_v<Y, double>, double, float>;
      const Axpby<C, X, Y> f{static_cast<C>(args.alpha), static_cast<C>(args.beta),
                             static_cast<const compute_t<X>*>(args.alpha_factor)};
      const X* x = static_cast<const X*>(args.x);
      Y* y = static_cast<Y*>(args.y);
      if (args.beta == 0) {
        map(args.n, f, y, x, stream, "axpby");
      } else {
        map(args.n, f, y, x, static_cast<const Y*>(y), stream, "axpby");
      }
    });
  });
}

}  // namespace sieve::cuda
