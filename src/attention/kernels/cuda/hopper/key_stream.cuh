// Keys on their way to the tensor cores: what forward and the queries' backward share of moving them. A block of
// threads is persistent and takes tiles of queries (one head, 64 queries for every warpgroup of consumers) in turn. Its
// first warpgroup fills a ring of stages with blocks of 64 keys and their values: the tile's window first, from the
// diagonal down to its left edge, by the tensor copy engine; then the rows of the tile's list, gathered 16 bytes at a
// time. With every block comes what the consumers must know of it. They walk all blocks in this order and give every
// stage back, also of blocks that they skip.
#pragma once

#include <cstddef>

#include "attention/kernels/cuda/hopper/hopper.h"
#include "attention/kernels/cuda/hopper/primitives.cuh"

namespace sieve::cuda::hopper {

inline constexpr int kBlockKeys = 64;                          // keys of a stage, queries of a warpgroup
inline constexpr int kSlabBytes = kBlockKeys * kSlabRowBytes;  // 64 features of 64 rows
template <int D>
inline constexpr int kGroups = D == 64 ? 3 : 2;  // warpgroups of consumers
template <int D>
inline constexpr int kTileQueries = kGroups<D>* kBlockKeys;
template <int D>
inline constexpr int kStreamThreads = (kGroups<D> + 1) * kWarpgroup;
// Registers of a thread: 65,536 are shared by all.
template <int D>
inline constexpr int kProducerRegisters = D == 64 ? 32 : 40;
template <int D>
inline constexpr int kConsumerRegisters = D == 64 ? 160 : 232;
inline constexpr int kProducerWarps = kWarpgroup / 32;

// What warpgroup w has to do with a block: bit w of groups of four bits. kMasked: some of its queries may not see some
// of the keys; kGated: for some pair m is not known to be 1, or may lie in the band; kMixed: some pair does not count
// or lies outside the band. kLast: of its tile.
enum BlockBits : std::uint32_t { kSeen = 1, kMasked = 1 << 4, kGated = 1 << 8, kMixed = 1 << 12, kLast = 1 << 16 };

// What is known of the keys of a block. Gathered ones: query i sees key r if from <= i < to (none: an empty interval).
struct KeyScalars {
  std::int32_t from[kBlockKeys], to[kBlockKeys];
  std::int32_t band_from[kBlockKeys], band_to[kBlockKeys];
  float z[kBlockKeys];  // less the tile's `center`
  std::uint32_t flags;  // BlockBits
  std::int32_t first;   // first key of a block of the window; -1: gathered
  std::int32_t padding[2];
};

// What a launch works through: tiles of `heads` query heads of every batch row, `group` of which share keys.
struct Items {
  unsigned tiles, heads, group, count;
};
// The tile of queries that a block of threads works on.
struct Tile {
  int b, h, kv, tile, q0, q1;

  // Heads slow, tiles of a head ascending: neighbours in time share keys.
  __device__ Tile(const Engine& e, const Items& items, unsigned item, int queries) {
    const unsigned head = item / items.tiles;
    tile = static_cast<int>(item - head * items.tiles);
    b = static_cast<int>(head / items.heads), h = static_cast<int>(head - b * items.heads);
    kv = static_cast<int>(static_cast<unsigned>(h) / items.group);
    q0 = tile * queries;
    q1 = e.T - q0 > queries ? q0 + queries : static_cast<int>(e.T);
  }
  // Of (B, Hs), of (B, Hs, lists), of (B, H, T).
  __device__ std::int64_t list_row(const Engine& e) const { return e.list_row(b, kv); }
  __device__ std::int64_t list(const Engine& e) const { return list_row(e) * e.plan.tiles.lists + tile; }
  __device__ std::int64_t query_row(const Engine& e, int i) const { return (b * e.H + h) * e.T + i; }
  // First keys of the leftmost and of the diagonal block of the window.
  __device__ int first_block(const Engine& e) const {
    return spans::align_down(span_of(e, kNearSpan, b, q0).begin, kBlockKeys);
  }
  __device__ int last_block() const { return spans::align_down(q1 - 1, kBlockKeys); }
  __device__ int list_end(const Engine& e, int run) const {
    return e.plan.from_BHT != nullptr ? e.plan.tiles.ends[list(e) * kRowRuns + run] : 0;
  }
  // z and tau may share a large slope: both are taken less this in fp64 before they become fp32.
  __device__ double center(const Engine& e) const {
    const double tau = e.gate.tau[list_row(e) * e.T + q0];
    return tau > -1e300 ? tau : 0;
  }
};
__device__ inline int blocks_of(int keys) { return (keys + kBlockKeys - 1) / kBlockKeys; }

// Where a walk over the ring stands. A stage's barriers complete one phase per use.
template <int kStages>
struct Cursor {
  int stage = 0;
  std::uint32_t phase = 0;

  __device__ void advance() {
    const bool around = stage + 1 == kStages;
    phase ^= around ? 1 : 0;
    stage = around ? 0 : stage + 1;
  }
};

// Shared memory of a block of threads: stages of one key and one value tile; kLeft tiles (64, D) of each consuming
// warpgroup (queries, gradients of the output); scalars; barriers.
template <int D, int kLeft>
struct KeyRing {
  static constexpr int kTileBytes = D / kSlabFeatures * kSlabBytes;
  static constexpr int kStages = D == 64 ? 8 : 6 - kLeft;
  // A warp of producers only ever meets its own stages, then, and knows how often each was given back. Else it knows
  // that of the stage before only, and stages must be given back in their order.
  static constexpr bool kAnyOrder = kStages % kProducerWarps == 0;
  static constexpr int kLeftAt = kStages * 2 * kTileBytes;
  static constexpr int kScalarsAt = kLeftAt + kGroups<D> * kLeft * kTileBytes;
  static constexpr int kBarriersAt = kScalarsAt + kStages * static_cast<int>(sizeof(KeyScalars));
  static constexpr int kBytes = kBarriersAt + (2 * kStages + kGroups<D>)*8;
  static constexpr int kAskFor = kBytes + kTileAlignment;  // the base is only known to be 16-byte aligned
  static_assert(kAskFor <= 232448 && sizeof(KeyScalars) % 16 == 0);

  unsigned char* base;

  __device__ KeyRing() {
    unsigned char* memory = dynamic_shared();
    base = memory + (kTileAlignment - shared_address(memory) % kTileAlignment) % kTileAlignment;
  }
  __device__ unsigned char* keys(int stage) const { return base + stage * 2 * kTileBytes; }
  __device__ unsigned char* values(int stage) const { return keys(stage) + kTileBytes; }
  __device__ unsigned char* left(int group, int which) const {
    return base + kLeftAt + (group * kLeft + which) * kTileBytes;
  }
  __device__ KeyScalars& scalars(int stage) const { return reinterpret_cast<KeyScalars*>(base + kScalarsAt)[stage]; }
  __device__ std::uint64_t* barriers() const { return reinterpret_cast<std::uint64_t*>(base + kBarriersAt); }
  __device__ std::uint64_t* full(int stage) const { return barriers() + stage; }
  __device__ std::uint64_t* empty(int stage) const { return barriers() + kStages + stage; }
  __device__ std::uint64_t* left_full(int group) const { return barriers() + 2 * kStages + group; }

  // All threads of the block. Full: the lanes of a producer's warp arrive; empty: every consuming warp.
  __device__ void open() const {
    if (threadIdx.x == 0) {
      for (int s = 0; s < kStages; ++s) {
        init_barrier(full(s), 32);
        init_barrier(empty(s), kGroups<D> * kWarpgroup / 32);
      }
      for (int g = 0; g < kGroups<D>; ++g) init_barrier(left_full(g), 1);
      publish_barriers();
    }
    __syncthreads();
  }
};

// The producer: four warps that take blocks in turn, so that the copies of four blocks are under way whatever a warp
// waits for. kScored: consumers want z and bands of keys that are not steady (RowLists).
template <int D, int kLeft, bool kScored>
struct KeyProducer {
  using Ring = KeyRing<D, kLeft>;
  static constexpr int kWarps = kProducerWarps, kHalf = kBlockKeys / 2;
  // A warp that finds its last block's stage free knows that the stage of this one is at most one use behind: barriers
  // tell only odd uses from even ones.
  static_assert(Ring::kStages >= kWarps);
  // A long ring hides how long a block takes to arrive; where it is short, registers (there are more) shorten that:
  // what is known of the keys is asked for before their stage is free, two passes of copies are on their way at once.
  static constexpr bool kKnowsEarly = D != 64;
  static constexpr int kPasses = kKnowsEarly ? 2 : 1;
  const Engine& e;
  const Ring ring;
  const int warp;     // this one
  unsigned done = 0;  // blocks that all warps have taken together; registers are few

  __device__ static int stage_of(unsigned block) { return static_cast<int>(block % Ring::kStages); }
  __device__ void await_empty(unsigned block) const {
    wait(ring.empty(stage_of(block)), (block / Ring::kStages & 1) ^ 1);
  }

  // What is known of one key, on its way from global memory to a stage.
  struct Known {
    std::int32_t from = 0, to = 0, band_from = 0, band_to = 0;
    float z = 0;
  };

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }

  __device__ void window(const Tile& t, const CUtensorMap* k, const CUtensorMap* v, bool rows_follow) {
    int any[kGroups<D>], all[kGroups<D>];  // first key that some, that every query of a warpgroup sees
#pragma unroll
    for (int w = 0; w < kGroups<D>; ++w) {
      const int qa = t.q0 + w * kBlockKeys, qb = qa + kBlockKeys < t.q1 ? qa + kBlockKeys : t.q1;
      any[w] = span_of(e, kNearSpan, t.b, qa).begin, all[w] = span_of(e, kNearSpan, t.b, qb - 1).begin;
    }
    const int first = t.first_block(e);
    for (int key = t.last_block(); key >= first; key -= kBlockKeys, ++done) {
      if (static_cast<int>(done % kWarps) != warp) continue;
      await_empty(done);
      const int stage = stage_of(done);
      if (lane() == 0) {
        std::uint32_t flags = key == first && !rows_follow ? kLast : 0;
#pragma unroll
        for (int w = 0; w < kGroups<D>; ++w) {
          const int qa = t.q0 + w * kBlockKeys;
          if (qa < t.q1 && key <= qa && key + kBlockKeys > any[w]) flags |= kSeen << w;
          if (key == qa || key < all[w]) flags |= kMasked << w;
        }
        ring.scalars(stage).flags = flags, ring.scalars(stage).first = key;
        copy_block(t, k, v, key, stage);
      } else {
        arrive(ring.full(stage));
      }
    }
  }
  // One thread: its arrival, too.
  __device__ void copy_block(const Tile& t, const CUtensorMap* k, const CUtensorMap* v, int key, int stage) const {
    std::uint64_t* full = ring.full(stage);
    arrive_expecting(full, 2 * Ring::kTileBytes);
#pragma unroll
    for (int s = 0; s < D / kSlabFeatures; ++s) {
      copy_box(ring.keys(stage) + s * kSlabBytes, k, full, s * kSlabFeatures, t.kv, key, t.b);
      copy_box(ring.values(stage) + s * kSlabBytes, v, full, s * kSlabFeatures, t.kv, key, t.b);
    }
  }

  __device__ Known look_up(const Tile& t, int key) const {
    Known n;
    if (key < 0) return n;
    const std::int64_t j = t.list_row(e) * e.T + key;
    const Interval seen = spans::selected_queries(key, {e.plan.from_BHT[j], e.plan.to_BHT[j]}, e.plan.window);
    n.from = seen.begin, n.to = seen.end;
    if constexpr (kScored) {
      n.z = static_cast<float>(e.gate.z[j] - t.center(e));  // read anew each time: registers are few
      n.band_from = e.gate.band_from[j], n.band_to = e.gate.band_to[j];
    }
    return n;
  }
  // Of the key for all warpgroups.
  __device__ std::uint32_t flags_of(const Tile& t, const Known& n) const {
    std::uint32_t flags = 0;
#pragma unroll
    for (int w = 0; w < kGroups<D>; ++w) {
      const int qa = t.q0 + w * kBlockKeys, qb = qa + kBlockKeys < t.q1 ? qa + kBlockKeys : t.q1;
      const bool seen = n.from < qb && n.to > qa && qa < qb, whole = n.from <= qa && n.to >= qb;
      if (seen) flags |= kSeen << w;
      if (!whole) flags |= kMasked << w;
      if (kScored && seen && n.band_from < qb) flags |= kGated << w;
      if (kScored && !(whole && n.band_from <= qa && n.band_to >= qb)) flags |= kMixed << w;
    }
    return flags;
  }
  // Every query sees the keys of a steady block with m = 1.
  __device__ std::uint32_t steady_flags(const Tile& t) const {
    std::uint32_t flags = 0;
#pragma unroll
    for (int w = 0; w < kGroups<D>; ++w) {
      if (t.q0 + w * kBlockKeys < t.q1) flags |= kSeen << w;
    }
    return flags;
  }
  // Writes what is known of key r of a stage; its flags.
  __device__ std::uint32_t publish(KeyScalars& to, const Tile& t, int r, const Known& n) const {
    to.from[r] = n.from, to.to[r] = n.to;
    if constexpr (kScored) to.z[r] = n.z, to.band_from[r] = n.band_from, to.band_to[r] = n.band_to;
    return flags_of(t, n);
  }

  // 64 rows of keys and values, 8 lanes each; zeros where there is no key. k and v are the same for all lanes.
  __device__ void gather(int stage, const unsigned char* k, const unsigned char* v, const int (&key)[2]) const {
    const auto k_stride = static_cast<std::uint32_t>(e.k.stride * 2),
               v_stride = static_cast<std::uint32_t>(e.v.stride * 2);
    const std::uint32_t keys = shared_address(ring.keys(stage)), values = shared_address(ring.values(stage));
#pragma unroll kPasses
    for (int pass = 0; pass < kBlockKeys / 4; ++pass) {
      const int row = pass * 4 + lane() / 8;
      const int j = __shfl_sync(0xffffffffu, row < kHalf ? key[0] : key[1], row % kHalf);
      const std::uint64_t real = static_cast<std::uint32_t>(j < 0 ? 0 : j), piece = lane() % 8 * 16u;
      const unsigned char *k_row = k + (real * k_stride + piece), *v_row = v + (real * v_stride + piece);
      const std::uint32_t to = swizzled(static_cast<std::uint32_t>(row), static_cast<std::uint32_t>(lane() % 8));
#pragma unroll
      for (int s = 0; s < D / kSlabFeatures; ++s) {
        copy_16(keys + s * kSlabBytes + to, k_row + s * kSlabRowBytes, j >= 0);
        copy_16(values + s * kSlabBytes + to, v_row + s * kSlabRowBytes, j >= 0);
      }
    }
    commit_copies();
  }
  // The row of position 0.
  __device__ const unsigned char* source(const Rows& rows, const Tile& t) const {
    const auto* base = static_cast<const unsigned char*>(rows.base);
    return base + (t.b * e.T * rows.stride + rows.offset + t.kv * D) * 2;
  }

  // Ids are loaded ahead; what is known of the keys arrives beside their rows.
  __device__ void rows(const Tile& t, int count) {
    const int steady = t.list_end(e, kScored ? kSteadyRows : kWholeRows), blocks = blocks_of(count);
    const std::int32_t* list = e.plan.tiles.keys + t.list(e) * e.plan.tiles.capacity;
    const auto id = [&](int block, int half) {
      const int entry = block * kBlockKeys + half * kHalf + lane();
      return entry < count ? list[entry] : -1;
    };
    const unsigned char *k = source(e.k, t), *v = source(e.v, t);
    const int mine = static_cast<int>((static_cast<unsigned>(warp) - done) % kWarps);
    int key[2] = {id(mine, 0), id(mine, 1)};
    for (int block = mine; block < blocks; block += kWarps) {
      const int stage = stage_of(done + block);
      const bool is_steady = (block + 1) * kBlockKeys <= steady;
      Known known[2];  // lane l knows the keys l and l + 32
      if (kKnowsEarly && !is_steady) known[0] = look_up(t, key[0]), known[1] = look_up(t, key[1]);
      await_empty(done + block);
      gather(stage, k, v, key);
      KeyScalars& scalars = ring.scalars(stage);
      std::uint32_t flags = steady_flags(t);
      if (!is_steady) {
        if (!kKnowsEarly) known[0] = look_up(t, key[0]);
        flags = publish(scalars, t, lane(), known[0]);
        if (!kKnowsEarly) {
          __syncwarp();  // one after the other
          known[1] = look_up(t, key[1]);
        }
        flags = __reduce_or_sync(0xffffffffu, flags | publish(scalars, t, lane() + kHalf, known[1]));
      }
      if (lane() == 0)
        scalars.flags = flags | (block + 1 == blocks ? static_cast<std::uint32_t>(kLast) : 0), scalars.first = -1;
      key[0] = id(block + kWarps, 0), key[1] = id(block + kWarps, 1);
      wait_copies<0>();
      fence_shared_for_async();
      arrive(ring.full(stage));
    }
    done += static_cast<unsigned>(blocks);
  }

  __device__ void run(const CUtensorMap* k, const CUtensorMap* v, const Items& items) {
    for (unsigned item = blockIdx.x; item < items.count; item += gridDim.x) {
      const Tile t(e, items, item, kTileQueries<D>);
      const int count = t.list_end(e, kRowRuns - 1);
      window(t, k, v, count > 0);
      if (count > 0) rows(t, count);
    }
  }
};

}  // namespace sieve::cuda::hopper
