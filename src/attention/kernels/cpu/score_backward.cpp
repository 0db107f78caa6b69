// From gate gradients back to the scores through every prefix: two look-ups per key in a prefix sum (docs/attention.md,
// "The way back").
#include <algorithm>
#include <cstddef>
#include <limits>
#include <vector>

#include "attention/kernels/cpu/documents.h"
#include "attention/kernels/select.h"
#include "core/error.h"
#include "core/parallel_for.h"

namespace sieve::cpu {
namespace {

// G: prefix sums of gbar_i = row_i / |F_i| over one document, G[0] = 0.
template <class Score>
void score_backward_row(const SelectBackwardArgs& a, std::int64_t row) {
  const std::int64_t offset = row * a.T;
  std::vector<double> G(static_cast<std::size_t>(a.T) + 1);
  for_each_document(a.document_starts_BT, row / a.H, a.T, [&](std::int64_t begin, std::int64_t end) {
    G[0] = 0;
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int32_t band = a.band_BHT[offset + i];
      const double gbar = band > 0 ? a.row_BHT[offset + i] / band : 0;
      G[static_cast<std::size_t>(i - begin + 1)] = G[static_cast<std::size_t>(i - begin)] + gbar;
    }
    for (std::int64_t j = begin; j < end; ++j) {
      const std::int64_t from = a.band_from_BHT[offset + j] - begin, to = a.band_to_BHT[offset + j] - begin;
      const double du =
          from == to ? 0
                     : a.column_BHT[offset + j] - (G[static_cast<std::size_t>(to)] - G[static_cast<std::size_t>(from)]);
      static_cast<Score*>(a.dscores_BHT)[offset + j] = static_cast<Score>(du / a.temperature);
    }
  });
}

}  // namespace

void score_backward(const SelectBackwardArgs& a) {
  require(a.dtype == DType::f32 || a.dtype == DType::f64, "sparsek", "score gradients want f32 or f64, got ",
          name_of(a.dtype));
  parallel_for(a.B * a.H, 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t r = first; r < last; ++r) {
      if (a.dtype == DType::f32) score_backward_row<float>(a, r);
      else score_backward_row<double>(a, r);
    }
  });
}

void run(const PoisonArgs& a) {
  if (*a.nan_count == 0) return;
  dispatch_float(a.dtype, "sparsek", [&]<class T>() {
    std::fill_n(static_cast<T*>(a.out), a.n, static_cast<T>(std::numeric_limits<float>::quiet_NaN()));
  });
}

}  // namespace sieve::cpu
