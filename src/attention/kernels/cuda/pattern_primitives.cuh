// Instructions of sm_80 and later that pattern attention is made of, beside those of mma.cuh.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace sieve::cuda {

// 16 (4) bytes on their way to shared memory; zeros where `real` is false.
__device__ inline void copy_16(void* to, const void* from, bool real) {
  const auto at = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(real ? 16 : 0) : "memory");
}
__device__ inline void copy_4(void* to, const void* from, bool real) {
  const auto at = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(at), "l"(from), "r"(real ? 4 : 0) : "memory");
}
__device__ inline void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ inline void await_copies() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }

__device__ inline float quick_power_of_2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two numbers rounded to bf16 in a word, and the sum of the products of two such words.
__device__ inline std::uint32_t pack_pair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}
__device__ inline float product_of_pairs(std::uint32_t a, std::uint32_t b) {
  const float2 x = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(a)),
               y = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(b));
  return x.x * y.x + x.y * y.y;
}

}  // namespace sieve::cuda
