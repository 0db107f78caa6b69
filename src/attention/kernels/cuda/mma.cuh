// Tensor core instructions of sm_80 and later on bf16 tiles in shared memory (PTX ISA, "Matrix Fragments for
// mma.m16n8k16").
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace sieve::cuda {

// Four 8 x 8 matrices; lane l names row l % 8 of matrix l / 8, 16-byte aligned.
__device__ inline void load_matrices(std::uint32_t (&x)[4], const bf16* row) {
  const auto at = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(at)
               : "memory");
}
__device__ inline void load_matrices_transposed(std::uint32_t (&x)[4], const bf16* row) {
  const auto at = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(at)
               : "memory");
}

// c (16, 8) += a (16, 16) b (16, 8), fp32 accumulators.
__device__ inline void multiply_add(float* c, const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace sieve::cuda
