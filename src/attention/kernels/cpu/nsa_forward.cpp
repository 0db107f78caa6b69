// Attention over compressed keys and the choice of blocks that its probabilities make. Letters as in kernels/nsa.h.
#include <vector>

#include "attention/kernels/cpu/nsa_tile.h"
#include "attention/kernels/pattern.h"
#include "attention/kernels/top_k_heap.h"
#include "core/parallel_for.h"

namespace sieve::cpu {
namespace {

// How much each block of the document matters to a query: its probabilities p[0, count), stride elements apart, those
// of the document's compressed keys 0, 1, ..
template <class Real>
void importances(const CompressedAttentionArgs& a, const Real* p, std::int64_t stride, std::int64_t count,
                 std::vector<double>& out) {
  std::fill(out.begin(), out.end(), 0.0);
  const std::int64_t stretches = a.block / a.grid.s;
  for (std::int64_t m = 0; m < count; ++m) {
    const auto x = static_cast<double>(p[m * stride]);
    for (std::int64_t piece = m; piece < m + a.grid.l / a.grid.s; ++piece) out[at(piece / stretches)] += x;
  }
}

// The list of a query at `position` of its document.
void write_choice(const CompressedAttentionArgs& a, std::int64_t position, const std::vector<double>& importance,
                  std::int32_t* out) {
  const std::int64_t own = position / a.block;
  std::int64_t n = 0;
  const auto take = [&](std::int64_t block) { out[n++] = static_cast<std::int32_t>(block); };
  take(own);
  if (a.blocks >= 2 && own >= 1) take(own - 1);
  if (a.blocks >= 3 && own >= 2) take(0);
  if (a.blocks >= 4) {
    TopKHeap best(a.blocks - 3);
    for (std::int64_t block = 1; block < own - 1; ++block) {
      const double x = importance[at(block)];
      best.offer(x == x ? x : std::numeric_limits<double>::infinity(), block);
    }
    for (std::int64_t slot = 0; slot < best.size(); ++slot) take(best.at_slot(slot).key);
  }
  std::sort(out, out + n);
  std::fill(out + n, out + a.blocks, kNoChoice);
}

template <class Real>
void choose_blocks(const NsaTile<Real>& tile, const SeenCompressed& seen, std::int64_t kv, const Real* group) {
  const CompressedAttentionArgs& a = tile.a;
  std::vector<double> importance;
  for (std::int64_t x = 0; x < tile.n; ++x) {
    const std::int64_t i = tile.n0 + x, begin = seen.begin[at(i)], position = seen.position[at(i)];
    importance.resize(at(position / a.block + 1));
    if (a.blocks >= 4)
      importances(a, group + (begin - tile.low) * kNsaQueries + x, kNsaQueries, seen.end[at(i)] - begin, importance);
    write_choice(a, position, importance, a.choice_BHNC + ((tile.b * a.Hkv + kv) * a.N + i) * a.blocks);
  }
}

template <class Real>
void forward(const CompressedAttentionArgs& a) {
  const std::int64_t tiles = (a.N + kNsaQueries - 1) / kNsaQueries, G = a.H / a.Hkv;
  std::vector<SeenCompressed> seen;
  for (std::int64_t b = 0; b < a.grid.B; ++b) seen.push_back(seen_compressed(a, b));
  parallel_for(a.grid.B * a.Hkv * tiles, 1, [&](std::int64_t first, std::int64_t last) {
    std::vector<Real> p, group, out(at(a.D * kNsaQueries));
    for (std::int64_t x = first; x < last; ++x) {
      const std::int64_t b = x / tiles / a.Hkv, kv = x / tiles % a.Hkv;
      NsaTile<Real> tile(a, seen[at(b)], b, x % tiles * kNsaQueries);
      p.resize(at(tile.keys() * kNsaQueries));
      group.assign(p.size(), Real(0));
      for (std::int64_t h = kv * G; h < (kv + 1) * G; ++h) {
        tile.probabilities(h, p.data());
        multiply<Real, Layout::transposed, Store::assign>(a.D, kNsaQueries, tile.keys(), tile.compressed(a.v_BHMD, kv),
                                                          a.D, p.data(), kNsaQueries, out.data(), kNsaQueries);
        tile.store_columns(out.data(), a.out_BNF, h);
        for (std::size_t e = 0; e < p.size(); ++e) group[e] += p[e];
      }
      if (a.choice_BHNC != nullptr) choose_blocks(tile, seen[at(b)], kv, group.data());
    }
  });
}

}  // namespace

void run(const CompressedAttentionArgs& a) {
  if (a.dtype == DType::f64) forward<double>(a);
  else forward<float>(a);
}

}  // namespace sieve::cpu
