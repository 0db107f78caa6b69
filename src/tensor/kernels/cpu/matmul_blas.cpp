// Pieces of matrix products by OpenBLAS: fp64, and fp32 where oneDNN is absent.
#include <cblas.h>

#include <limits>

#include "tensor/kernels/cpu/matmul_product.h"
#include "tensor/kernels/cpu/vec.h"

namespace sieve::cpu {
namespace {

blasint narrow(std::int64_t n) {
  require(n <= std::numeric_limits<blasint>::max(), "matmul", "extent ", n, " is beyond OpenBLAS's integers");
  return static_cast<blasint>(n);
}

template <class T>
void add_bias(const MatmulArgs& p) {
  const T* bias = static_cast<const T*>(p.bias_N);
  for (std::int64_t m = 0; m < p.M; ++m) {
    T* c = static_cast<T*>(p.c) + m * p.ldc;
    for (std::int64_t n = 0; n < p.N; ++n) c[n] += bias[n];
  }
}

}  // namespace

void blas_product(const MatmulArgs& p) {
  // Its threads would split K by their number; ours already work on other pieces.
  static const bool one_thread = (openblas_set_num_threads(1), true);
  (void)one_thread;
  const auto ta = p.transpose_a ? CblasTrans : CblasNoTrans, tb = p.transpose_b ? CblasTrans : CblasNoTrans;
  const blasint M = narrow(p.M), N = narrow(p.N), K = narrow(p.K), lda = narrow(p.lda), ldb = narrow(p.ldb),
                ldc = narrow(p.ldc);
  if (p.dtype == DType::f64) {
    cblas_dgemm(CblasRowMajor, ta, tb, M, N, K, p.alpha, static_cast<const double*>(p.a), lda,
                static_cast<const double*>(p.b), ldb, p.beta, static_cast<double*>(p.c), ldc);
    if (p.bias_N != nullptr) add_bias<double>(p);
  } else {
    cblas_sgemm(CblasRowMajor, ta, tb, M, N, K, static_cast<float>(p.alpha), static_cast<const float*>(p.a), lda,
                static_cast<const float*>(p.b), ldb, static_cast<float>(p.beta), static_cast<float*>(p.c), ldc);
    if (p.bias_N != nullptr) add_bias<float>(p);
  }
}

}  // namespace sieve::cpu
