// Matrix products: cut into pieces by the shape alone, each piece a library call on one thread. So neither the pieces
// nor the order of any sum depend on the number of threads.
#include <algorithm>
#include <cstddef>
#include <limits>
#include <type_traits>
#include <vector>

#include "core/build.h"
#include "tensor/kernels/cpu/gelu.h"
#include "tensor/kernels/cpu/matmul_product.h"
#include "tensor/kernels/cpu/vec.h"
#include "tensor/kernels/matmul_check.h"

namespace sieve::cpu {
namespace {

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

struct Grid {
  std::int64_t m, n;           // extents of a piece, the last ones smaller
  std::int64_t rows, columns;  // pieces
};

// Measured on GPT-2's shapes (bench/kernels.cpp; one core of a Zen 5 server, peak 235 GFLOP/s fp32 and 470 bf16): 512 x
// 768 reaches 85-90 % of the peak; less of it is packing than with smaller pieces. Two cases lose a quarter with 768
// columns of an untransposed B and want 384: fp32 (unless A is transposed), and bf16 with a long K.
Grid choose_grid(const MatmulArgs& a) {
  const bool narrow = !a.transpose_b && (a.dtype == DType::bf16 ? a.K > 8192 : !a.transpose_a);
  std::int64_t rows = ceil_div(a.M, 512), columns = ceil_div(a.N, narrow ? 384 : 768);
  // At least eight pieces, if each keeps some 40 us of work. Of the ways to get them the one that packs least: per
  // element of C, a piece copies its part of B 1/m times and (by measurement somewhat dearer) its part of A 1/n times.
  constexpr double kWork = 1 << 22;
  const double work = static_cast<double>(a.M) * static_cast<double>(a.N) * static_cast<double>(a.K);
  const auto wanted = static_cast<std::int64_t>(std::min(8.0, work / kWork));
  if (rows * columns < wanted) {
    double least = std::numeric_limits<double>::infinity();
    std::int64_t best = rows;
    for (std::int64_t r = rows; r <= wanted; ++r) {
      const double cost = static_cast<double>(r) / static_cast<double>(a.M) +
                          1.5 * static_cast<double>(std::max(columns, ceil_div(wanted, r))) / static_cast<double>(a.N);
      if (cost < least) {
        least = cost;
        best = r;
      }
    }
    rows = best;
    columns = std::max(columns, ceil_div(wanted, rows));
  }
  // A few pieces are best a number that 2, 4 and 8 threads share evenly.
  if (rows * columns > 8 && rows * columns < 64) {
    std::int64_t even = rows;
    while (even * columns % 8 != 0) ++even;
    if (ceil_div(a.M, even) >= 192) rows = even;
  }
  Grid g{};
  g.m = ceil_div(ceil_div(a.M, rows), 16) * 16;
  g.n = ceil_div(ceil_div(a.N, columns), 64) * 64;
  g.rows = ceil_div(a.M, g.m);
  g.columns = ceil_div(a.N, g.n);
  return g;
}

template <class P>
P* shifted(P* base, std::int64_t elements, DType t) {
  using Byte = std::conditional_t<std::is_const_v<P>, const std::byte, std::byte>;
  return base == nullptr ? nullptr : static_cast<Byte*>(base) + elements * static_cast<std::int64_t>(size_of(t));
}

MatmulArgs piece_of(const MatmulArgs& a, const Grid& g, std::int64_t index) {
  const std::int64_t m = index % g.rows * g.m, n = index / g.rows * g.n;  // neighbours share B's columns
  MatmulArgs p = a;
  p.M = std::min(g.m, a.M - m);
  p.N = std::min(g.n, a.N - n);
  p.a = shifted(a.a, a.transpose_a ? m : m * a.lda, a.dtype);
  p.b = shifted(a.b, a.transpose_b ? n * a.ldb : n, a.dtype);
  p.c = shifted(a.c, m * a.ldc + n, a.c_dtype);
  p.bias_N = shifted(a.bias_N, n, a.dtype);
  p.add_MN = shifted(a.add_MN, m * a.ldc + n, a.c_dtype);
  p.pre_MN = shifted(a.pre_MN, m * a.ldc + n, a.c_dtype);
  return p;
}

constexpr bool kOneDnn = build::with_onednn;

void product_f32(const MatmulArgs& p) {
  if constexpr (kOneDnn) {
    onednn_product(p);
  } else {
    blas_product(p);
  }
}

// bf16 where the CPU does not multiply it: the operands widened piece by piece, the result rounded once.
void product_widened(const MatmulArgs& p) {
  const auto widen = [](const void* from, std::int64_t rows, std::int64_t columns, std::int64_t ld) {
    std::vector<float> out(static_cast<std::size_t>(rows * columns));
    const bf16* x = static_cast<const bf16*>(from);
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < columns; ++c) out[static_cast<std::size_t>(r * columns + c)] = load(x[r * ld + c]);
    }
    return out;
  };
  const std::int64_t a_rows = p.transpose_a ? p.K : p.M, a_columns = p.transpose_a ? p.M : p.K;
  const std::int64_t b_rows = p.transpose_b ? p.N : p.K, b_columns = p.transpose_b ? p.K : p.N;
  const auto a = widen(p.a, a_rows, a_columns, p.lda), b = widen(p.b, b_rows, b_columns, p.ldb);
  std::vector<float> bias;
  MatmulArgs q = p;
  q.dtype = DType::f32;
  q.a = a.data();
  q.b = b.data();
  q.lda = a_columns;
  q.ldb = b_columns;
  if (p.bias_N != nullptr) q.bias_N = (bias = widen(p.bias_N, 1, p.N, p.N)).data();
  if (p.c_dtype == DType::f32) return product_f32(q);
  std::vector<float> c =
      p.beta != 0 ? widen(p.c, p.M, p.N, p.ldc) : std::vector<float>(static_cast<std::size_t>(p.M * p.N));
  q.c = c.data();
  q.ldc = p.N;
  q.c_dtype = DType::f32;
  product_f32(q);
  for (std::int64_t m = 0; m < p.M; ++m) {
    bf16* to = static_cast<bf16*>(p.c) + m * p.ldc;
    for (std::int64_t n = 0; n < p.N; ++n) to[n] = bf16(c[static_cast<std::size_t>(m * p.N + n)]);
  }
}

// out[i] = D(f(i)), i < n. A function of its own: inside a larger one the compiler gives up on vectors.
template <class D, class F>
[[gnu::noinline]] void fill_row(D* out, std::int64_t n, F f) {
#pragma GCC ivdep
  for (std::int64_t i = 0; i < n; ++i) out[i] = D(f(i));
}

// What stands behind the product, over the rows of one piece: v (row stride ld, compute dtype; C itself if D is) is
// added to and becomes C and, if it is kept, pre.
template <class D>
void finish(const MatmulArgs& p, compute_t<D>* v, std::int64_t ld) {
  using TanhForm = std::true_type;
  for (std::int64_t m = 0; m < p.M; ++m, v += ld) {
    const auto row = [m, &p](const void* of) {
      return of == nullptr ? nullptr : static_cast<D*>(const_cast<void*>(of)) + m * p.ldc;
    };
    const auto plain = [v](std::int64_t n) { return v[n]; };
    D *c = row(p.c), *pre = row(p.pre_MN);
    const D* add = row(p.add_MN);
    if (add != nullptr) fill_row(v, p.N, [v, add](std::int64_t n) { return v[n] + load(add[n]); });
    if (p.epilogue == Epilogue::gelu_backward) {
      fill_row(c, p.N, [v, pre](std::int64_t n) { return v[n] * gelu_slope(load(pre[n]), TanhForm()); });
      continue;
    }
    if (pre != nullptr) fill_row(pre, p.N, plain);
    if (p.epilogue == Epilogue::gelu) {
      fill_row(c, p.N, [v](std::int64_t n) { return gelu(v[n], TanhForm()); });
    } else if constexpr (!std::is_same_v<D, compute_t<D>>) {
      fill_row(c, p.N, plain);
    }
  }
}

bool has_epilogue(const MatmulArgs& a) { return a.epilogue != Epilogue::none || a.add_MN != nullptr; }

// C = beta C + bias: the product of nothing.
template <class T, class D>
void scale_only(const MatmulArgs& a) {
  using C = compute_t<D>;
  for (std::int64_t m = 0; m < a.M; ++m) {
    D* c = static_cast<D*>(a.c) + m * a.ldc;
    for (std::int64_t n = 0; n < a.N; ++n) {
      const C old = a.beta == 0 ? C(0) : static_cast<C>(a.beta) * load(c[n]);
      c[n] = D(old + (a.bias_N == nullptr ? C(0) : static_cast<C>(load(static_cast<const T*>(a.bias_N)[n]))));
    }
  }
}

void plain_product(const MatmulArgs& p, bool direct) {
  if (p.K == 0) {
    if (p.dtype == DType::bf16 && p.c_dtype == DType::f32) return scale_only<bf16, float>(p);
    return dispatch_float(p.dtype, "matmul", [&]<class T>() { scale_only<T, T>(p); });
  }
  if (p.dtype == DType::bf16 && !direct) return product_widened(p);
  return p.dtype == DType::f64 ? blas_product(p) : product_f32(p);
}

// One rounding: where C is bf16 the sums stay in fp32 until everything is added.
void product_with_epilogue(const MatmulArgs& p, bool direct) {
  if (p.c_dtype != DType::bf16) {
    plain_product(p, direct);
    return dispatch_float(p.c_dtype, "matmul", [&]<class D>() {
      if constexpr (!std::is_same_v<D, bf16>) finish<D>(p, static_cast<D*>(p.c), p.ldc);
    });
  }
  thread_local std::vector<float> sums;  // grows to the largest piece of this thread
  if (sums.size() < static_cast<std::size_t>(p.M * p.N)) sums.resize(static_cast<std::size_t>(p.M * p.N));
  for (std::int64_t m = 0; m < p.M && p.beta != 0; ++m) {
    const bf16* old = static_cast<const bf16*>(p.c) + m * p.ldc;
    for (std::int64_t n = 0; n < p.N; ++n) sums[static_cast<std::size_t>(m * p.N + n)] = load(old[n]);
  }
  MatmulArgs q = p;
  q.c = sums.data();
  q.ldc = p.N;
  q.c_dtype = DType::f32;
  plain_product(q, direct);
  finish<bf16>(p, sums.data(), p.N);
}

}  // namespace

void run(const MatmulArgs& given) {
  check_matmul(given);
  const MatmulArgs args = normalised(given);
  if (args.a_sum_M != nullptr && args.M > 0) {  // the same bits as a bias gradient of its own
    if (args.transpose_a) run(column_sums_of_a(args));
    if (!args.transpose_a) run(row_sums_of_a(args));
  }
  if (args.M == 0 || args.N == 0) return;
  const Grid grid = choose_grid(args);
  const bool fused = has_epilogue(args);
  bool direct = false;  // oneDNN takes the piece as it is
  if constexpr (kOneDnn) {
    // An odd K in bf16 (no model has one) is ours: with AMX, oneDNN 2.6 and 2.7 die of an illegal instruction at K
    // = 63.
    direct = args.dtype == DType::f32 || (args.dtype == DType::bf16 && onednn_has_bf16() && args.K % 2 == 0);
    // The corner pieces have all the shapes there are. (A fused one is planned when it runs.)
    if (direct && args.K > 0 && !fused) {
      for (std::int64_t row : {std::int64_t{0}, grid.rows - 1}) {
        for (std::int64_t column : {std::int64_t{0}, grid.columns - 1})
          onednn_prepare(piece_of(args, grid, column * grid.rows + row));
      }
    }
  }
  parallel_for(grid.rows * grid.columns, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t index = begin; index < end; ++index) {
      const MatmulArgs p = piece_of(args, grid, index);
      if (fused) {
        product_with_epilogue(p, direct);
      } else {
        plain_product(p, direct);
      }
    }
  });
}

}  // namespace sieve::cpu
