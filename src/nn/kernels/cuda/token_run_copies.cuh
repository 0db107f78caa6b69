// Copies of the copy engine into shared memory: one thread asks for whole arrays, and a barrier in shared memory counts
// their bytes, so that a copy costs the other warps no instruction. PTX ISA 9.0, "mbarrier" and "cp.async.bulk"; other
// architectures than those that have it (sm_90 on) compile to a trap, and plan_token_run sends nobody there.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace sieve::cuda {

__device__ inline std::uint32_t shared_place(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

// A barrier's phases complete one after the other, each once it is expected and its bytes are there. One thread sets
// all of them up before a __syncthreads.
__device__ inline void make_barrier(std::uint64_t* barrier) {
  NV_IF_ELSE_TARGET(NV_PROVIDES_SM_90,
                    (asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_place(barrier))
                                  : "memory");),
                    (__trap();))
}
__device__ inline void publish_barriers() {
  NV_IF_TARGET(NV_PROVIDES_SM_90, (asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");))
}
// What was read or written in shared memory before (by threads that met this one) comes before the copies behind.
__device__ inline void order_copies() {
  NV_IF_TARGET(NV_PROVIDES_SM_90, (asm volatile("fence.proxy.async.shared::cta;" ::: "memory");))
}
__device__ inline void expect_bytes(std::uint64_t* barrier, std::uint32_t bytes) {
  NV_IF_TARGET(
      NV_PROVIDES_SM_90,
      (asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_place(barrier)), "r"(bytes)
                    : "memory");))
}
// Addresses and bytes are multiples of 16; nothing where there are no bytes.
__device__ inline void copy_bytes(void* to, const void* from, std::uint32_t bytes, std::uint64_t* barrier) {
  if (bytes == 0) return;
  NV_IF_TARGET(
      NV_PROVIDES_SM_90,
      (asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                        shared_place(to)),
                    "l"(from), "r"(bytes), "r"(shared_place(barrier))
                    : "memory");))
}
// Once the phase of that parity (0 the first) is complete.
__device__ inline void await_bytes(std::uint64_t* barrier, std::uint32_t parity) {
  NV_IF_TARGET(NV_PROVIDES_SM_90, (std::uint32_t done = 0; while (done == 0) {
                 asm volatile(
                     "{\n.reg .pred done;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, done;\n}"
                     : "=r"(done)
                     : "r"(shared_place(barrier)), "r"(parity)
                     : "memory");
               }))
}
// Into the second cache; the same multiples.
__device__ inline void prefetch_bytes(const void* from, std::uint32_t bytes) {
  if (bytes == 0) return;
  NV_IF_TARGET(NV_PROVIDES_SM_90, (asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes)
                                                : "memory");))
}

}  // namespace sieve::cuda
