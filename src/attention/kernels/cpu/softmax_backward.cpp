// Backward of the softmax engine. Queries are taken tile by tile in the order of the plan; dQ of a tile is finished on
// the spot, dK and dV of a key-value head are summed in a slab (T, Dp). One thread owns a slab, so there are no
// atomics. Where (row, key-value head) pairs are few, the tiles of each are cut into chunks of equal cost with a slab
// each, and the slabs are added in order: how many depends on the shape alone, hence no bit depends on the number of
// threads. The formulas are docs/attention.md, "Gates".
#include <algorithm>
#include <vector>

#include "attention/kernels/cpu/slab.h"

namespace sieve::cpu {
namespace {

// How a gated block is differentiated. none: every m is 1 and no score wants a gradient.
enum class Weight { none, kv, value, prob, hard };

using HalfFloats [[gnu::vector_size(kVectorBytes / 2)]] = float;

// row[lane] += g[lane] in fp64; the sum over the lanes is added to `column`.
inline void add_wide(const Vec<double>& g, double* row, Vec<double>& column) {
  store(row, Vec<double>(load(row) + g));
  column += g;
}
inline void add_wide(const Vec<float>& g, double* row, Vec<double>& column) {
  HalfFloats half[2];
  std::memcpy(half, &g, sizeof g);
  for (int x = 0; x < 2; ++x) add_wide(__builtin_convertvector(half[x], Vec<double>), row + x * kLanes<double>, column);
}

// What the elementwise step of one head needs and makes.
template <class T>
struct Pairs {
  T* logits;            // (count, kTile): in units of log 2; becomes the weights that multiply dO into dV
  T* dweights;          // (count, kTile): dO . v; becomes dS, what multiplies k into dQ and q into dK
  const T* statistics;  // (kTile)
  const T* delta;       // (kTile) dO . o
  double* row;          // (kTile) sums over keys of g, null if scores want no gradient
  double* column;       // (T) sums over queries of g
};

// dL/dlogit and the weights, pair by pair. With P the softmax, e = 2^(S - statistics) its value at m = 1:
//   kv     S = m S0:  dP = m dO.v, dS0 = m P (dP - delta), g = P dO.v + P (dP - delta) S0, weight P m
//   value             dP = m dO.v, dS0 = P (dP - delta),   g = P dO.v,                     weight P m
//   prob   P = m e:                dS0 = P (dO.v - delta), g = e (dO.v - delta),           weight P
//   hard                           dS0 = P (dO.v - delta), g = dS0,                        weight P
template <class T, bool kMasked, Weight kWeight>
void differentiate(const Tile<T>& tile, const Pairs<T>& x) {
  constexpr bool kGated = kWeight != Weight::none;
  for (std::ptrdiff_t r = 0; r < tile.count; ++r) {
    Vec<double> column{};
    for (std::ptrdiff_t l = 0; l < tile.lanes; l += kLanes<T>) {
      const std::ptrdiff_t at = r * kTile + l;
      const Vec<T> s0 = load(x.logits + at), dv = load(x.dweights + at), delta = load(x.delta + l);
      Vec<T> m = splat<T>(1);
      if constexpr (kGated && kWeight != Weight::hard) m = load(tile.gate + at);
      const Vec<T> s = kWeight == Weight::kv ? Vec<T>(s0 * m) : s0;
      const Vec<T> e = exp2_vec<T>(s - load(x.statistics + l));
      Vec<T> weight = e, ds, g{};
      if constexpr (kWeight == Weight::kv || kWeight == Weight::value) {
        weight = e * m;
        ds = e * (m * dv - delta);
        g = e * dv;
        if constexpr (kWeight == Weight::kv) {
          g += ds * s0 * static_cast<T>(kLn2);
          ds *= m;
        }
      } else {
        g = e * (dv - delta);
        ds = g;
        if constexpr (kWeight == Weight::prob) {
          weight = e * m;
          ds = g * m;
        }
      }
      if constexpr (kMasked) {  // selected, not multiplied: what is masked may be NaN
        const IVec<T> seen = load_lanes<T>(tile.mask + at);
        weight = seen != 0 ? weight : Vec<T>{};
        ds = seen != 0 ? ds : Vec<T>{};
        if constexpr (kGated) {
          if (x.row != nullptr) add_wide(Vec<T>((seen & tile.in_band(r, l)) != 0 ? g : Vec<T>{}), x.row + l, column);
        }
      }
      store(x.logits + at, weight);
      store(x.dweights + at, ds);
    }
    if constexpr (kGated) {
      if (x.column == nullptr) continue;
      double sum = 0;
      for (int lane = 0; lane < kLanes<double>; ++lane) sum += column[lane];
      x.column[tile.key(r)] += sum;
    }
  }
}

template <class T>
class Backward {
 public:
  static std::size_t scratch(const SoftmaxForwardArgs& a) {
    const auto G = static_cast<std::size_t>(a.H / a.Hkv);
    const auto Dp = static_cast<std::size_t>(padded<T>(a.D));
    return Tile<T>::scratch(a.D) + kTile * (2 * kTile + 3 * Dp + G * (8 * Dp + 2) + 1);
  }

  Backward(const SoftmaxBackwardArgs& a, Arena<T>& arena)
      : args_(a), tile_(a.forward, arena), heads_(static_cast<std::size_t>(a.forward.H / a.forward.Hkv)) {
    const std::ptrdiff_t n = tile_.Dp * kTile;
    logits_ = arena.take(kTile * kTile);
    dweights_ = arena.take(kTile * kTile);
    dk_ = arena.take(n);
    dk_far_ = arena.take(n);
    dv_ = arena.take(n);
    factor_ = arena.take(kTile);
    std::fill(factor_, factor_ + kTile, static_cast<T>(a.forward.scale));
    for (Head& h : heads_) {
      for (T** p : {&h.q, &h.far_q, &h.q_columns, &h.far_q_columns, &h.dout, &h.dout_columns, &h.dq, &h.far_dq})
        *p = arena.take(n);
      h.statistics = arena.take(kTile);
      h.delta = arena.take(kTile);
    }
  }

  // Tiles [first, last) of one (row, key-value head). column (T) and row (T): sums of g, null if not wanted.
  void pack(std::int64_t b, std::int64_t kv, std::int64_t first, std::int64_t last, const PackedKeys<T>& to) const {
    tile_.pack(b, kv, first, last, to);
  }

  void run(std::int64_t b, std::int64_t kv, std::int64_t first, std::int64_t last, const PackedKeys<T>& packed,
           Slab<T>& slab, double* column, double* row) {
    const auto G = static_cast<std::int64_t>(heads_.size());
    const bool gates = args_.forward.gate.mode != GateMode::hard || column != nullptr;
    for (std::int64_t t = first; t < last; ++t) {
      tile_.begin(b, kv, t, packed);
      std::fill(row_, row_ + kTile, 0.0);
      for (std::int64_t g = 0; g < G; ++g) begin(kv * G + g, heads_[static_cast<std::size_t>(g)]);
      for (const PlanBlock* block = tile_.block_begin; block != tile_.block_end; ++block) {
        tile_.read_block(*block, gates);
        visit(slab, column);
      }
      for (std::int64_t g = 0; g < G; ++g) finish(kv * G + g, heads_[static_cast<std::size_t>(g)]);
      if (row != nullptr) std::copy(row_, row_ + tile_.nq, row + tile_.q0);
    }
  }

  // dK and dV of keys [first, last) from the slabs of all chunks, in order.
  void write_keys(std::int64_t b, std::int64_t kv, const Slab<T>* slabs, std::int64_t chunks, std::int64_t first,
                  std::int64_t last) {
    const SoftmaxForwardArgs& a = args_.forward;
    auto total = [&](T* Slab<T>::*part, std::int64_t j) {
      const std::ptrdiff_t at = j * tile_.Dp;
      T* sum = tile_.row_scratch;
      std::fill(sum, sum + tile_.Dp, T(0));
      for (std::int64_t c = 0; c < chunks; ++c) {
        if (!slabs[c].touched(j)) continue;
        const T* row = slabs[c].*part + at;
        for (std::ptrdiff_t d = 0; d < tile_.Dp; d += kLanes<T>) store(sum + d, Vec<T>(load(sum + d) + load(row + d)));
      }
      return sum;
    };
    T* dk = dk_;  // one row
    for (std::int64_t j = first; j < last; ++j) {
      const T* sum = total(&Slab<T>::dk, j);
      for (std::ptrdiff_t d = 0; d < tile_.D; ++d) dk[d] = sum[d] * factor_[0];
      if (tile_.R > 0) tile_.rotate_at(dk, j, T(-1));
      if (tile_.has_far()) {
        sum = total(&Slab<T>::dk_far, j);
        for (std::ptrdiff_t d = 0; d < tile_.D; ++d) dk[d] += sum[d] * factor_[0];
      }
      write(dk, b, j, a.H + kv);
      write(total(&Slab<T>::dv, j), b, j, a.H + a.Hkv + kv);
    }
  }

 private:
  // One query head's tile. Rows are (nq, Dp), columns (Dp, kTile).
  struct Head {
    T *q, *far_q;                  // rotated
    T *q_columns, *far_q_columns;  // times scale / ln 2
    T *dout, *dout_columns;
    T *dq, *far_dq;  // columns, not yet scaled
    T *statistics, *delta;
    bool q_finite, dout_finite;
  };

  void begin(std::int64_t h, Head& head) {
    const SoftmaxForwardArgs& a = args_.forward;
    const T factor = static_cast<T>(a.scale * kLog2E);
    const std::ptrdiff_t nq = tile_.nq, Dp = tile_.Dp;
    tile_.read_queries(h, head.q);
    transpose_in(head.q, nq, Dp, tile_.lanes, factor, head.q_columns);
    if (tile_.has_far()) {
      tile_.read_far_queries(h, head.far_q);
      transpose_in(head.far_q, nq, Dp, tile_.lanes, factor, head.far_q_columns);
      std::fill(head.far_dq, head.far_dq + Dp * kTile, T(0));
    }
    tile_.read_out(args_.dout_BTHD, h, head.dout);
    transpose_in(head.dout, nq, Dp, tile_.lanes, T(1), head.dout_columns);
    tile_.read_out(a.out_BTHD, h, tile_.row_scratch);
    const T* statistics = static_cast<const T*>(a.statistics_BHT) + (tile_.b * a.H + h) * a.T + tile_.q0;
    for (std::ptrdiff_t i = 0; i < kTile; ++i) {
      head.statistics[i] = i < nq ? statistics[i] : T(0);
      Vec<T> sum{};
      for (std::ptrdiff_t d = 0; i < nq && d < Dp; d += kLanes<T>) {
        sum += load(head.dout + i * Dp + d) * load(tile_.row_scratch + i * Dp + d);
      }
      head.delta[i] = 0;
      for (int l = 0; l < kLanes<T>; ++l) head.delta[i] += sum[l];
    }
    head.q_finite = all_finite(head.q, nq * Dp);
    head.dout_finite = all_finite(head.dout, nq * Dp);
    std::fill(head.dq, head.dq + Dp * kTile, T(0));
  }

  // One block of keys: all heads add to the same dK and dV. Spans add to the slab, gathered rows by way of a buffer.
  void visit(Slab<T>& slab, double* column) {
    const std::ptrdiff_t at = tile_.first_key * tile_.Dp, n = tile_.count * tile_.Dp;
    T *dk = dk_, *dk_far = dk_far_, *dv = dv_;
    for (std::ptrdiff_t r = 0; r < tile_.count; ++r) slab.touch(tile_.key(r));
    if (!tile_.gathered) {
      dk = slab.dk + at;
      dv = slab.dv + at;
    } else {
      for (T* p : {dk, dk_far, dv}) std::fill(p, p + n, T(0));
    }
    for (Head& h : heads_) {
      tile_.make_logits(h.q_columns, h.far_q_columns, logits_);
      multiply<T, Layout::plain, Store::assign>(tile_.count, tile_.lanes, tile_.D, tile_.values, tile_.Dp,
                                                h.dout_columns, kTile, dweights_, kTile);
      differentiate_block(h, column);
      keys_product(logits_, h.dout, h.dout_finite, dv);
      if (tile_.reach == Reach::mixed) split_far();
      if (tile_.reach != Reach::far) {
        queries_product(tile_.keys, dweights_, h.dq);
        keys_product(dweights_, h.q, h.q_finite, dk);
      }
      if (tile_.reach != Reach::near) {
        const T* ds = tile_.reach == Reach::far ? dweights_ : tile_.far_logits;
        queries_product(tile_.far_keys, ds, h.far_dq);
        keys_product(ds, h.far_q, h.q_finite, dk_far);
      }
    }
    if (!tile_.gathered) return;
    scatter(dv, slab.dv);
    if (tile_.reach != Reach::far) scatter(dk, slab.dk);
    if (tile_.reach != Reach::near) scatter(dk_far, slab.dk_far);
  }

  void differentiate_block(Head& h, double* column) {
    const Pairs<T> pairs{logits_, dweights_, h.statistics, h.delta, column != nullptr ? row_ : nullptr, column};
    if (!tile_.masked) return differentiate<T, false, Weight::none>(tile_, pairs);
    if (!tile_.gated) return differentiate<T, true, Weight::none>(tile_, pairs);
    switch (args_.forward.gate.mode) {
      case GateMode::kv: return differentiate<T, true, Weight::kv>(tile_, pairs);
      case GateMode::value: return differentiate<T, true, Weight::value>(tile_, pairs);
      case GateMode::prob: return differentiate<T, true, Weight::prob>(tile_, pairs);
      case GateMode::hard: return differentiate<T, true, Weight::hard>(tile_, pairs);
    }
  }

  // dS of far pairs moves to tile_.far_logits, that of near pairs stays.
  void split_far() {
    for (std::ptrdiff_t r = 0; r < tile_.count; ++r) {
      for (std::ptrdiff_t l = 0; l < tile_.lanes; l += kLanes<T>) {
        const std::ptrdiff_t at = r * kTile + l;
        const IVec<T> far = tile_.is_far(r, l);
        const Vec<T> ds = load(dweights_ + at);
        store(tile_.far_logits + at, Vec<T>(far ? ds : Vec<T>{}));
        store(dweights_ + at, Vec<T>(far ? Vec<T>{} : ds));
      }
    }
  }

  // dq (Dp, kTile) += keys^T ds
  void queries_product(const T* keys, const T* ds, T* dq) {
    if (tile_.keys_finite) {
      multiply<T, Layout::transposed, Store::add>(tile_.D, tile_.lanes, tile_.count, keys, tile_.Dp, ds, kTile, dq,
                                                  kTile);
    } else {
      multiply_seen_queries(tile_.D, tile_.lanes, tile_.count, keys, tile_.Dp, ds, kTile, dq, kTile);
    }
  }
  // out (count, Dp) += weights rows
  void keys_product(const T* weights, const T* rows, bool finite, T* out) {
    if (finite || !tile_.masked) {
      multiply<T, Layout::plain, Store::add>(tile_.count, tile_.Dp, tile_.nq, weights, kTile, rows, tile_.Dp, out,
                                             tile_.Dp);
    } else {
      multiply_seen_keys(tile_.count, tile_.Dp, tile_.nq, weights, kTile, rows, tile_.Dp, out, tile_.Dp);
    }
  }
  void scatter(const T* block, T* slab) {
    for (std::ptrdiff_t r = 0; r < tile_.count; ++r) {
      T* to = slab + tile_.key(r) * tile_.Dp;
      for (std::ptrdiff_t d = 0; d < tile_.Dp; d += kLanes<T>)
        store(to + d, Vec<T>(load(to + d) + load(block + r * tile_.Dp + d)));
    }
  }

  void finish(std::int64_t h, Head& head) {
    transpose_out(head.dq, tile_.nq, tile_.Dp, factor_, tile_.row_scratch);
    if (tile_.has_far()) transpose_out(head.far_dq, tile_.nq, tile_.Dp, factor_, dk_);
    for (std::ptrdiff_t i = 0; i < tile_.nq; ++i) {
      T* dq = tile_.row_scratch + i * tile_.Dp;
      if (tile_.R > 0) tile_.rotate_at(dq, tile_.q0 + i, T(-1));
      if (tile_.has_far()) {
        T* far = dk_ + i * tile_.Dp;
        tile_.rotate_at(far, args_.forward.rotary.far_distance, T(-1));
        for (std::ptrdiff_t d = 0; d < tile_.D; ++d) dq[d] += far[d];
      }
      write(dq, tile_.b, tile_.q0 + i, h);
    }
  }

  // D elements of dqkv at position i, at the place of the h-th head of qkv.
  void write(const T* row, std::int64_t b, std::int64_t i, std::int64_t h) {
    const std::int64_t at = (b * args_.forward.T + i) * tile_.features() + h * args_.forward.D;
    auto* to = static_cast<std::byte*>(args_.dqkv_BTF) + at * static_cast<std::int64_t>(size_of(args_.forward.dtype));
    store_row(row, tile_.D, to, args_.forward.dtype);
  }

  const SoftmaxBackwardArgs& args_;
  Tile<T> tile_;
  std::vector<Head> heads_;
  T *logits_, *dweights_;  // (count, kTile)
  T *dk_, *dk_far_, *dv_;  // (kTile, Dp)
  T* factor_;              // (kTile) the scale
  alignas(64) double row_[kTile];
};

// Sums of g of every task, then those of a score head: over chunks, and over all key-value heads where they share one
// score head.
void combine(const SoftmaxBackwardArgs& args, std::int64_t chunks, const std::vector<double>& column,
             const std::vector<double>& row) {
  const SoftmaxForwardArgs& a = args.forward;
  const std::int64_t Hs = a.gate.heads, shared = a.Hkv / Hs;
  parallel_for(a.B * Hs, std::max<std::int64_t>(1, 65536 / std::max<std::int64_t>(1, a.T)),
               [&](std::int64_t first, std::int64_t last) {
                 for (std::int64_t x = first; x < last; ++x) {
                   const auto sum = [&](const std::vector<double>& parts, std::int64_t count, double* out) {
                     const double* part = parts.data() + x * count * a.T;
                     std::copy(part, part + a.T, out);
                     for (std::int64_t y = 1; y < count; ++y) {
                       for (std::int64_t j = 0; j < a.T; ++j) out[j] += part[y * a.T + j];
                     }
                   };
                   sum(column, shared * chunks, args.column_BHT + x * a.T);
                   sum(row, shared, args.row_BHT + x * a.T);
                 }
               });
}

// Enough heads: a task is a head.
template <class T>
void backward_by_heads(const SoftmaxBackwardArgs& args, Workspace<T>& space, double* column, double* row) {
  const SoftmaxForwardArgs& a = args.forward;
  const std::int64_t heads = a.B * a.Hkv, lots = space.lots;
  parallel_for(lots, 1, [&](std::int64_t first_lot, std::int64_t last_lot) {
    Arena<T> arena(Backward<T>::scratch(a));
    Backward<T> work(args, arena);
    for (std::int64_t lot = first_lot; lot < last_lot; ++lot) {
      const PackedKeys<T>& packed = space.packed[static_cast<std::size_t>(lot)];
      Slab<T>& slab = space.slabs[static_cast<std::size_t>(lot)];
      for (std::int64_t x = heads * lot / lots; x < heads * (lot + 1) / lots; ++x) {
        const std::int64_t b = x / a.Hkv, kv = x % a.Hkv;
        work.pack(b, kv, 0, a.T, packed);
        slab.clear();
        work.run(b, kv, 0, a.plan.tiles, packed, slab, column ? column + x * a.T : nullptr,
                 row ? row + x * a.T : nullptr);
        work.write_keys(b, kv, &slab, 1, 0, a.T);
      }
    }
  });
}

// Few heads: a task is a chunk of the tiles of a head.
template <class T>
void backward_by_chunks(const SoftmaxBackwardArgs& args, Workspace<T>& space, double* column, double* row) {
  const SoftmaxForwardArgs& a = args.forward;
  const std::int64_t heads = a.B * a.Hkv, tiles = a.plan.tiles, chunks = space.chunks;
  const auto each = [&](std::int64_t n, std::int64_t grain, auto&& body) {
    parallel_for(n, grain, [&](std::int64_t first, std::int64_t last) {
      Arena<T> arena(Backward<T>::scratch(a));
      Backward<T> work(args, arena);
      for (std::int64_t x = first; x < last; ++x) body(work, x);
    });
  };
  each(heads * tiles, 16, [&](Backward<T>& work, std::int64_t x) {
    const std::int64_t head = x / tiles, j = x % tiles * kTile;
    work.pack(head / a.Hkv, head % a.Hkv, j, std::min(a.T, j + kTile), space.packed[static_cast<std::size_t>(head)]);
  });
  each(heads * chunks, grain_of(a, heads * chunks), [&](Backward<T>& work, std::int64_t x) {
    const std::int64_t head = x / chunks, b = head / a.Hkv, kv = head % a.Hkv;
    const auto bounds = chunk_bounds(a.plan, b, kv, chunks);
    const auto c = static_cast<std::size_t>(x % chunks);
    work.run(b, kv, bounds[c], bounds[c + 1], space.packed[static_cast<std::size_t>(head)],
             space.slabs[static_cast<std::size_t>(x)], column ? column + x * a.T : nullptr,
             row ? row + head * a.T : nullptr);
  });
  each(heads * tiles, 16, [&](Backward<T>& work, std::int64_t x) {
    const std::int64_t head = x / tiles, j = x % tiles * kTile;
    work.write_keys(head / a.Hkv, head % a.Hkv, space.slabs.data() + head * chunks, chunks, j,
                    std::min(a.T, j + kTile));
  });
}

template <class T>
void backward(const SoftmaxBackwardArgs& args) {
  const SoftmaxForwardArgs& a = args.forward;
  if (a.B * a.T == 0) return;
  Arena<T> memory(a.workspace, Workspace<T>::elements(a));
  Workspace<T> space(a, memory);
  const bool scores = args.column_BHT != nullptr;
  std::vector<double> column(static_cast<std::size_t>(scores ? a.B * a.Hkv * space.chunks * a.T : 0));
  std::vector<double> row(static_cast<std::size_t>(scores ? a.B * a.Hkv * a.T : 0));
  double* columns = scores ? column.data() : nullptr;
  double* rows = scores ? row.data() : nullptr;
  if (space.chunks == 1) backward_by_heads(args, space, columns, rows);
  else backward_by_chunks(args, space, columns, rows);
  if (scores) combine(args, space.chunks, column, row);
}

}  // namespace

std::size_t workspace_bytes(const SoftmaxBackwardArgs& a) {
  return a.forward.dtype == DType::f64 ? Workspace<double>::elements(a.forward) * sizeof(double)
                                       : Workspace<float>::elements(a.forward) * sizeof(float);
}

void run(const SoftmaxBackwardArgs& a) {
  if (a.forward.dtype == DType::f64) backward<double>(a);
  else backward<float>(a);
}

}  // namespace sieve::cpu
