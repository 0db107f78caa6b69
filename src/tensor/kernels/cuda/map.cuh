// out[i] = f(a[i]) or f(a[i], b[i]) over n dense elements, in packs of 16 bytes where all pointers are aligned. A block
// owns a fixed range; a thread loads all it needs before it stores, so out may be a or b and several loads are in
// flight.
#pragma once

#include "tensor/kernels/cuda/pack.cuh"

namespace sieve::cuda {

template <class... T>
inline constexpr int kMapPack = std::max({kPack<T>...});  // elements a thread takes: 16 bytes of the narrowest type

// Packs a thread takes: 64 bytes of loads in flight hide the memory's latency.
template <int N, class... T>
inline constexpr int kInFlight = std::max<int>(1, 64 / (N * (static_cast<int>(sizeof(T)) + ...)));

template <int N, int U, class F, class Out, class A>
__global__ void __launch_bounds__(kThreads) map_one(std::int64_t n, bool wide, F f, Out* out, const A* a) {
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * (kThreads * U * N);
  if (!wide) {
    const std::int64_t end = min(n, first + kThreads * U * N);
    for (std::int64_t i = first + threadIdx.x; i < end; i += kThreads) out[i] = f(a[i]);
    return;
  }
  Pack<A, N> x[U];
#pragma unroll
  for (int u = 0; u < U; ++u) {
    const std::int64_t i = first + (u * kThreads + static_cast<int>(threadIdx.x)) * N;
    if (i < n) x[u] = load_part<N>(a + i, n - i, true);
  }
#pragma unroll
  for (int u = 0; u < U; ++u) {
    const std::int64_t i = first + (u * kThreads + static_cast<int>(threadIdx.x)) * N;
    Pack<Out, N> y;
#pragma unroll
    for (int k = 0; k < N; ++k) y.at[k] = f(x[u].at[k]);
    if (i < n) store_part<N>(out + i, y, n - i, true);
  }
}

template <int N, int U, class F, class Out, class A, class B>
__global__ void __launch_bounds__(kThreads) map_two(std::int64_t n, bool wide, F f, Out* out, const A* a, const B* b) {
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * (kThreads * U * N);
  if (!wide) {
    const std::int64_t end = min(n, first + kThreads * U * N);
    for (std::int64_t i = first + threadIdx.x; i < end; i += kThreads) out[i] = f(a[i], b[i]);
    return;
  }
  Pack<A, N> x[U];
  Pack<B, N> y[U];
#pragma unroll
  for (int u = 0; u < U; ++u) {
    const std::int64_t i = first + (u * kThreads + static_cast<int>(threadIdx.x)) * N;
    if (i >= n) continue;
    x[u] = load_part<N>(a + i, n - i, true);
    y[u] = load_part<N>(b + i, n - i, true);
  }
#pragma unroll
  for (int u = 0; u < U; ++u) {
    const std::int64_t i = first + (u * kThreads + static_cast<int>(threadIdx.x)) * N;
    Pack<Out, N> z;
#pragma unroll
    for (int k = 0; k < N; ++k) z.at[k] = f(x[u].at[k], y[u].at[k]);
    if (i < n) store_part<N>(out + i, z, n - i, true);
  }
}

template <class F, class Out, class A>
void map(std::int64_t n, F f, Out* out, const A* a, const Stream& stream, const char* what) {
  if (n == 0) return;
  constexpr int N = kMapPack<Out, A>, U = kInFlight<N, A>;
  const bool wide = aligned<N>(out) && aligned<N>(a);
  const std::int64_t each = kThreads * U * N;
  map_one<N, U><<<static_cast<unsigned>((n + each - 1) / each), kThreads, 0, handle_of(stream)>>>(n, wide, f, out, a);
  check_launch(what);
}

template <class F, class Out, class A, class B>
void map(std::int64_t n, F f, Out* out, const A* a, const B* b, const Stream& stream, const char* what) {
  if (n == 0) return;
  constexpr int N = kMapPack<Out, A, B>, U = kInFlight<N, A, B>;
  const bool wide = aligned<N>(out) && aligned<N>(a) && aligned<N>(b);
  const std::int64_t each = kThreads * U * N;
  map_two<N, U>
      <<<static_cast<unsigned>((n + each - 1) / each), kThreads, 0, handle_of(stream)>>>(n, wide, f, out, a, b);
  check_launch(what);
}

}  // namespace sieve::cuda
