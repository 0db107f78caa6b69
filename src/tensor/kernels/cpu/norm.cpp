// Layer norm and RMS norm. R rows, D features. One row at a time, which stays in the first-level cache over the passes;
// gradients of weights are summed inside fixed blocks of rows, and the blocks' sums in block order.
#include <algorithm>
#include <vector>

#include "core/parallel_for.h"
#include "tensor/kernels/cpu/vec.h"
#include "tensor/kernels/kernels.h"

namespace sieve::cpu {
namespace {

// Rows in a block: at least 16, at most 128 blocks. A function of R alone.
std::int64_t block_rows(std::int64_t R) { return std::max<std::int64_t>(16, (R + 127) / 128); }

// Runs f(first_row, last_row, sums) for each block, where sums are `width` zeroed numbers, and adds up the blocks'
// sums.
template <class C, class F>
std::vector<double> sum_over_blocks(std::int64_t R, std::int64_t width, const F& f) {
  const std::int64_t step = block_rows(R), blocks = (R + step - 1) / step;
  std::vector<C> partial(static_cast<std::size_t>(blocks * width));
  parallel_for(blocks, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t block = begin; block < end; ++block)
      f(block * step, std::min(R, (block + 1) * step), partial.data() + block * width);
  });
  std::vector<double> total(static_cast<std::size_t>(width));
  parallel_for(width, row_grain(blocks), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t block = 0; block < blocks; ++block) {
      for (std::int64_t i = begin; i < end; ++i)
        total[static_cast<std::size_t>(i)] += static_cast<double>(partial[static_cast<std::size_t>(block * width + i)]);
    }
  });
  return total;
}

template <class C>
void store_sums(const double* sums, std::int64_t n, void* out, bool accumulate) {
  C* to = static_cast<C*>(out);
  for (std::int64_t i = 0; to != nullptr && i < n; ++i)
    to[i] = static_cast<C>(accumulate ? static_cast<double>(to[i]) + sums[i] : sums[i]);
}

template <class T>
void layer_norm(const LayerNormArgs& a) {
  using C = compute_t<T>;
  const T* w = static_cast<const T*>(a.w_D);
  const T* b = static_cast<const T*>(a.b_D);
  const C count = static_cast<C>(a.D), eps = static_cast<C>(a.eps);
  parallel_for(a.R, row_grain(4 * a.D), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const T* x = static_cast<const T*>(a.x_RD) + r * a.D;
      T* y = static_cast<T*>(a.y_RD) + r * a.D;
      const C mean = lane_sum<C>(a.D, [x](std::int64_t i) { return load(x[i]); }) / count;
      const C variance =
          lane_sum<C>(a.D, [x, mean](std::int64_t i) { return (load(x[i]) - mean) * (load(x[i]) - mean); }) / count;
      const C rstd = C(1) / std::sqrt(variance + eps);
      if (b != nullptr) {
        for (std::int64_t i = 0; i < a.D; ++i) y[i] = T((load(x[i]) - mean) * rstd * load(w[i]) + load(b[i]));
      } else {
        for (std::int64_t i = 0; i < a.D; ++i) y[i] = T((load(x[i]) - mean) * rstd * load(w[i]));
      }
      if (a.mean_R != nullptr) static_cast<C*>(a.mean_R)[r] = mean;
      if (a.rstd_R != nullptr) static_cast<C*>(a.rstd_R)[r] = rstd;
    }
  });
}

template <class T>
void rms_norm(const RmsNormArgs& a) {
  using C = compute_t<T>;
  const T* w = static_cast<const T*>(a.w_D);
  const C count = static_cast<C>(a.D), eps = static_cast<C>(a.eps);
  parallel_for(a.R, row_grain(3 * a.D), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const T* x = static_cast<const T*>(a.x_RD) + r * a.D;
      T* y = static_cast<T*>(a.y_RD) + r * a.D;
      const C square = lane_sum<C>(a.D, [x](std::int64_t i) { return load(x[i]) * load(x[i]); }) / count;
      const C rstd = C(1) / std::sqrt(square + eps);
      for (std::int64_t i = 0; i < a.D; ++i) y[i] = T(load(x[i]) * rstd * load(w[i]));
      if (a.rstd_R != nullptr) static_cast<C*>(a.rstd_R)[r] = rstd;
    }
  });
}

// With xhat = (x - mean) rstd and g = dy w: dx = rstd (g - mean(g) - xhat mean(g xhat)), dw = sum_r dy xhat, db = sum_r
// dy. RMS norm is the case without a mean: dx = rstd (g - xhat mean(g xhat)).
template <class T, bool kCentred>
void norm_backward_row(const T* dy, const T* x, const T* w, T* dx, const T* dx_add, compute_t<T> mean,
                       compute_t<T> rstd, std::int64_t D, compute_t<T>* dw, compute_t<T>* db) {
  using C = compute_t<T>;
  for (std::int64_t i = 0; i < D; ++i) dw[i] += load(dy[i]) * ((load(x[i]) - mean) * rstd);
  if constexpr (kCentred) {
    for (std::int64_t i = 0; i < D; ++i) db[i] += load(dy[i]);
  }
  if (dx == nullptr) return;
  const C count = static_cast<C>(D);
  C mean_g = 0;
  if constexpr (kCentred) mean_g = lane_sum<C>(D, [dy, w](std::int64_t i) { return load(dy[i]) * load(w[i]); }) / count;
  const C mean_gx =
      lane_sum<C>(D, [dy, w, x, mean,
                      rstd](std::int64_t i) { return load(dy[i]) * load(w[i]) * ((load(x[i]) - mean) * rstd); }) /
      count;
  const auto slope = [=](std::int64_t i) {
    return rstd * (load(dy[i]) * load(w[i]) - mean_g - (load(x[i]) - mean) * rstd * mean_gx);
  };
  // dx may be dy or dx_add: sums that need the old dy are done, and an index reads before it writes
  if (dx_add != nullptr) {
#pragma GCC ivdep
    for (std::int64_t i = 0; i < D; ++i) dx[i] = T(slope(i) + load(dx_add[i]));
  } else {
#pragma GCC ivdep
    for (std::int64_t i = 0; i < D; ++i) dx[i] = T(slope(i));
  }
}

// Args of the two families differ in the mean and in db.
template <class T, bool kCentred, class Args>
void norm_backward(const Args& a, const void* mean_R, void* db_D) {
  using C = compute_t<T>;
  const std::int64_t D = a.D, width = kCentred ? 2 * D : D;
  const auto sums = sum_over_blocks<C>(a.R, width, [&](std::int64_t first, std::int64_t last, C* partial) {
    for (std::int64_t r = first; r < last; ++r) {
      const C mean = mean_R == nullptr ? C(0) : static_cast<const C*>(mean_R)[r];
      T* dx = a.dx_RD == nullptr ? nullptr : static_cast<T*>(a.dx_RD) + r * D;
      const T* dx_add = a.dx_add_RD == nullptr ? nullptr : static_cast<const T*>(a.dx_add_RD) + r * D;
      norm_backward_row<T, kCentred>(static_cast<const T*>(a.dy_RD) + r * D, static_cast<const T*>(a.x_RD) + r * D,
                                     static_cast<const T*>(a.w_D), dx, dx_add, mean, static_cast<const C*>(a.rstd_R)[r],
                                     D, partial, partial + D);
    }
  });
  store_sums<C>(sums.data(), D, a.dw_D, a.accumulate);
  if constexpr (kCentred) store_sums<C>(sums.data() + D, D, db_D, a.accumulate);
}

}  // namespace

void run(const LayerNormArgs& args) {
  dispatch_float(args.dtype, "layer norm", [&]<class T>() { layer_norm<T>(args); });
}
void run(const LayerNormBackwardArgs& args) {
  dispatch_float(args.dtype, "layer norm", [&]<class T>() { norm_backward<T, true>(args, args.mean_R, args.db_D); });
}
void run(const RmsNormArgs& args) {
  dispatch_float(args.dtype, "rms norm", [&]<class T>() { rms_norm<T>(args); });
}
void run(const RmsNormBackwardArgs& args) {
  dispatch_float(args.dtype, "rms norm", [&]<class T>() { norm_backward<T, false>(args, nullptr, nullptr); });
}

}  // namespace sieve::cpu
