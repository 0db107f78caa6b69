// Several neighbouring elements in one access of up to 16 bytes, and elements to and from the type they are computed
// in.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "tensor/kernels/cuda/block.cuh"

namespace sieve::cuda {

template <class T, int N>
struct Pack {
  T at[N];
};

// As many elements of T as 16 bytes hold.
template <class T>
inline constexpr int kPack = static_cast<int>(16 / sizeof(T));

template <int N, class T>
using AccessUnit = std::conditional_t<
    N * sizeof(T) % 16 == 0, uint4,
    std::conditional_t<N * sizeof(T) % 8 == 0, uint2, std::conditional_t<N * sizeof(T) % 4 == 0, std::uint32_t, T>>>;

// Whether p may be read in packs of N.
template <int N, class T>
bool aligned(const T* p) {
  return reinterpret_cast<std::uintptr_t>(p) % sizeof(AccessUnit<N, T>) == 0;
}

template <int N, class T>
__device__ inline Pack<T, N> load_pack(const T* p) {
  using Unit = AccessUnit<N, T>;
  constexpr int kEach = static_cast<int>(sizeof(Unit) / sizeof(T));
  Pack<T, N> out;
#pragma unroll
  for (int i = 0; i < N / kEach; ++i) {
    const Unit unit = reinterpret_cast<const Unit*>(p)[i];
    memcpy(&out.at[i * kEach], &unit, sizeof(Unit));
  }
  return out;
}

// The same of memory that nothing writes while the kernel runs: such loads may pass stores.
template <int N, class T>
__device__ inline Pack<T, N> load_constant(const T* p) {
  using Unit = AccessUnit<N, T>;
  constexpr int kEach = static_cast<int>(sizeof(Unit) / sizeof(T));
  Pack<T, N> out;
#pragma unroll
  for (int i = 0; i < N / kEach; ++i) {
    const Unit unit = __ldg(reinterpret_cast<const Unit*>(p) + i);
    memcpy(&out.at[i * kEach], &unit, sizeof(Unit));
  }
  return out;
}

template <int N, class T>
__device__ inline void store_pack(T* p, const Pack<T, N>& value) {
  using Unit = AccessUnit<N, T>;
  constexpr int kEach = static_cast<int>(sizeof(Unit) / sizeof(T));
#pragma unroll
  for (int i = 0; i < N / kEach; ++i) {
    Unit unit;
    memcpy(&unit, &value.at[i * kEach], sizeof(Unit));
    reinterpret_cast<Unit*>(p)[i] = unit;
  }
}

// The same of `left` elements (0 beyond them) where a pack may end early or is not aligned: then `wide` is false. The
// element's place in the pack is the same either way, so sums have the same order.
template <int N, class T>
__device__ inline Pack<T, N> load_part(const T* p, std::int64_t left, bool wide) {
  if (wide && left >= N) return load_pack<N>(p);
  Pack<T, N> out;
#pragma unroll
  for (int i = 0; i < N; ++i) out.at[i] = i < left ? p[i] : T{};
  return out;
}
template <int N, class T>
__device__ inline void store_part(T* p, const Pack<T, N>& value, std::int64_t left, bool wide) {
  if (wide && left >= N) return store_pack<N>(p, value);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (i < left) p[i] = value.at[i];
  }
}

// Rounded once, by the conversion instruction where there is one.
template <class T>
__device__ inline T to_element(compute_t<T> value) {
  if constexpr (std::is_same_v<T, bf16>) {
    bf16 out;
    out.bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
    return out;
  } else {
    return value;
  }
}
template <class T>
__device__ inline compute_t<T> to_compute(T value) {
  return static_cast<compute_t<T>>(value);
}

}  // namespace sieve::cuda
