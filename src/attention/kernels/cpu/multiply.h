// Small matrix products of one tile, all operands in the first-level caches. Vectors run along the columns of B and C;
// elements of A are broadcast, so A may be row-major or its transpose without packing. Attention needs nothing else:
//   S^T = K Q^T   dP^T = V dO^T            (keys x queries: A row-major)
//   O^T += V^T P^T   dQ^T += K^T dS^T      (features x queries: A transposed)
//   dV += P^T dO   dK += dS^T Q            (keys x features: A row-major)
// and queries lie in lanes, so that the softmax over keys needs no step across lanes.
#pragma once

#include <cstddef>

#include "attention/kernels/cpu/vec.h"

namespace sieve::cpu {

enum class Layout { plain, transposed };
enum class Store { assign, add };

// C (M, N) = or += A B, A (M, K) or stored as (K, M). One block of kRows x (kVectors vectors) in registers.
template <class T, Layout kLayout, Store kStore, int kRows, int kVectors>
[[gnu::always_inline]] inline void multiply_block(std::ptrdiff_t K, const T* a, std::ptrdiff_t lda, const T* b,
                                                  std::ptrdiff_t ldb, T* c, std::ptrdiff_t ldc) {
  constexpr int L = kLanes<T>;
  Vec<T> sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < kVectors; ++n) sum[m][n] = kStore == Store::add ? load(c + m * ldc + n * L) : Vec<T>{};
  }
  for (std::ptrdiff_t k = 0; k < K; ++k) {
    Vec<T> column[kVectors];
#pragma GCC unroll 4
    for (int n = 0; n < kVectors; ++n) column[n] = load(b + k * ldb + n * L);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
      const T x = kLayout == Layout::plain ? a[m * lda + k] : a[k * lda + m];
#pragma GCC unroll 4
      for (int n = 0; n < kVectors; ++n) sum[m][n] += x * column[n];
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < kVectors; ++n) store(c + m * ldc + n * L, sum[m][n]);
  }
}

template <class T, Layout kLayout, Store kStore, int kVectors>
inline void multiply_columns(std::ptrdiff_t M, std::ptrdiff_t K, const T* a, std::ptrdiff_t lda, const T* b,
                             std::ptrdiff_t ldb, T* c, std::ptrdiff_t ldc) {
  // 8 x 2 accumulators, their operands and nothing spilled in 32 registers; 4 x 2 where there are 16.
  constexpr int kRows = kVectorBytes == 64 ? 8 : 4;
  const std::ptrdiff_t step = kLayout == Layout::plain ? lda : 1;
  std::ptrdiff_t m = 0;
  for (; m + kRows <= M; m += kRows)
    multiply_block<T, kLayout, kStore, kRows, kVectors>(K, a + m * step, lda, b, ldb, c + m * ldc, ldc);
  for (; m + 2 <= M; m += 2)
    multiply_block<T, kLayout, kStore, 2, kVectors>(K, a + m * step, lda, b, ldb, c + m * ldc, ldc);
  if (m < M) multiply_block<T, kLayout, kStore, 1, kVectors>(K, a + m * step, lda, b, ldb, c + m * ldc, ldc);
}

// N is a multiple of kLanes<T>.
template <class T, Layout kLayout, Store kStore>
[[gnu::noinline]] void multiply(std::ptrdiff_t M, std::ptrdiff_t N, std::ptrdiff_t K, const T* a, std::ptrdiff_t lda,
                                const T* b, std::ptrdiff_t ldb, T* c, std::ptrdiff_t ldc) {
  constexpr int L = kLanes<T>;
  std::ptrdiff_t n = 0;
  for (; n + 2 * L <= N; n += 2 * L) multiply_columns<T, kLayout, kStore, 2>(M, K, a, lda, b + n, ldb, c + n, ldc);
  if (n < N) multiply_columns<T, kLayout, kStore, 1>(M, K, a, lda, b + n, ldb, c + n, ldc);
}

// The same sums for masked blocks that hold a NaN or an infinity: a pair whose weight is 0 is not touched at all,
// because 0 * NaN would carry the NaN to queries (or keys) that must not see it. Weights are B (C += A^T B) or A (C +=
// A B).
template <class T>
void multiply_seen_queries(std::ptrdiff_t M, std::ptrdiff_t N, std::ptrdiff_t K, const T* a, std::ptrdiff_t lda,
                           const T* weights, std::ptrdiff_t ldw, T* c, std::ptrdiff_t ldc) {
  for (std::ptrdiff_t k = 0; k < K; ++k) {
    for (std::ptrdiff_t n = 0; n < N; ++n) {
      const T w = weights[k * ldw + n];
      for (std::ptrdiff_t m = 0; w != 0 && m < M; ++m) c[m * ldc + n] += a[k * lda + m] * w;
    }
  }
}
template <class T>
void multiply_seen_keys(std::ptrdiff_t M, std::ptrdiff_t N, std::ptrdiff_t K, const T* weights, std::ptrdiff_t ldw,
                        const T* b, std::ptrdiff_t ldb, T* c, std::ptrdiff_t ldc) {
  for (std::ptrdiff_t m = 0; m < M; ++m) {
    for (std::ptrdiff_t k = 0; k < K; ++k) {
      const T w = weights[m * ldw + k];
      for (std::ptrdiff_t n = 0; w != 0 && n < N; ++n) c[m * ldc + n] += w * b[k * ldb + n];
    }
  }
}

}  // namespace sieve::cpu
