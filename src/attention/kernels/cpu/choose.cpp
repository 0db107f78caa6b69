// Tile by tile: 64 queries against 64 candidates at a time, one heap of the best per query. A logit is one sum over the
// features in their order, wherever its query and its key stand, so that generation chooses as training does.
#include "attention/kernels/choose.h"

#include <algorithm>
#include <array>
#include <limits>
#include <vector>

#include "attention/kernels/cpu/documents.h"
#include "attention/kernels/cpu/multiply.h"
#include "attention/kernels/pattern.h"
#include "attention/kernels/top_k_heap.h"
#include "core/parallel_for.h"

namespace sieve::cpu {
namespace {

constexpr std::int64_t kQueries = 64, kCandidates = 64;

// What the queries of a row choose from: the candidates [begin, end) of each position, a list of the position starting
// to count at `begin`. Keys: candidates are positions. Blocks: whole blocks of the row's documents, in their order.
struct RowCandidates {
  std::vector<std::int64_t> begin, end;    // (T)
  std::vector<std::int64_t> block_starts;  // first position of each block
};

RowCandidates candidates_of_row(const ChooseArgs& a, std::int64_t b) {
  RowCandidates row;
  for_each_document(a.document_starts_BT, b, a.T, [&](std::int64_t first, std::int64_t last) {
    const auto blocks = static_cast<std::int64_t>(row.block_starts.size());
    for (std::int64_t i = first; i < last; ++i) {
      row.begin.push_back(a.block == 0 ? first : blocks);
      row.end.push_back(a.block == 0 ? i + 1 : blocks + (i - first) / a.block);
    }
    for (std::int64_t s = first; a.block > 0 && s + a.block <= last; s += a.block) row.block_starts.push_back(s);
  });
  return row;
}

// (blocks, D): the sum of each block's keys in fp64, in their order, divided once.
template <class Real>
std::vector<Real> block_means(const ChooseArgs& a, const RowCandidates& row, const Real* keys) {
  std::vector<Real> means;
  std::vector<double> sum(static_cast<std::size_t>(a.D));
  for (const std::int64_t start : row.block_starts) {
    std::fill(sum.begin(), sum.end(), 0.0);
    for (std::int64_t x = start * a.D; x < (start + a.block) * a.D; ++x)
      sum[static_cast<std::size_t>(x % a.D)] += static_cast<double>(keys[x]);
    for (const double s : sum) means.push_back(static_cast<Real>(s / static_cast<double>(a.block)));
  }
  return means;
}

template <class Real>
class Chooser {
 public:
  explicit Chooser(const ChooseArgs& a) : a_(a), lists_(a.weights_BHN == nullptr ? a.H : 1) {
    for (std::int64_t b = 0; b < a.B; ++b) rows_.push_back(candidates_of_row(a, b));
    if (a.block == 0) return;
    means_.resize(static_cast<std::size_t>(a.B * a.Hk));
    parallel_for(a.B * a.Hk, 1, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t x = first; x < last; ++x)
        means_[at(x)] = block_means(a, rows_[at(x / a.Hk)], static_cast<const Real*>(a.k_BHTD) + x * a.k_stride);
    });
  }

  void run() const {
    const std::int64_t tiles = (a_.N + kQueries - 1) / kQueries;
    parallel_for(a_.B * lists_ * tiles, 1, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t x = first; x < last; ++x) tile(x / tiles / lists_, x / tiles % lists_, x % tiles * kQueries);
    });
  }

 private:
  static std::size_t at(std::int64_t x) { return static_cast<std::size_t>(x); }
  const Real* candidates(std::int64_t b, std::int64_t h) const {
    const std::int64_t head = b * a_.Hk + h / (a_.H / a_.Hk);
    return a_.block > 0 ? means_[at(head)].data() : static_cast<const Real*>(a_.k_BHTD) + head * a_.k_stride;
  }

  // Logits (count, kQueries) of head h into `out`, which has room for kCandidates rows.
  void score(std::int64_t b, std::int64_t h, const Real* columns, std::int64_t first, std::int64_t count,
             Real* out) const {
    multiply<Real, Layout::plain, Store::assign>(count, kQueries, a_.D, candidates(b, h) + first * a_.D, a_.D, columns,
                                                 kQueries, out, kQueries);
  }
  // All heads together, weighted.
  void score_together(std::int64_t b, std::int64_t n0, std::int64_t n, const Real* columns, std::int64_t first,
                      std::int64_t count, Real* head, Real* out) const {
    std::fill(out, out + count * kQueries, Real(0));
    for (std::int64_t h = 0; h < a_.H; ++h) {
      score(b, h, columns + h * a_.D * kQueries, first, count, head);
      const Real* weights = static_cast<const Real*>(a_.weights_BHN) + (b * a_.H + h) * a_.N + n0;
      for (std::int64_t c = 0; c < count; ++c) {
        for (std::int64_t q = 0; q < n; ++q) {
          const Real x = head[c * kQueries + q];
          out[c * kQueries + q] += weights[q] * (x < 0 ? Real(0) : x);  // NaN stays
        }
      }
    }
  }

  // Queries of one head as columns (D, kQueries); those beyond n are 0.
  void load_columns(std::int64_t b, std::int64_t h, std::int64_t n0, std::int64_t n, Real* columns) const {
    const Real* q = static_cast<const Real*>(a_.q_BHND) + ((b * a_.H + h) * a_.N + n0) * a_.D;
    for (std::int64_t d = 0; d < a_.D; ++d) {
      for (std::int64_t x = 0; x < kQueries; ++x) columns[d * kQueries + x] = x < n ? q[x * a_.D + d] : Real(0);
    }
  }

  void tile(std::int64_t b, std::int64_t list, std::int64_t n0) const {
    const bool together = a_.weights_BHN != nullptr;
    const std::int64_t n = std::min(kQueries, a_.N - n0), i0 = a_.T - a_.N + n0, heads = together ? a_.H : 1;
    std::vector<Real> columns(at(heads * a_.D * kQueries)), head(at(together ? kCandidates * kQueries : 0)),
        logits(at(kCandidates * kQueries));
    for (std::int64_t h = 0; h < heads; ++h)
      load_columns(b, together ? h : list, n0, n, columns.data() + h * a_.D * kQueries);
    // A query's own block needs no logit: it has a place of its own.
    const std::int64_t places = a_.block > 0 ? a_.size - 1 : a_.size;
    std::vector<TopKHeap> best(at(n), TopKHeap(places));
    const RowCandidates& row = rows_[at(b)];
    const std::int64_t last = places > 0 ? row.end[at(i0 + n - 1)] : 0;
    for (std::int64_t first = row.begin[at(i0)]; first < last; first += kCandidates) {
      const std::int64_t count = std::min(kCandidates, last - first);
      if (together) score_together(b, n0, n, columns.data(), first, count, head.data(), logits.data());
      else score(b, list, columns.data(), first, count, logits.data());
      for (std::int64_t q = 0; q < n; ++q) offer(best[at(q)], row, i0 + q, first, count, logits.data() + q);
    }
    for (std::int64_t q = 0; q < n; ++q)
      write(best[at(q)], row, i0 + q, a_.choice_BHNM + ((b * lists_ + list) * a_.N + n0 + q) * a_.size);
  }

  void offer(TopKHeap& best, const RowCandidates& row, std::int64_t i, std::int64_t first, std::int64_t count,
             const Real* logits) const {
    const std::int64_t begin = std::max(first, row.begin[at(i)]), end = std::min(first + count, row.end[at(i)]);
    for (std::int64_t c = begin; c < end; ++c) {
      const auto logit = static_cast<double>(logits[(c - first) * kQueries]);
      best.offer(logit == logit ? logit : std::numeric_limits<double>::infinity(), c);
    }
  }

  void write(const TopKHeap& best, const RowCandidates& row, std::int64_t i, std::int32_t* out) const {
    const std::int64_t zero = a_.block > 0 ? row.begin[at(i)] : 0;
    std::int64_t n = 0;
    for (; n < best.size(); ++n) out[n] = static_cast<std::int32_t>(best.at_slot(n).key - zero);
    std::sort(out, out + n);
    if (a_.block > 0) out[n++] = static_cast<std::int32_t>(row.end[at(i)] - zero);
    std::fill(out + n, out + a_.size, kNoChoice);
  }

  const ChooseArgs& a_;
  std::int64_t lists_;
  std::vector<RowCandidates> rows_;       // (B)
  std::vector<std::vector<Real>> means_;  // (B, Hk)
};

double exact(double x) { return x; }
double exact(float x) { return static_cast<double>(x); }
double exact(bf16 x) { return static_cast<double>(static_cast<float>(x)); }

template <class T>
std::int32_t bucket_of(const T* x, const double* directions, std::int64_t R, std::int64_t D) {
  double most = -std::numeric_limits<double>::infinity();
  std::int64_t bucket = 0;
  std::vector<double> along(static_cast<std::size_t>(R));
  for (std::int64_t r = 0; r < R; ++r) {
    double sum = 0;
    for (std::int64_t d = 0; d < D; ++d) sum += exact(x[d]) * directions[r * D + d];
    along[static_cast<std::size_t>(r)] = sum;
  }
  for (std::int64_t r = 0; r < 2 * R; ++r) {
    const double value = r < R ? along[static_cast<std::size_t>(r)] : -along[static_cast<std::size_t>(r - R)];
    if (value > most) most = value, bucket = r;
  }
  return static_cast<std::int32_t>(bucket);
}

template <class T>
void hash(const HashArgs& a) {
  parallel_for(a.B * a.H * a.T, 256, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t x = first; x < last; ++x) {
      const std::int64_t t = x % a.T, h = x / a.T % a.H, b = x / a.T / a.H;
      a.bucket_BHT[x] = bucket_of(static_cast<const T*>(a.x_BTF) + (b * a.T + t) * a.F + h * a.D,
                                  a.directions_HRD + h * a.R * a.D, a.R, a.D);
    }
  });
}

}  // namespace

void run(const ChooseArgs& a) {
  if (a.B * a.N * a.size == 0) return;
  if (a.dtype == DType::f64) Chooser<double>(a).run();
  else Chooser<float>(a).run();
}

void run(const HashArgs& a) {
  if (a.dtype == DType::f64) hash<double>(a);
  else if (a.dtype == DType::bf16) hash<bf16>(a);
  else hash<float>(a);
}

}  // namespace sieve::cpu
