// Selection on the CPU: rows (batch, score head) in parallel, documents of a row one after the other.
//   members   a heap of k, O(log k) a key that enters
//   tau       the tile-wise two-pointer walk over the pool; two heaps where the pool is the whole prefix (its size has
//   no bound then) band      two searches per key in the monotone tau; |F_i| counts the resulting intervals, so that
//   both agree to the last key
#include "attention/kernels/select.h"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "attention/kernels/cpu/documents.h"
#include "attention/kernels/incremental_sparsek.h"
#include "attention/kernels/threshold_walk.h"
#include "attention/kernels/top_k_heap.h"
#include "core/error.h"
#include "core/parallel_for.h"

namespace sieve::cpu {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr std::int64_t kTile =
    64;  // scores merged at a time: the list is copied once a tile, a cursor skips at most a tile

// One row: the offsets of its arrays and scratch for its longest document.
struct Row {
  const SelectArgs& a;
  std::int64_t offset;  // of the row in (B, H, T) arrays
  std::vector<double> u;
  std::vector<std::int32_t> left_pool;
  TopKHeap members;

  Row(const SelectArgs& args, std::int64_t row)
      : a(args), offset(row * args.T), u(static_cast<std::size_t>(args.T)), members(args.k) {}

  void document(std::int64_t begin, std::int64_t end);
  template <class Score>
  std::int64_t order(std::int64_t begin, std::int64_t end);
  void select_members(std::int64_t begin, std::int64_t end, std::int64_t candidates);
  void find_thresholds(std::int64_t begin, std::int64_t end, std::int64_t candidates);
  void find_bands(std::int64_t begin, std::int64_t end, std::int64_t candidates);
};

// u and z of the document's keys; counts NaN.
template <class Score>
std::int64_t Row::order(std::int64_t begin, std::int64_t end) {
  const auto* scores = static_cast<const Score*>(a.scores_BHT) + offset;
  std::int64_t nan = 0;
  for (std::int64_t j = begin; j < end; ++j) {
    const double s = static_cast<double>(scores[j]);
    nan += s != s;
    u[static_cast<std::size_t>(j)] = order_score(s, a.slope, j - begin);
  }
  if (a.thresholds) {
    for (std::int64_t j = begin; j < end; ++j) {
      a.z_BHT[offset + j] = operator_score(u[static_cast<std::size_t>(j)], a.temperature);
    }
  }
  return nan;
}

void Row::select_members(std::int64_t begin, std::int64_t end, std::int64_t candidates) {
  std::int32_t* from = a.from_BHT + offset;
  std::int32_t* to = a.to_BHT + offset;
  members.clear();
  for (std::int64_t j = begin; j < begin + candidates; ++j) {
    const auto birth = static_cast<std::int32_t>(j + a.delay);
    const auto [slot, evicted] = members.offer(u[static_cast<std::size_t>(j)], j);
    from[j] = birth;
    to[j] = slot < 0 ? birth : static_cast<std::int32_t>(end);
    if (evicted >= 0) to[evicted] = birth;
  }
  for (std::int64_t j = begin + candidates; j < end; ++j) from[j] = to[j] = static_cast<std::int32_t>(end);
}

// tau of the prefix that ends with candidate c is written where query c + delay reads it.
void Row::find_thresholds(std::int64_t begin, std::int64_t end, std::int64_t candidates) {
  const double* z = a.z_BHT + offset + begin;
  double* tau = a.tau_BHT + offset + (end - candidates);
  const std::int64_t free = std::min(candidates, a.k);  // prefixes of at most k candidates select everything
  std::fill(a.tau_BHT + offset + begin, tau, -kInfinity);
  const std::int64_t pool = pool_scores(a.pool, a.k);
  left_pool.assign(static_cast<std::size_t>(candidates), std::numeric_limits<std::int32_t>::max());
  if (candidates <= a.k) {
    // nothing to find
  } else if (pool == 0) {
    IncrementalSparseK exact(a.k);
    for (std::int64_t c = 0; c < candidates; ++c) {
      exact.add(z[c]);
      tau[c] = exact.tau();
    }
  } else {
    ThresholdWalk walk(a.k, pool);
    for (std::int64_t c = 0; c < candidates; c += kTile) {
      walk.tile(u.data() + begin + c, z + c, std::min(kTile, candidates - c), c, tau + c, left_pool.data());
    }
  }
  std::fill(tau, tau + free, -kInfinity);
}

// First index in [begin, end) for which pred holds; pred is false, then true. Doubling steps: most keys live shortly.
template <class Pred>
std::int64_t first_where(std::int64_t begin, std::int64_t end, Pred pred) {
  std::int64_t step = 1;
  while (begin + step <= end && !pred(begin + step - 1)) {
    begin += step;
    step *= 2;
  }
  std::int64_t last = std::min(end, begin + step);
  while (begin < last) {
    const std::int64_t middle = begin + (last - begin) / 2;
    if (pred(middle)) last = middle;
    else begin = middle + 1;
  }
  return begin;
}

void Row::find_bands(std::int64_t begin, std::int64_t end, std::int64_t candidates) {
  const double* z = a.z_BHT + offset;
  const double* tau = a.tau_BHT + offset;
  std::int32_t* band = a.band_BHT + offset;
  std::int32_t* from = a.band_from_BHT + offset;
  std::int32_t* to = a.band_to_BHT + offset;
  std::fill(band + begin, band + end, 0);
  for (std::int64_t j = begin; j < begin + candidates; ++j) {
    const std::int64_t birth = j + a.delay;
    const std::int64_t left = left_pool[static_cast<std::size_t>(j - begin)];
    const std::int64_t stop = std::min(end, left + begin + a.delay);
    const auto [low, high] = band_of_score(z[j]);
    const std::int64_t first = first_where(birth, stop, [&, low = low](std::int64_t i) { return low < tau[i]; });
    const std::int64_t last = first_where(first, stop, [&, high = high](std::int64_t i) { return high <= tau[i]; });
    from[j] = static_cast<std::int32_t>(first);
    to[j] = static_cast<std::int32_t>(last);
    if (first == last) continue;
    ++band[first];
    if (last < end) --band[last];
  }
  for (std::int64_t j = begin + candidates; j < end; ++j) from[j] = to[j] = static_cast<std::int32_t>(end);
  for (std::int64_t i = begin + 1; i < end; ++i) band[i] += band[i - 1];
}

void Row::document(std::int64_t begin, std::int64_t end) {
  const std::int64_t candidates = std::max<std::int64_t>(0, end - begin - std::min(a.delay, end - begin));
  select_members(begin, end, candidates);
  if (!a.thresholds) return;
  find_thresholds(begin, end, candidates);
  find_bands(begin, end, candidates);
}

void check(const SelectArgs& a) {
  require(a.dtype == DType::f32 || a.dtype == DType::f64, "sparsek", "scores want f32 or f64, got ", name_of(a.dtype));
  require(a.B >= 0 && a.H >= 0 && a.T >= 0 && a.T < std::numeric_limits<std::int32_t>::max(), "sparsek", "shape (", a.B,
          ", ", a.H, ", ", a.T, ") out of range");
  require(a.k >= 1 && a.pool >= 0 && a.delay >= 0, "sparsek", "wants k >= 1, pool >= 0 and delay >= 0, got ", a.k, ", ",
          a.pool, ", ", a.delay);
  require(a.temperature > 0 && std::isfinite(a.temperature) && std::isfinite(a.slope), "sparsek",
          "wants a finite slope and a finite temperature > 0, got ", a.slope, " and ", a.temperature);
}

}  // namespace

void select(const SelectArgs& a) {
  check(a);
  std::vector<std::int64_t> nan(static_cast<std::size_t>(a.B * a.H), 0);
  parallel_for(a.B * a.H, 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t r = first; r < last; ++r) {
      Row row(a, r);
      for_each_document(a.document_starts_BT, r / a.H, a.T, [&](std::int64_t begin, std::int64_t end) {
        nan[static_cast<std::size_t>(r)] +=
            a.dtype == DType::f32 ? row.order<float>(begin, end) : row.order<double>(begin, end);
        row.document(begin, end);
      });
    }
  });
  if (a.nan_count == nullptr) return;
  *a.nan_count = 0;
  for (std::int64_t n : nan) *a.nan_count += n;
}

}  // namespace sieve::cpu
