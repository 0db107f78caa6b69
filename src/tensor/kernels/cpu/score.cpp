// Scores of the SparseK scoring network. B batch, T time, C channels, H score heads (per KV head, or one).
#include <algorithm>
#include <vector>

#include "core/parallel_for.h"
#include "tensor/kernels/cpu/vec.h"
#include "tensor/kernels/kernels.h"

namespace sieve::cpu {
namespace {

constexpr std::int64_t kRowBlock = 64;

// Out of line, so that every caller, whatever its batch, runs the very same instructions on a row.
template <class T>
[[gnu::noinline]] compute_t<T> dot(const T* x, const compute_t<T>* w, std::int64_t C) {
  return lane_sum<compute_t<T>>(C, [x, w](std::int64_t i) { return load(x[i]) * w[i]; });
}

template <class T>
void backward_rows(const ScoreBackwardArgs& a, std::int64_t first, std::int64_t last, compute_t<T>* dw) {
  using S = compute_t<T>;
  std::vector<S> sum(static_cast<std::size_t>(a.C));
  for (std::int64_t row = first; row < last; ++row) {
    const S* ds = static_cast<const S*>(a.ds_BHT) + row / a.T * a.H * a.T + row % a.T;  // head h: ds[h * T]
    const T* x = static_cast<const T*>(a.x_BTC) + row * a.C;
    std::fill(sum.begin(), sum.end(), S(0));
    for (std::int64_t h = 0; h < a.H; ++h) {
      const S g = ds[h * a.T];
      const S* w = static_cast<const S*>(a.w_HC) + h * a.C;
      S* to = dw + h * a.C;
      S* acc = sum.data();
      for (std::int64_t c = 0; c < a.C; ++c) acc[c] += g * w[c];
      for (std::int64_t c = 0; c < a.C; ++c) to[c] += g * load(x[c]);
    }
    if (a.dx_BTC == nullptr) continue;
    T* dx = static_cast<T*>(a.dx_BTC) + row * a.C;
    for (std::int64_t c = 0; c < a.C; ++c) dx[c] = T(sum[static_cast<std::size_t>(c)]);
  }
}

}  // namespace

void run(const ScoreArgs& a) {
  dispatch_float(a.dtype, "score", [&]<class T>() {
    parallel_for(a.B * a.T, row_grain(a.C * a.H), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        for (std::int64_t h = 0; h < a.H; ++h) {
          static_cast<compute_t<T>*>(a.s_BHT)[(row / a.T * a.H + h) * a.T + row % a.T] =
              dot(static_cast<const T*>(a.x_BTC) + row * a.C, static_cast<const compute_t<T>*>(a.w_HC) + h * a.C, a.C);
        }
      }
    });
  });
}

void run(const ScoreBackwardArgs& a) {
  dispatch_float(a.dtype, "score", [&]<class T>() {
    using S = compute_t<T>;
    const std::int64_t rows = a.B * a.T, step = std::max(kRowBlock, (rows + 127) / 128),
                       blocks = (rows + step - 1) / step;
    const std::int64_t width = a.H * a.C;
    std::vector<S> partial(static_cast<std::size_t>(blocks * width));
    parallel_for(blocks, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t block = begin; block < end; ++block)
        backward_rows<T>(a, block * step, std::min(rows, (block + 1) * step), partial.data() + block * width);
    });
    if (a.dw_HC == nullptr) return;
    S* dw = static_cast<S*>(a.dw_HC);
    parallel_for(width, row_grain(blocks), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        double total = a.accumulate ? static_cast<double>(dw[i]) : 0.0;
        for (std::int64_t block = 0; block < blocks; ++block)
          total += static_cast<double>(partial[static_cast<std::size_t>(block * width + i)]);
        dw[i] = static_cast<S>(total);
      }
    });
  });
}

}  // namespace sieve::cpu
