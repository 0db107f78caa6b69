// What both backends demand of a matrix product's arguments.
#pragma once

#include <algorithm>

#include "core/error.h"
#include "tensor/kernels/kernels.h"

namespace sieve {

inline void check_matmul(const MatmulArgs& a) {
  const auto fits = [&](const char* name, std::int64_t rows, std::int64_t columns, std::int64_t ld) {
    require(ld >= columns || rows <= 1, "matmul", "leading dimension ", ld, " of ", name, " (", rows, ", ", columns,
            ")");
  };
  require(a.M >= 0 && a.N >= 0 && a.K >= 0, "matmul", "extents ", a.M, ", ", a.N, ", ", a.K);
  fits("A", a.transpose_a ? a.K : a.M, a.transpose_a ? a.M : a.K, a.lda);
  fits("B", a.transpose_b ? a.N : a.K, a.transpose_b ? a.K : a.N, a.ldb);
  fits("C", a.M, a.N, a.ldc);
  require(is_float(a.dtype) && (a.c_dtype == a.dtype || (a.dtype == DType::bf16 && a.c_dtype == DType::f32)), "matmul",
          name_of(a.dtype), " inputs and a ", name_of(a.c_dtype), " output");
  require(a.bias_N == nullptr || a.alpha == 1, "matmul", "alpha ", a.alpha, " together with a bias");
  require(a.add_MN == nullptr || a.add_MN != a.c, "matmul", "what is added is C itself: that is beta");
  require(a.epilogue != Epilogue::gelu_backward || a.pre_MN != nullptr, "matmul", "GELU's gradient without its input");
  require(a.epilogue != Epilogue::none || a.pre_MN == nullptr, "matmul", "`pre` without an activation");
}

// A matrix of one row has no leading dimension: libraries want a plausible one all the same.
inline MatmulArgs normalised(MatmulArgs a) {
  a.lda = std::max(a.lda, a.transpose_a ? a.M : a.K);
  a.ldb = std::max(a.ldb, a.transpose_b ? a.K : a.N);
  a.ldc = std::max(a.ldc, a.N);
  return a;
}

// The sums over K of op(A): column sums of A as stored, where it is transposed.
inline ColumnSumArgs column_sums_of_a(const MatmulArgs& a) {
  return {.x_RN = a.a, .out_N = a.a_sum_M, .R = a.K, .N = a.M, .ld = a.lda, .dtype = a.dtype};
}
inline ReduceArgs row_sums_of_a(const MatmulArgs& a) {
  ReduceArgs rows{.x = a.a, .out = a.a_sum_M, .rank = 2, .dtype = a.dtype, .out_dtype = compute_dtype(a.dtype)};
  rows.extents[0] = a.M, rows.extents[1] = a.K;
  rows.x_strides[0] = a.lda, rows.x_strides[1] = 1;
  rows.reduce[1] = true;
  return rows;
}

}  // namespace sieve
