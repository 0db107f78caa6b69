// Memory-bound: every feature is read and written once, 16 bytes an access where rows, heads and halves allow it. cos
// and sin are shared by the heads of a row and come from the caches.
#include <cstdint>

#include "attention/kernels/cuda/launch.cuh"
#include "attention/kernels/rotate.h"
#include "tensor/dispatch.h"
#include "tensor/kernels/cuda/pack.cuh"

namespace sieve::cuda {
namespace {

__host__ __device__ inline std::int64_t pairs_of(const RotateArgs& a) {
  return a.rotary.cos == nullptr ? 0 : a.rotary.rotary_dims / 2;
}

// A thread: N pairs (r, R + r) of one head that turn together, or N features behind them, which are copied as a head
// that does not turn is. Index: of the threads' parts, 32 bits where they suffice, for its divisions.
template <class T, int N, class Index>
__global__ void __launch_bounds__(kThreads) rotate(const RotateArgs a, Index total) {
  using Real = compute_t<T>;
  const auto R = static_cast<Index>(pairs_of(a)), parts = (static_cast<Index>(a.D) - R) / N;
  const auto H = static_cast<Index>(a.H), rows = static_cast<Index>(a.T);
  const Index step = static_cast<Index>(gridDim.x) * kThreads;
  for (Index x = static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x; x < total; x += step) {
    const Index d = x % parts * N, head = x / parts, row = head / H;
    const std::int64_t h = head % H, t = row % rows, b = row / rows;
    const T* in = static_cast<const T*>(a.x) + b * a.from.batch + h * a.from.head + t * a.from.row + d;
    T* out = static_cast<T*>(a.out) + b * a.to.batch + h * a.to.head + t * a.to.row + d;
    if (d >= R) {
      store_pack<N>(out + R, load_pack<N>(in + R));
      continue;
    }
    Pack<T, N> first = load_pack<N>(in), second = load_pack<N>(in + R);
    if (h < a.turned) {
      const std::int64_t start = a.document_starts_BT == nullptr ? 0 : a.document_starts_BT[b * a.T + t];
      const std::int64_t turn = (a.first_position + t - start) * static_cast<std::int64_t>(R) + d;
      const Pack<Real, N> cos = load_pack<N>(static_cast<const Real*>(a.rotary.cos) + turn),
                          sin = load_pack<N>(static_cast<const Real*>(a.rotary.sin) + turn);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const Real u = to_compute(first.at[i]), v = to_compute(second.at[i]);
        const Real c = cos.at[i], s = a.back ? -sin.at[i] : sin.at[i];
        first.at[i] = to_element<T>(u * c - v * s);
        second.at[i] = to_element<T>(v * c + u * s);
      }
    }
    store_pack<N>(out, first);
    store_pack<N>(out + R, second);
  }
}

template <class T, int N>
void start_packs(const RotateArgs& a, Stream stream) {
  const std::int64_t total = a.B * a.H * a.T * ((a.D - pairs_of(a)) / N);
  if (total == 0) return;
  // A step adds at most 2^24: 32 bits do not wrap.
  if (total < (std::int64_t{1} << 31)) {
    start("rotate", rotate<T, N, std::uint32_t>, blocks_for(total), kThreads, 0, stream, a,
          static_cast<std::uint32_t>(total));
  } else {
    start("rotate", rotate<T, N, std::int64_t>, blocks_for(total), kThreads, 0, stream, a, total);
  }
}

template <class T>
void start_rotate(const RotateArgs& a, Stream stream) {
  using Real = compute_t<T>;
  constexpr int N = kPack<T>;
  bool wide = aligned<N>(static_cast<const T*>(a.x)) && aligned<N>(static_cast<const T*>(a.out)) &&
              aligned<N>(static_cast<const Real*>(a.rotary.cos)) && aligned<N>(static_cast<const Real*>(a.rotary.sin));
  for (const std::int64_t each :
       {pairs_of(a), a.D, a.from.batch, a.from.head, a.from.row, a.to.batch, a.to.head, a.to.row})
    wide = wide && each % N == 0;
  if (wide) start_packs<T, N>(a, stream);
  else start_packs<T, 1>(a, stream);
}

}  // namespace

void run(const RotateArgs& a, Stream stream) {
  if (a.dtype == DType::f64) start_rotate<double>(a, stream);
  else if (a.dtype == DType::bf16) start_rotate<bf16>(a, stream);
  else start_rotate<float>(a, stream);
}

}  // namespace sieve::cuda
