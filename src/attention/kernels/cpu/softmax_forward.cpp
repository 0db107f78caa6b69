// Forward of the softmax engine: parallel over (row, key-value head, tile of queries); every tile is computed by one
// thread in the order of its plan, so that the result does not depend on how many there are. The online softmax is that
// of Milakov & Gimelshein 2018 (arXiv 1805.02867) in the tiling of Dao et al. 2022 (arXiv 2205.14135), in units of
// log 2.
#include <cmath>
#include <vector>

#include "attention/kernels/cpu/tile.h"
#include "core/parallel_for.h"

namespace sieve::cpu {
namespace {

// Where the weight m of a gated block enters (docs/attention.md, "Gates"). none: every m is 1, or the gate is hard.
enum class Weight { none, kv, value, prob };

Weight weight_of(GateMode mode) {
  switch (mode) {
    case GateMode::kv: return Weight::kv;
    case GateMode::value: return Weight::value;
    case GateMode::prob: return Weight::prob;
    case GateMode::hard: break;
  }
  return Weight::none;
}

// The maximum so far starts here and not at -infinity: a query whose first block is all masked must not meet inf - inf.
constexpr double kNothing = -1e30;

// Logits become weights of the values, in place; running maximum and denominator of every lane move on. True if some
// lane's maximum rose, so that what was summed must shrink by `shrink`.
template <class T, bool kMasked, Weight kWeight>
bool advance(const Tile<T>& tile, T* logits, T* highest, T* denominator, T* shrink) {
  IVec<T> rose{};
  for (std::ptrdiff_t l = 0; l < tile.lanes; l += kLanes<T>) {
    const Vec<T> before = load(highest + l);
    Vec<T> top = before;
    for (std::ptrdiff_t r = 0; r < tile.count; ++r) {
      const std::ptrdiff_t at = r * kTile + l;
      Vec<T> s = load(logits + at);
      if constexpr (kWeight == Weight::kv) s *= load(tile.gate + at);
      if constexpr (kMasked) s = load_lanes<T>(tile.mask + at) != 0 ? s : splat<T>(T(kNothing));
      if constexpr (kMasked || kWeight == Weight::kv) store(logits + at, s);
      top = max(top, s);
    }
    const Vec<T> factor = exp2_vec<T>(before - top);
    Vec<T> sum{};
    for (std::ptrdiff_t r = 0; r < tile.count; ++r) {
      const std::ptrdiff_t at = r * kTile + l;
      Vec<T> p = exp2_vec<T>(load(logits + at) - top);
      if constexpr (kMasked) p = load_lanes<T>(tile.mask + at) != 0 ? p : Vec<T>{};
      if constexpr (kWeight == Weight::prob) p *= load(tile.gate + at);
      sum += p;
      if constexpr (kWeight == Weight::kv || kWeight == Weight::value) p *= load(tile.gate + at);
      store(logits + at, p);
    }
    store(highest + l, top);
    store(denominator + l, Vec<T>(load(denominator + l) * factor + sum));
    store(shrink + l, factor);
    rose |= factor != T(1);
  }
  Lane<T> any = 0;
  for (int x = 0; x < kLanes<T>; ++x) any |= rose[x];
  return any != 0;
}

template <class T>
class Forward {
 public:
  static std::size_t scratch(const SoftmaxForwardArgs& a) {
    const auto G = static_cast<std::size_t>(a.H / a.Hkv);
    const auto Dp = static_cast<std::size_t>(padded<T>(a.D));
    return Tile<T>::scratch(a.D) + kTile * (kTile + 1 + G * (3 * Dp + 2));
  }

  Forward(const SoftmaxForwardArgs& a, Arena<T>& arena)
      : tile_(a, arena), heads_(static_cast<std::size_t>(a.H / a.Hkv)) {
    logits_ = arena.take(kTile * kTile);
    shrink_ = arena.take(kTile);
    for (Head& h : heads_) {
      h.queries = arena.take(tile_.Dp * kTile);
      h.far_queries = arena.take(tile_.Dp * kTile);
      h.out = arena.take(tile_.Dp * kTile);
      h.highest = arena.take(kTile);
      h.denominator = arena.take(kTile);
    }
  }

  void pack(std::int64_t head, std::int64_t first, std::int64_t last, const PackedKeys<T>& to) const {
    tile_.pack(head / tile_.a.Hkv, head % tile_.a.Hkv, first, last, to);
  }

  void run(std::int64_t b, std::int64_t kv, std::int64_t t, const PackedKeys<T>& packed) {
    tile_.begin(b, kv, t, packed);
    const auto G = static_cast<std::int64_t>(heads_.size());
    for (std::int64_t g = 0; g < G; ++g) begin(kv * G + g, heads_[static_cast<std::size_t>(g)]);
    for (const PlanBlock* block = tile_.block_begin; block != tile_.block_end; ++block) {
      tile_.read_block(*block, tile_.a.gate.mode != GateMode::hard);
      for (Head& h : heads_) step(h);
    }
    for (std::int64_t g = 0; g < G; ++g) finish(kv * G + g, heads_[static_cast<std::size_t>(g)]);
  }

 private:
  struct Head {
    T* queries;      // (Dp, kTile), rotated, times scale / ln 2
    T* far_queries;  // the same at position far_distance
    T* out;          // (Dp, kTile), not yet divided
    T* highest;      // (kTile) running maximum
    T* denominator;  // (kTile)
  };

  void begin(std::int64_t h, Head& head) {
    const T factor = static_cast<T>(tile_.a.scale * kLog2E);
    tile_.read_queries(h, tile_.row_scratch);
    transpose_in(tile_.row_scratch, tile_.nq, tile_.Dp, tile_.lanes, factor, head.queries);
    if (tile_.has_far()) {
      tile_.read_far_queries(h, tile_.row_scratch);
      transpose_in(tile_.row_scratch, tile_.nq, tile_.Dp, tile_.lanes, factor, head.far_queries);
    }
    std::fill(head.out, head.out + tile_.Dp * kTile, T(0));
    std::fill(head.highest, head.highest + kTile, T(kNothing));
    std::fill(head.denominator, head.denominator + kTile, T(0));
  }

  void step(Head& head) {
    tile_.make_logits(head.queries, head.far_queries, logits_);
    if (advance_block(head)) {
      for (std::ptrdiff_t d = 0; d < tile_.D; ++d) {
        for (std::ptrdiff_t l = 0; l < tile_.lanes; l += kLanes<T>) {
          T* o = head.out + d * kTile + l;
          store(o, Vec<T>(load(o) * load(shrink_ + l)));
        }
      }
    }
    if (tile_.values_finite) {
      multiply<T, Layout::transposed, Store::add>(tile_.D, tile_.lanes, tile_.count, tile_.values, tile_.Dp, logits_,
                                                  kTile, head.out, kTile);
    } else {
      multiply_seen_queries(tile_.D, tile_.lanes, tile_.count, tile_.values, tile_.Dp, logits_, kTile, head.out, kTile);
    }
  }

  bool advance_block(Head& head) {
    auto call = [&](auto f) { return f(tile_, logits_, head.highest, head.denominator, shrink_); };
    if (!tile_.masked) return call(advance<T, false, Weight::none>);
    switch (tile_.gated ? weight_of(tile_.a.gate.mode) : Weight::none) {
      case Weight::kv: return call(advance<T, true, Weight::kv>);
      case Weight::value: return call(advance<T, true, Weight::value>);
      case Weight::prob: return call(advance<T, true, Weight::prob>);
      case Weight::none: break;
    }
    return call(advance<T, true, Weight::none>);
  }

  void finish(std::int64_t h, Head& head) {
    const SoftmaxForwardArgs& a = tile_.a;
    for (std::ptrdiff_t l = 0; l < tile_.nq; ++l) {
      const T sum = head.denominator[l];
      shrink_[l] = sum == 0 ? T(0) : 1 / sum;
      if (a.statistics_BHT == nullptr) continue;
      static_cast<T*>(a.statistics_BHT)[(tile_.b * a.H + h) * a.T + tile_.q0 + l] =
          sum == 0 ? T(-kNothing) : head.highest[l] + std::log2(sum);
    }
    transpose_out(head.out, tile_.nq, tile_.Dp, shrink_, tile_.row_scratch);
    auto* out = static_cast<std::byte*>(a.out_BTHD);
    for (std::ptrdiff_t i = 0; i < tile_.nq; ++i) {
      const std::int64_t at = ((tile_.b * a.T + tile_.q0 + i) * a.H + h) * a.D;
      store_row(tile_.row_scratch + i * tile_.Dp, tile_.D, out + at * static_cast<std::int64_t>(size_of(a.dtype)),
                a.dtype);
    }
  }

  Tile<T> tile_;
  std::vector<Head> heads_;
  T* logits_;  // (count, kTile)
  T* shrink_;  // (kTile)
};

// Heads (row, key-value head) whose packed keys exist at the same time: one a thread, or more while they fit 32 MiB.
template <class T>
std::int64_t heads_at_once(const SoftmaxForwardArgs& a) {
  constexpr std::int64_t kBytes = std::int64_t{32} << 20;
  const std::int64_t bytes =
      std::max<std::int64_t>(1, PackedKeys<T>::elements(a) * static_cast<std::int64_t>(sizeof(T)));
  return std::clamp<std::int64_t>(std::max<std::int64_t>(kBytes / bytes, num_threads()), 1,
                                  std::max<std::int64_t>(1, a.B * a.Hkv));
}

template <class T>
void forward(const SoftmaxForwardArgs& a) {
  const std::int64_t tiles = a.plan.tiles, heads = a.B * a.Hkv, group = heads_at_once<T>(a);
  Arena<T> memory(a.workspace, static_cast<std::size_t>(group * PackedKeys<T>::elements(a)));
  std::vector<PackedKeys<T>> packed;
  for (std::int64_t h = 0; h < group; ++h) packed.emplace_back(a, memory);
  for (std::int64_t base = 0; base < heads; base += group) {
    const std::int64_t count = std::min(group, heads - base);
    parallel_for(count * tiles, 16, [&](std::int64_t first, std::int64_t last) {
      Arena<T> arena(Forward<T>::scratch(a));
      const Forward<T> work(a, arena);
      for (std::int64_t x = first; x < last; ++x) {
        const std::int64_t j = x % tiles * kTile;
        work.pack(base + x / tiles, j, std::min(a.T, j + kTile), packed[static_cast<std::size_t>(x / tiles)]);
      }
    });
    parallel_for(count * tiles, grain_of(a, heads * tiles), [&](std::int64_t first, std::int64_t last) {
      Arena<T> arena(Forward<T>::scratch(a));
      Forward<T> work(a, arena);
      for (std::int64_t x = first; x < last; ++x) {
        // First, last, second, last but one: under a causal plan every stretch of this order costs about the same.
        const std::int64_t y = x % tiles, t = y % 2 == 0 ? y / 2 : tiles - 1 - y / 2;
        const std::int64_t head = base + x / tiles;
        work.run(head / a.Hkv, head % a.Hkv, t, packed[static_cast<std::size_t>(x / tiles)]);
      }
    });
  }
}

}  // namespace

std::size_t workspace_bytes(const SoftmaxForwardArgs& a) {
  const auto bytes = [&]<class T>() {
    return static_cast<std::size_t>(heads_at_once<T>(a) * PackedKeys<T>::elements(a)) * sizeof(T);
  };
  return a.dtype == DType::f64 ? bytes.template operator()<double>() : bytes.template operator()<float>();
}

void run(const SoftmaxForwardArgs& a) {
  if (a.dtype == DType::f64) forward<double>(a);
  else forward<float>(a);
}

}  // namespace sieve::cpu
