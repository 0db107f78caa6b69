// Where the backward pass sums dK and dV, and how its work is cut into tasks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "attention/kernels/cpu/tile.h"
#include "core/parallel_for.h"

namespace sieve::cpu {

// Sums of one task over its tiles. A row is zeroed when it is first touched: a task whose queries see a part of the
// keys (a window, a chunk of the tiles) never looks at the rest.
template <class T>
class Slab {
 public:
  T* dk;                // (T, Dp), against keys at their own positions
  T* dv;                // (T, Dp)
  T* dk_far = nullptr;  // (T, Dp), against keys not rotated; null without far keys

  static std::ptrdiff_t elements(const SoftmaxForwardArgs& a) {
    return (a.rotary.far_distance >= 0 ? 3 : 2) * a.T * padded<T>(a.D);
  }
  Slab(const SoftmaxForwardArgs& a, Arena<T>& arena) : Dp_(padded<T>(a.D)), touched_(static_cast<std::size_t>(a.T)) {
    dk = arena.take(elements(a));
    dv = dk + a.T * Dp_;
    if (a.rotary.far_distance >= 0) dk_far = dv + a.T * Dp_;
  }

  void clear() { std::fill(touched_.begin(), touched_.end(), std::uint8_t{0}); }
  bool touched(std::int64_t j) const { return touched_[static_cast<std::size_t>(j)] != 0; }
  void touch(std::int64_t j) {
    if (touched(j)) return;
    touched_[static_cast<std::size_t>(j)] = 1;
    for (T* part : {dk, dv, dk_far}) {
      if (part != nullptr) std::fill(part + j * Dp_, part + (j + 1) * Dp_, T(0));
    }
  }

 private:
  std::ptrdiff_t Dp_;
  std::vector<std::uint8_t> touched_;
};

// Chunks of tiles per (row, key-value head): enough for 32 tasks, but at most H / Hkv + 2, which bounds the slabs of
// all: twice the elements of dqkv (D counted as Dp), three times with far keys. Elements are of the compute type: bf16
// gradients are summed in fp32, so that the bytes are four or six times dqkv's.
inline std::int64_t chunks_of(const SoftmaxForwardArgs& a) {
  constexpr std::int64_t kTasks = 32;
  const std::int64_t heads = std::max<std::int64_t>(1, a.B * a.Hkv);
  return std::max<std::int64_t>(1, std::min({(kTasks + heads - 1) / heads, a.H / a.Hkv + 2, a.plan.tiles}));
}

// Chunk c holds tiles [bounds[c], bounds[c + 1]): equal shares of the blocks visited.
inline std::vector<std::int64_t> chunk_bounds(const PlanView& plan, std::int64_t b, std::int64_t kv,
                                              std::int64_t chunks) {
  const std::int64_t p = (plan.batch_plans == 1 ? 0 : b) * plan.head_plans + (plan.head_plans == 1 ? 0 : kv);
  const std::int64_t* first = plan.tile_first + p * plan.tiles;
  const std::int64_t total = first[plan.tiles] - first[0];
  std::vector<std::int64_t> bounds(static_cast<std::size_t>(chunks + 1), plan.tiles);
  bounds[0] = 0;
  for (std::int64_t c = 1, t = 0; c < chunks; ++c) {
    while (t < plan.tiles && (first[t] - first[0]) * chunks < total * c) ++t;
    bounds[static_cast<std::size_t>(c)] = t;
  }
  return bounds;
}

// What tasks read and sum into. Enough heads to keep every thread busy: a task is a head, and each of `lots` threads
// works through its share of the heads with one slab. Few heads: a task is a chunk of the tiles of a head, with a slab
// of its own; the chunks of a head share its packed keys.
template <class T>
struct Workspace {
  std::int64_t chunks, lots;
  std::vector<PackedKeys<T>> packed;
  std::vector<Slab<T>> slabs;

  static std::int64_t lots_of(const SoftmaxForwardArgs& a) {
    const std::int64_t heads = a.B * a.Hkv;
    return std::max<std::int64_t>(1, std::min<std::int64_t>(num_threads(), heads / grain_of(a, heads)));
  }
  static std::size_t elements(const SoftmaxForwardArgs& a) {
    const std::int64_t chunks = chunks_of(a), heads = chunks > 1 ? a.B * a.Hkv : lots_of(a);
    return static_cast<std::size_t>(heads * (PackedKeys<T>::elements(a) + chunks * Slab<T>::elements(a)));
  }
  Workspace(const SoftmaxForwardArgs& a, Arena<T>& arena) : chunks(chunks_of(a)), lots(lots_of(a)) {
    const std::int64_t heads = chunks > 1 ? a.B * a.Hkv : lots;
    for (std::int64_t x = 0; x < heads; ++x) packed.emplace_back(a, arena);
    for (std::int64_t x = 0; x < heads * chunks; ++x) slabs.emplace_back(a, arena);
  }
};

}  // namespace sieve::cpu
