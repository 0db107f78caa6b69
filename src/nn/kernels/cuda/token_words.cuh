// Words that the blocks of a launch hand each other: 32 bits of payload (two bf16 features or one float) and 32 bits of
// tag in one access. A word's tag says that its payload is there, so no fence and no barrier is needed; every token has
// a tag of its own, and every word is written once a token.
#pragma once

#include <cstdint>
#include <cstring>

#include "tensor/kernels/cuda/pack.cuh"

namespace sieve::cuda {

// 16 bytes as they lie in memory: element by element they would take a register each.
template <class T>
struct Raw {
  uint4 bits;

  __device__ static Raw none() { return {make_uint4(0, 0, 0, 0)}; }
  __device__ static Raw at(const T* p) { return {*reinterpret_cast<const uint4*>(p)}; }
  __device__ static Raw constant_at(const T* p) { return {__ldg(reinterpret_cast<const uint4*>(p))}; }
  __device__ float get(int i) const {  // i is known at compile time
    constexpr int kEach = static_cast<int>(4 / sizeof(T));
    const std::uint32_t word = i / kEach == 0 ? bits.x : i / kEach == 1 ? bits.y : i / kEach == 2 ? bits.z : bits.w;
    if constexpr (sizeof(T) == 4) return __uint_as_float(word);
    else return __uint_as_float(i % 2 == 0 ? word << 16 : word & 0xffff0000u);
  }
  __device__ static Raw of(const float (&v)[kPack<T>]) {
    Pack<T, kPack<T>> p;
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) p.at[i] = to_element<T>(v[i]);
    Raw out;
    memcpy(&out, &p, 16);
    return out;
  }
};

using Word = std::uint64_t;
constexpr std::uint32_t kMostPolls = 1u << 23;  // some seconds: a block that never comes is an error, not a hang

template <class T>
inline constexpr int kPerWord = static_cast<int>(4 / sizeof(T));

template <class T>
__device__ inline std::uint32_t payload_of(const T (&v)[kPerWord<T>]) {
  std::uint32_t bits;
  memcpy(&bits, v, 4);
  return bits;
}
template <class T>
struct Payload {
  T at[kPerWord<T>];
};
template <class T>
__device__ inline Payload<T> features_of(std::uint32_t payload) {
  Payload<T> out;
  memcpy(&out, &payload, 4);
  return out;
}

__device__ inline void send(Word* to, std::uint32_t payload, std::uint32_t tag) {
  const Word word = static_cast<Word>(tag) << 32 | payload;
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(word) : "memory");
}

// Two neighbouring words from each of n places (16-byte aligned), once all of them are there.
template <int n>
__device__ inline void await(const Word* const (&from)[n], std::uint32_t tag, std::uint32_t (&out)[n][2]) {
  for (std::uint32_t polls = 0;; ++polls) {
    Word a[n], b[n];
#pragma unroll
    for (int i = 0; i < n; ++i)
      asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(a[i]), "=l"(b[i]) : "l"(from[i]) : "memory");
    bool all = true;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      all = all && static_cast<std::uint32_t>(a[i] >> 32) == tag && static_cast<std::uint32_t>(b[i] >> 32) == tag;
      out[i][0] = static_cast<std::uint32_t>(a[i]), out[i][1] = static_cast<std::uint32_t>(b[i]);
    }
    if (all) return;
    if (polls == kMostPolls) __trap();
  }
}

// 2^x and 1 / x to 2 units of the last place, in an instruction or two.
__device__ inline float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
}  // namespace sieve::cuda
