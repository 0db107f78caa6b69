// What forward and backward share: one tile of queries of one (row, key-value head), the block of keys that it visits
// next, the block's mask and gates, and its logits. Queries lie in lanes, keys in rows. Letters: D head size, Dp = D
// padded to whole vectors, R = rotary_dims / 2, G query heads of a key-value head.
#pragma once

#include <algorithm>

#include "attention/kernels/cpu/multiply.h"
#include "attention/kernels/cpu/rows.h"
#include "attention/kernels/softmax.h"
#include "attention/spans.h"

namespace sieve::cpu {

static_assert(kTile == kQueryTile && kTile == kKeyBlock);
inline constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

template <class T>
std::ptrdiff_t padded(std::int64_t D) {
  return (D + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

// Fewest of `items` equal shares of a pass that are worth a thread: eight visits of a block, some 50 us.
inline std::int64_t grain_of(const SoftmaxForwardArgs& a, std::int64_t items) {
  constexpr std::int64_t kVisits = 8;
  const std::int64_t plans = a.plan.batch_plans * a.plan.head_plans;  // none where the batch is empty
  if (plans == 0) return 1;
  const std::int64_t visits = a.plan.tile_first[plans * a.plan.tiles] * (a.B * a.H / plans);
  return std::max<std::int64_t>(1, items * kVisits / std::max<std::int64_t>(1, visits));
}

enum class Reach { near, far, mixed };  // which rotation the pairs of a block use (RotaryView::far_distance)

// Keys (rotated at their own positions) and values of one (row, key-value head) in the compute type, (T, Dp) each.
// Packed once per head and pass: rows of qkv lie F elements apart, and every tile of queries would convert and rotate
// them again.
template <class T>
struct PackedKeys {
  T* keys = nullptr;
  T* values = nullptr;

  static std::ptrdiff_t elements(const SoftmaxForwardArgs& a) { return 2 * a.T * padded<T>(a.D); }
  PackedKeys() = default;
  PackedKeys(const SoftmaxForwardArgs& a, Arena<T>& arena)
      : keys(arena.take(elements(a))), values(keys + elements(a) / 2) {}
};

template <class T>
class Tile {
 public:
  // Elements of scratch that a Tile takes.
  static std::size_t scratch(std::int64_t D) {
    return static_cast<std::size_t>(kTile * (4 * padded<T>(D) + 3 * kTile + 2 * kMaxSpans + 4));
  }

  Tile(const SoftmaxForwardArgs& args, Arena<T>& arena)
      : a(args), D(args.D), Dp(padded<T>(args.D)), R(args.rotary.rotary_dims / 2) {
    gathered_keys_ = arena.take(kTile * Dp);
    far_keys = arena.take(kTile * Dp);
    gathered_values_ = arena.take(kTile * Dp);
    row_scratch = arena.take(kTile * Dp);
    gate = arena.take(kTile * kTile);
    far_logits = arena.take(kTile * kTile);
    mask = reinterpret_cast<Lane<T>*>(arena.take(kTile * kTile));
    for (int s = 0; s < kMaxSpans; ++s) {
      span_begin_[s] = reinterpret_cast<Lane<T>*>(arena.take(kTile));
      span_end_[s] = reinterpret_cast<Lane<T>*>(arena.take(kTile));
    }
    iota_ = reinterpret_cast<Lane<T>*>(arena.take(kTile));
    tau_ = arena.take(kTile);
    for (std::ptrdiff_t l = 0; l < kTile; ++l) iota_[l] = static_cast<Lane<T>>(l);
  }

  // Rows [first, last) of a head.
  void pack(std::int64_t row, std::int64_t head, std::int64_t first, std::int64_t last, const PackedKeys<T>& to) const {
    for (std::int64_t j = first; j < last; ++j) {
      const std::int64_t at = (row * a.T + j) * features();
      if (j + kAhead < a.T) {
        prefetch(at + kAhead * features() + (a.H + head) * D);
        prefetch(at + kAhead * features() + (a.H + a.Hkv + head) * D);
      }
      read(a.qkv_BTF, at + (a.H + head) * D, to.keys + j * Dp);
      if (R > 0) rotate_at(to.keys + j * Dp, j, T(1));
      read(a.qkv_BTF, at + (a.H + a.Hkv + head) * D, to.values + j * Dp);
    }
  }

  void begin(std::int64_t b_, std::int64_t kv_, std::int64_t tile, const PackedKeys<T>& packed) {
    b = b_;
    kv = kv_;
    packed_ = packed;
    const Interval queries = spans::tile_queries(tile, kTile, a.T);
    q0 = queries.begin;
    nq = queries.size();
    lanes = (nq + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
    const std::int64_t row = a.plan.batch_plans == 1 ? 0 : b;
    const std::int64_t p = row * a.plan.head_plans + (a.plan.head_plans == 1 ? 0 : kv);
    const std::int64_t* first = a.plan.tile_first + p * a.plan.tiles + tile;
    block_begin = a.plan.blocks + first[0];
    block_end = a.plan.blocks + first[1];
    for (int s = 0; s < kMaxSpans && a.plan.span_begin[s] != nullptr; ++s) {
      for (std::ptrdiff_t l = 0; l < kTile; ++l) {  // lanes past the end see nothing
        span_begin_[s][l] = l < nq ? a.plan.span_begin[s][row * a.T + q0 + l] : 0;
        span_end_[s][l] = l < nq ? a.plan.span_end[s][row * a.T + q0 + l] : 0;
      }
    }
    if (a.gate.z != nullptr) begin_gates();
  }

  // Query rows of head h at their own positions, natural layout (nq, Dp), zero padded.
  void read_queries(std::int64_t h, T* rows) {
    for (std::ptrdiff_t i = 0; i < nq; ++i) {
      read(a.qkv_BTF, (b * a.T + q0 + i) * features() + h * D, rows + i * Dp);
      if (R > 0) rotate_at(rows + i * Dp, q0 + i, T(1));
    }
  }
  // The same at position far_distance.
  void read_far_queries(std::int64_t h, T* rows) {
    for (std::ptrdiff_t i = 0; i < nq; ++i) {
      read(a.qkv_BTF, (b * a.T + q0 + i) * features() + h * D, rows + i * Dp);
      rotate_at(rows + i * Dp, a.rotary.far_distance, T(1));
    }
  }
  // Rows of out or dout, (nq, Dp).
  void read_out(const void* base, std::int64_t h, T* rows) {
    for (std::ptrdiff_t i = 0; i < nq; ++i) read(base, ((b * a.T + q0 + i) * a.H + h) * D, rows + i * Dp);
  }

  // Keys and values of a block, its mask and its gates.
  void read_block(const PlanBlock& block, bool with_gates) {
    count = block.count;
    gathered = block.source == kGathered;
    plan_rows = gathered ? a.plan.rows + block.first : nullptr;
    first_key = block.first;
    find_reach();
    keys_finite = values_finite = true;
    if (gathered) {
      gather();
    } else {
      keys = packed_.keys + first_key * Dp;
      values = packed_.values + first_key * Dp;
    }
    gated = with_gates && block.gated != 0;
    masked = block.masked != 0 || gated;  // a gated block reads its mask in any case
    if (masked) {
      keys_finite = (reach == Reach::far || all_finite(keys, count * Dp)) &&
                    (reach == Reach::near || all_finite(far_keys, count * Dp));
      values_finite = all_finite(values, count * Dp);
      fill_mask(block);
    }
    if (gated) fill_gate();
  }

  // logits (count, kTile) from the transposed queries of a head, near and far ones (Dp, kTile).
  void make_logits(const T* queries, const T* far_queries, T* logits) {
    const T* k = reach == Reach::far ? far_keys : keys;
    const T* q = reach == Reach::far ? far_queries : queries;
    multiply<T, Layout::plain, Store::assign>(count, lanes, D, k, Dp, q, kTile, logits, kTile);
    if (reach != Reach::mixed) return;
    multiply<T, Layout::plain, Store::assign>(count, lanes, D, far_keys, Dp, far_queries, kTile, far_logits, kTile);
    for (std::ptrdiff_t r = 0; r < count; ++r) {
      for (std::ptrdiff_t l = 0; l < lanes; l += kLanes<T>) {
        T* s = logits + r * kTile + l;
        store(s, Vec<T>(is_far(r, l) ? load(far_logits + r * kTile + l) : load(s)));
      }
    }
  }

  // Lanes of row r, from lane l on, whose distance is above far_distance.
  IVec<T> is_far(std::ptrdiff_t r, std::ptrdiff_t l) const {
    const auto limit = static_cast<Lane<T>>(a.rotary.far_distance + key(r) - q0);
    return load_lanes<T>(iota_ + l) > limit;
  }
  // Lanes whose query has key r in its soft band.
  IVec<T> in_band(std::ptrdiff_t r, std::ptrdiff_t l) const {
    const std::int64_t at = gate_row() + key(r);
    const auto from = static_cast<Lane<T>>(a.gate.band_from[at] - q0),
               to = static_cast<Lane<T>>(a.gate.band_to[at] - q0);
    const IVec<T> i = load_lanes<T>(iota_ + l);
    return (i >= from) & (i < to);
  }

  std::int64_t key(std::ptrdiff_t r) const { return gathered ? plan_rows[r].key : first_key + r; }
  std::int64_t features() const { return (a.H + 2 * a.Hkv) * a.D; }
  std::int64_t score_head() const { return a.gate.heads == 1 ? 0 : kv; }
  std::int64_t gate_row() const { return (b * a.gate.heads + score_head()) * a.T; }
  bool has_far() const { return a.rotary.far_distance >= 0; }
  void rotate_at(T* row, std::int64_t position, T sign) const {
    rotate_row(row, static_cast<const T*>(a.rotary.cos) + position * R,
               static_cast<const T*>(a.rotary.sin) + position * R, R, sign);
  }

  const SoftmaxForwardArgs& a;
  const std::ptrdiff_t D, Dp, R;
  // The tile.
  std::int64_t b = 0, kv = 0, q0 = 0;
  std::ptrdiff_t nq = 0, lanes = 0;
  const PlanBlock* block_begin = nullptr;
  const PlanBlock* block_end = nullptr;
  // The block.
  std::ptrdiff_t count = 0;
  std::int64_t first_key = 0;
  const PlanRow* plan_rows = nullptr;
  bool gathered = false, masked = false, gated = false, keys_finite = true, values_finite = true;
  Reach reach = Reach::near;
  const T* keys = nullptr;    // (count, Dp), rotated at their own positions; unless all pairs are far
  const T* values = nullptr;  // (count, Dp)
  T* far_keys;                // (count, Dp), not rotated; unless all pairs are near
  T* row_scratch;             // (kTile, Dp), free for callers
  T* gate;                    // (count, kTile) m_ij, if gated
  Lane<T>* mask;              // (count, kTile) 0 or -1, if masked
  T* far_logits;              // (count, kTile)

 private:
  void read(const void* base, std::int64_t offset, T* row) const {
    const auto* bytes = static_cast<const std::byte*>(base) + offset * static_cast<std::int64_t>(size_of(a.dtype));
    convert_row(bytes, a.dtype, D, row);
    for (std::ptrdiff_t d = D; d < Dp; ++d) row[d] = 0;
  }

  void gather() {
    for (std::ptrdiff_t r = 0; r < count; ++r) {
      const std::int64_t j = key(r);
      if (reach != Reach::far) copy_row(packed_.keys + j * Dp, gathered_keys_ + r * Dp);
      if (reach != Reach::near) read(a.qkv_BTF, (b * a.T + j) * features() + (a.H + kv) * D, far_keys + r * Dp);
      copy_row(packed_.values + j * Dp, gathered_values_ + r * Dp);
    }
    keys = gathered_keys_;
    values = gathered_values_;
  }
  void copy_row(const T* from, T* to) const {
    for (std::ptrdiff_t d = 0; d < Dp; d += kLanes<T>) store(to + d, load(from + d));
  }

  // Rows of a head lie F elements apart, too far for the hardware's prefetcher.
  static constexpr std::int64_t kAhead = 8;
  void prefetch(std::int64_t offset) const {
    const auto size = static_cast<std::int64_t>(size_of(a.dtype));
    const char* p = static_cast<const char*>(a.qkv_BTF) + offset * size;
    for (std::int64_t x = 0; x < D * size; x += 64) __builtin_prefetch(p + x);
  }

  // z and tau relative to a tau of the tile, subtracted in fp64: their fp32 difference then keeps its bits whatever the
  // slope has added to both.
  void begin_gates() {
    const double* tau = a.gate.tau + gate_row() + q0;
    centre_ = 0;
    for (std::ptrdiff_t l = nq - 1; l >= 0; --l) {
      if (tau[l] > -1e300) centre_ = tau[l];
    }
    for (std::ptrdiff_t l = 0; l < kTile; ++l)
      tau_[l] = l < nq && tau[l] > -1e300 ? static_cast<T>(tau[l] - centre_) : T(-1e30);
  }

  void fill_gate() {
    for (std::ptrdiff_t r = 0; r < count; ++r) {
      const std::int64_t at = gate_row() + key(r);
      const T z = static_cast<T>(a.gate.z[at] - centre_);
      const auto from = static_cast<Lane<T>>(a.gate.band_from[at] - q0);
      for (std::ptrdiff_t l = 0; l < lanes; l += kLanes<T>) {
        Vec<T> m = z - load(tau_ + l);
        m = m < T(0) ? splat<T>(0) : m;
        m = (m > T(1)) | (load_lanes<T>(iota_ + l) < from) ? splat<T>(1) : m;
        store(gate + r * kTile + l, m);
      }
    }
  }

  void fill_mask(const PlanBlock& block) {
    for (std::ptrdiff_t r = 0; r < count; ++r) {
      const auto j = static_cast<Lane<T>>(key(r));
      for (std::ptrdiff_t l = 0; l < lanes; l += kLanes<T>) {
        IVec<T> seen;
        if (gathered) {
          const IVec<T> i = load_lanes<T>(iota_ + l);
          seen = (i >= static_cast<Lane<T>>(plan_rows[r].from)) & (i < static_cast<Lane<T>>(plan_rows[r].to));
        } else {
          seen = (load_lanes<T>(span_begin_[block.source] + l) <= j) & (load_lanes<T>(span_end_[block.source] + l) > j);
        }
        std::memcpy(mask + r * kTile + l, &seen, sizeof seen);
      }
    }
    if (a.plan.pair_bits == nullptr || gathered) return;
    for (std::ptrdiff_t l = 0; l < nq; ++l) {
      const std::uint64_t seen =
          a.plan.pair_bits(a.plan.pair_context, b, kv, q0 + l, first_key, static_cast<int>(count));
      for (std::ptrdiff_t r = 0; r < count; ++r) {
        if ((seen >> r & 1) == 0) mask[r * kTile + l] = 0;
      }
    }
  }

  void find_reach() {
    reach = Reach::near;
    if (!gathered || !has_far()) return;
    std::int64_t least = plan_rows[0].from - key(0), most = least;
    for (std::ptrdiff_t r = 0; r < count; ++r) {
      least = std::min(least, plan_rows[r].from - key(r));
      most = std::max(most, plan_rows[r].to - 1 - key(r));
    }
    if (q0 + least > a.rotary.far_distance) reach = Reach::far;
    else if (q0 + most > a.rotary.far_distance) reach = Reach::mixed;
  }

  PackedKeys<T> packed_;
  T* gathered_keys_;
  T* gathered_values_;
  Lane<T>* span_begin_[kMaxSpans];
  Lane<T>* span_end_[kMaxSpans];
  Lane<T>* iota_;
  T* tau_;
  double centre_ = 0;
};

}  // namespace sieve::cpu
