// The way back of the attention over compressed keys: probabilities once more, dQ of a tile on the spot, sums for dK
// and dV of each piece of the queries, added in their order: no atomics, no bit depends on the number of threads.
// Letters as in kernels/nsa.h.
#include <vector>

#include "attention/kernels/cpu/nsa_tile.h"
#include "core/parallel_for.h"

namespace sieve::cpu {
namespace {

constexpr std::int64_t kPieces = 8;

template <class Real>
class Backward {
 public:
  explicit Backward(const CompressedAttentionBackwardArgs& args)
      : b_(args), a_(args.forward), Dp_((a_.D + kLanes<Real> - 1) / kLanes<Real> * kLanes<Real>) {
    for (std::int64_t b = 0; b < a_.grid.B; ++b) seen_.push_back(seen_compressed(a_, b));
    const std::int64_t sums = a_.grid.B * a_.Hkv * kPieces * a_.grid.M() * Dp_;
    dk_.assign(at(sums), Real(0)), dv_.assign(at(sums), Real(0));
  }

  void run() {
    const std::int64_t tiles = (a_.N + kNsaQueries - 1) / kNsaQueries, length = (tiles + kPieces - 1) / kPieces;
    parallel_for(a_.grid.B * a_.Hkv * kPieces, 1, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t x = first; x < last; ++x) {
        const std::int64_t begin = x % kPieces * length, end = std::min(tiles, begin + length);
        for (std::int64_t t = begin; t < end; ++t) tile(x, t);
      }
    });
    add_pieces(dk_, b_.dk_BHMD), add_pieces(dv_, b_.dv_BHMD);
  }

 private:
  // Tile t, in piece `piece` of all.
  void tile(std::int64_t piece, std::int64_t t) {
    const std::int64_t b = piece / kPieces / a_.Hkv, kv = piece / kPieces % a_.Hkv, G = a_.H / a_.Hkv;
    NsaTile<Real> tile(a_, seen_[at(b)], b, t * kNsaQueries);
    const std::int64_t keys = tile.keys(), sums = (piece * a_.grid.M() + tile.low) * Dp_;
    std::vector<Real> p(at(keys * kNsaQueries)), dp(p.size()), dq(at(a_.D * kNsaQueries)), rows(at(kNsaQueries * Dp_));
    for (std::int64_t h = kv * G; h < (kv + 1) * G; ++h) {
      tile.probabilities(h, p.data());
      tile.load_columns(b_.dout_BNF, h, Real(1));
      multiply<Real, Layout::plain, Store::assign>(keys, kNsaQueries, a_.D, tile.compressed(a_.v_BHMD, kv), a_.D,
                                                   tile.columns.data(), kNsaQueries, dp.data(), kNsaQueries);
      to_rows(tile.columns, rows);
      multiply<Real, Layout::plain, Store::add>(keys, Dp_, kNsaQueries, p.data(), kNsaQueries, rows.data(), Dp_,
                                                dv_.data() + sums, Dp_);
      differentiate(keys, p.data(), dp.data());
      multiply<Real, Layout::transposed, Store::assign>(a_.D, kNsaQueries, keys, tile.compressed(a_.k_BHMD, kv), a_.D,
                                                        dp.data(), kNsaQueries, dq.data(), kNsaQueries);
      tile.store_columns(dq.data(), b_.dq_BNF, h);
      tile.load_columns(a_.q_BNF, h, Real(1));
      to_rows(tile.columns, rows);
      multiply<Real, Layout::plain, Store::add>(keys, Dp_, kNsaQueries, dp.data(), kNsaQueries, rows.data(), Dp_,
                                                dk_.data() + sums, Dp_);
    }
  }

  // dp -> the gradient of the products q . k: scale * p (dp - sum over keys of p dp).
  void differentiate(std::int64_t keys, const Real* p, Real* dp) const {
    for (std::int64_t x = 0; x < kNsaQueries; x += kLanes<Real>) {
      Vec<Real> mean{};
      for (std::int64_t e = x; e < keys * kNsaQueries; e += kNsaQueries) mean += load(p + e) * load(dp + e);
      for (std::int64_t e = x; e < keys * kNsaQueries; e += kNsaQueries)
        store(dp + e, Vec<Real>(load(p + e) * (load(dp + e) - mean) * static_cast<Real>(a_.scale)));
    }
  }

  // (D, kNsaQueries) -> (kNsaQueries, Dp); what is beyond D stays 0.
  void to_rows(const std::vector<Real>& columns, std::vector<Real>& rows) const {
    for (std::int64_t d = 0; d < a_.D; ++d) {
      for (std::int64_t x = 0; x < kNsaQueries; ++x) rows[at(x * Dp_ + d)] = columns[at(d * kNsaQueries + x)];
    }
  }

  void add_pieces(const std::vector<Real>& sums, void* out) const {
    const std::int64_t M = a_.grid.M();
    parallel_for(a_.grid.B * a_.Hkv * M, 64, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t row = first; row < last; ++row) {
        for (std::int64_t d = 0; d < a_.D; ++d) {
          Real sum = 0;
          for (std::int64_t p = 0; p < kPieces; ++p) sum += sums[at(((row / M * kPieces + p) * M + row % M) * Dp_ + d)];
          static_cast<Real*>(out)[row * a_.D + d] = sum;
        }
      }
    });
  }

  const CompressedAttentionBackwardArgs& b_;
  const CompressedAttentionArgs& a_;
  std::int64_t Dp_;
  std::vector<SeenCompressed> seen_;
  std::vector<Real> dk_, dv_;  // (B, Hkv, kPieces, M, Dp)
};

}  // namespace

void run(const CompressedAttentionBackwardArgs& b) {
  if (b.forward.dtype == DType::f64) Backward<double>(b).run();
  else Backward<float>(b).run();
}

}  // namespace sieve::cpu
