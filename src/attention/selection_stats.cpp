#include <algorithm>
#include <cmath>
#include <vector>

#include "attention/attention.h"
#include "attention/kernels/select.h"
#include "attention/sparsek.h"
#include "core/parallel_for.h"

namespace sieve {
namespace {

struct Sums {
  double candidates = 0, selected = 0, lifetime = 0;  // keys
  double binding = 0, band = 0, saturated = 0;        // queries with a finite threshold, and what they see
};

// One document of one head; binding queries are its end, because tau only rises.
void add_document(const SelectArgs& a, std::int64_t offset, std::int64_t begin, std::int64_t end, Sums& sums) {
  const std::int64_t candidates = std::max<std::int64_t>(0, end - begin - a.delay);
  for (std::int64_t j = begin; j < begin + candidates; ++j) {
    const double life = a.to_BHT[offset + j] - a.from_BHT[offset + j];
    sums.lifetime += life;
    sums.selected += life > 0;
  }
  sums.candidates += static_cast<double>(candidates);
  if (!a.thresholds || candidates <= a.k) return;
  const std::int64_t binding = end - (candidates - a.k);
  sums.binding += static_cast<double>(end - binding);
  for (std::int64_t i = binding; i < end; ++i) sums.band += a.band_BHT[offset + i];
  for (std::int64_t j = begin; j < begin + candidates; ++j) {
    const std::int64_t first = std::max(j + a.delay, binding);
    sums.saturated += static_cast<double>(std::max<std::int64_t>(0, a.band_from_BHT[offset + j] - first));
  }
}

// Standard deviation of one head's finite scores, two passes.
template <class Score>
double deviation(const Score* s, std::int64_t n) {
  double sum = 0, count = 0, squares = 0;
  for (std::int64_t j = 0; j < n; ++j) {
    if (!std::isfinite(s[j])) continue;
    sum += static_cast<double>(s[j]);
    ++count;
  }
  if (count == 0) return 0;
  for (std::int64_t j = 0; j < n; ++j) {
    if (!std::isfinite(s[j])) continue;
    const double d = static_cast<double>(s[j]) - sum / count;
    squares += d * d;
  }
  return std::sqrt(squares / count);
}

struct RowStats {
  Sums sums;
  double deviation = 0;
};

RowStats row_stats(const SelectArgs& a, std::int64_t r) {
  RowStats row;
  const std::int64_t offset = r * a.T;
  const std::int32_t* starts = a.document_starts_BT == nullptr ? nullptr : a.document_starts_BT + r / a.H * a.T;
  for (std::int64_t begin = 0, end; begin < a.T; begin = end) {
    end = starts == nullptr ? a.T : std::upper_bound(starts + begin, starts + a.T, starts[begin]) - starts;
    add_document(a, offset, begin, end, row.sums);
  }
  row.deviation = a.dtype == DType::f32 ? deviation(static_cast<const float*>(a.scores_BHT) + offset, a.T)
                                        : deviation(static_cast<const double*>(a.scores_BHT) + offset, a.T);
  return row;
}

}  // namespace

SelectionStats selection_stats(const SelectArgs& a) {
  const std::int64_t rows = a.B * a.H;
  std::vector<RowStats> all(static_cast<std::size_t>(rows));
  parallel_for(rows, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) all[static_cast<std::size_t>(r)] = row_stats(a, r);
  });
  Sums sums;
  SelectionStats stats;
  for (const RowStats& row : all) {
    sums.candidates += row.sums.candidates, sums.selected += row.sums.selected, sums.lifetime += row.sums.lifetime;
    sums.binding += row.sums.binding, sums.band += row.sums.band, sums.saturated += row.sums.saturated;
    stats.score_std += row.deviation;
  }
  const auto over = [](double sum, double count) { return count > 0 ? sum / count : 0; };
  stats.score_std = over(stats.score_std, static_cast<double>(rows));
  stats.band_over_k = over(sums.band, sums.binding * static_cast<double>(a.k));
  stats.saturated_over_k = over(sums.saturated, sums.binding * static_cast<double>(a.k));
  stats.ever_selected = over(sums.selected, sums.candidates);
  stats.mean_lifetime = over(sums.lifetime, sums.selected);
  return stats;
}

}  // namespace sieve
