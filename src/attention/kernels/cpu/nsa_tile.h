// What forward and backward of the attention over compressed keys share: which compressed keys every query sees, and
// the probabilities of a tile of queries, which lie in vector lanes. Letters as in kernels/nsa.h.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "attention/kernels/cpu/documents.h"
#include "attention/kernels/cpu/multiply.h"
#include "attention/kernels/cpu/rows.h"
#include "attention/kernels/nsa.h"

namespace sieve::cpu {

inline constexpr std::int64_t kNsaQueries = kTile;  // of a tile

inline std::size_t at(std::int64_t x) { return static_cast<std::size_t>(x); }

// Row b's compressed keys: the first position that each stands for.
inline std::vector<std::vector<std::int64_t>> first_positions(const CompressedGrid& grid) {
  std::vector<std::vector<std::int64_t>> out(at(grid.B));
  for (std::int64_t b = 0; b < grid.B; ++b) {
    for_each_document(grid.document_starts_BT, b, grid.T, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t m = 0; m < compressed_count(end - begin, grid.l, grid.s); ++m)
        out[at(b)].push_back(begin + m * grid.s);
    });
  }
  return out;
}

// What the queries of a row see: the compressed keys [begin, end) of the row; `position` in their document.
struct SeenCompressed {
  std::vector<std::int64_t> begin, end, position;  // (N)
};

inline SeenCompressed seen_compressed(const CompressedAttentionArgs& a, std::int64_t b) {
  SeenCompressed seen;
  std::int64_t passed = 0;  // compressed keys of earlier documents
  for_each_document(a.grid.document_starts_BT, b, a.grid.T, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = std::max(first, a.grid.T - a.N); i < last; ++i) {
      seen.begin.push_back(passed);
      seen.end.push_back(passed + compressed_count(i + 1 - first, a.grid.l, a.grid.s));
      seen.position.push_back(i - first);
    }
    passed += compressed_count(last - first, a.grid.l, a.grid.s);
  });
  return seen;
}

// The queries [n0, n0 + n) of a row and the compressed keys [low, high) that some of them sees.
template <class Real>
class NsaTile {
 public:
  NsaTile(const CompressedAttentionArgs& args, const SeenCompressed& seen, std::int64_t row, std::int64_t first)
      : a(args), b(row), n0(first), n(std::min(kNsaQueries, args.N - first)) {
    for (std::int64_t x = 0; x < kNsaQueries; ++x) {  // lanes without a query see nothing
      begin_[x] = x < n ? static_cast<Lane<Real>>(seen.begin[at(n0 + x)]) : 0;
      end_[x] = x < n ? static_cast<Lane<Real>>(seen.end[at(n0 + x)]) : 0;
    }
    low = seen.begin[at(n0)], high = std::max(low, seen.end[at(n0 + n - 1)]);
    columns.resize(at(a.D * kNsaQueries));
    row_.resize(at(a.D));
  }

  std::int64_t keys() const { return high - low; }
  const Real* compressed(const void* x, std::int64_t kv) const {
    return static_cast<const Real*>(x) + ((b * a.Hkv + kv) * a.grid.M() + low) * a.D;
  }
  std::int64_t head_at(std::int64_t x, std::int64_t h) const { return ((b * a.N + n0 + x) * a.H + h) * a.D; }

  // Head h of a (B, N, H D) array of the queries' dtype to columns (D, kNsaQueries), times factor; other lanes are 0.
  void load_columns(const void* x, std::int64_t h, Real factor) {
    std::fill(columns.begin(), columns.end(), Real(0));
    for (std::int64_t l = 0; l < n; ++l) {
      convert_row(static_cast<const char*>(x) + head_at(l, h) * static_cast<std::int64_t>(size_of(a.dtype)), a.dtype,
                  a.D, row_.data());
      for (std::int64_t d = 0; d < a.D; ++d) columns[at(d * kNsaQueries + l)] = row_[at(d)] * factor;
    }
  }
  // columns (D, kNsaQueries) to head h of such an array.
  void store_columns(const Real* from, void* x, std::int64_t h) {
    for (std::int64_t l = 0; l < n; ++l) {
      for (std::int64_t d = 0; d < a.D; ++d) row_[at(d)] = from[d * kNsaQueries + l];
      store_row(row_.data(), a.D, static_cast<char*>(x) + head_at(l, h) * static_cast<std::int64_t>(size_of(a.dtype)),
                a.dtype);
    }
  }

  // p (keys, kNsaQueries): the probabilities of query head h, 0 for pairs that do not see each other. A sum over the
  // keys of a query runs in their order and adds zeros elsewhere, so that it does not depend on the tile.
  void probabilities(std::int64_t h, Real* p) {
    constexpr Real kLog2E = Real(1.44269504088896340736);
    load_columns(a.q_BNF, h, static_cast<Real>(a.scale) * kLog2E);
    multiply<Real, Layout::plain, Store::assign>(keys(), kNsaQueries, a.D, compressed(a.k_BHMD, h / (a.H / a.Hkv)), a.D,
                                                 columns.data(), kNsaQueries, p, kNsaQueries);
    constexpr Real kNone = -std::numeric_limits<Real>::infinity();
    for (std::int64_t x = 0; x < kNsaQueries; x += kLanes<Real>) {
      const IVec<Real> begin = load_lanes<Real>(begin_ + x), end = load_lanes<Real>(end_ + x);
      Vec<Real> top = splat<Real>(kNone), sum{};
      for (std::int64_t r = 0; r < keys(); ++r) {
        const IVec<Real> m = IVec<Real>{} + static_cast<Lane<Real>>(low + r);
        const Vec<Real> seen = (begin <= m) & (m < end) ? load(p + r * kNsaQueries + x) : splat<Real>(kNone);
        store(p + r * kNsaQueries + x, seen);
        top = cpu::max(seen, top);
      }
      top = top == kNone ? Vec<Real>{} : top;
      for (std::int64_t r = 0; r < keys(); ++r) {
        const Vec<Real> e = exp2_vec<Real>(load(p + r * kNsaQueries + x) - top);
        store(p + r * kNsaQueries + x, e);
        sum += e;
      }
      const Vec<Real> share = sum == Vec<Real>{} ? Vec<Real>{} : Vec<Real>(Real(1) / sum);
      for (std::int64_t r = 0; r < keys(); ++r)
        store(p + r * kNsaQueries + x, Vec<Real>(load(p + r * kNsaQueries + x) * share));
    }
  }

  const CompressedAttentionArgs& a;
  std::int64_t b, n0, n, low = 0, high = 0;
  std::vector<Real> columns;

 private:
  std::vector<Real> row_;
  Lane<Real> begin_[kNsaQueries], end_[kNsaQueries];
};

}  // namespace sieve::cpu
