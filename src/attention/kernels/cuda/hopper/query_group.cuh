// The consumers' side of key_stream.cuh: a warpgroup's 64 queries, which pairs of a block count, and rows on their way
// between shared memory, registers and results.
#pragma once

#include "attention/kernels/cuda/hopper/key_stream.cuh"

namespace sieve::cuda::hopper {

inline constexpr int kPairs =
    kBlockKeys / 2;  // pairs of a (64, 64) product that a thread holds, layout: primitives.cuh
inline constexpr float kMaskedLogit = static_cast<float>(kNothing);

__device__ inline int quad_lane() { return static_cast<int>(threadIdx.x) % 4; }
// The row of element x of an accumulator among the thread's two, and its column less 2 (lane % 4).
__device__ inline constexpr int row_at(int x) { return x / 2 % 2; }
__device__ inline constexpr int column_at(int x) { return x / 4 * 8 + x % 2; }

// What a block means to a warpgroup; the same for all its threads.
struct BlockClass {
  bool seen = false, masked = false, gated = false, mixed = false, last = false;

  BlockClass() = default;
  __device__ BlockClass(const KeyScalars& keys, int group) {
    const std::uint32_t all = __shfl_sync(0xffffffffu, keys.flags, 0), own = all >> group;
    seen = (own & kSeen) != 0, masked = (own & kMasked) != 0, gated = (own & kGated) != 0;
    mixed = (own & kMixed) != 0, last = (all & kLast) != 0;
  }
};

__device__ inline int thread_of_group() { return opaque(static_cast<int>(threadIdx.x % kWarpgroup)); }

// The thread's two queries, i and i + 8, and the first key that each sees in the window.
struct OwnQueries {
  int i, begin[2];

  __device__ OwnQueries(const Engine& e, const Tile& t, int group) {
    const int thread = thread_of_group();
    i = t.q0 + group * kBlockKeys + thread / 32 * 16 + thread % 32 / 4;
    begin[0] = span_of(e, kNearSpan, t.b, i).begin, begin[1] = span_of(e, kNearSpan, t.b, i + 8).begin;
  }
};
// The part of tile_descriptor that moves, in steps of 16 bytes. Additions lead from tile to tile and from step to step:
// a product waits for one instruction, not for an address to be taken apart. Known once, the same for a whole warp.
__device__ inline std::uint32_t warp_descriptor(const unsigned char* tile) {
  return __shfl_sync(0xffffffffu, (shared_address(tile) & 0x3ffff) >> 4, 0);
}
__device__ inline std::uint64_t descriptor_of(std::uint32_t at, std::uint32_t slab_bytes = 16) {
  return tile_descriptor(0, slab_bytes) + at;
}

// A warpgroup's end of the stream, and its own tiles (64, D): queries, then output gradients if kLeft is 2.
template <int D, int kLeft>
struct Consumer {
  using Ring = KeyRing<D, kLeft>;
  static constexpr std::uint32_t kTileStep = Ring::kTileBytes >> 4;
  const Engine& e;
  const Ring ring;
  const Items& items;
  const CUtensorMap *queries, *douts;
  const int group;
  const std::uint32_t ring_at, left_at;  // warp_descriptor of the first stage's keys, of the own tiles
  Cursor<Ring::kStages> at{};
  BlockClass now;  // of the block that was opened last
  int held = 0;    // stage of a block that is not given back yet

  __device__ Consumer(const Engine& engine, const Ring& memory, const Items& work, const CUtensorMap* q,
                      const CUtensorMap* dout, int own)
      : e(engine),
        ring(memory),
        items(work),
        queries(q),
        douts(dout),
        group(own),
        ring_at(warp_descriptor(memory.keys(0))),
        left_at(warp_descriptor(memory.left(own, 0))) {}
  __device__ Tile tile(unsigned item) const { return Tile(e, items, item, kTileQueries<D>); }
  // Starts the copies of the warpgroup's tiles; all its threads are done with the last ones.
  __device__ __forceinline__ void fetch(unsigned item) const {
    if (item >= items.count || thread_of_group() != 0) return;
    const Tile t = tile(item);
    std::uint64_t* full = ring.left_full(group);
    arrive_expecting(full, kLeft * Ring::kTileBytes);
#pragma unroll
    for (int which = 0; which < kLeft; ++which) {
#pragma unroll
      for (int s = 0; s < D / kSlabFeatures; ++s) {
        copy_box(ring.left(group, which) + s * kSlabBytes, which == 0 ? queries : douts, full, s * kSlabFeatures, t.h,
                 t.q0 + group * kBlockKeys, t.b);
      }
    }
  }
  // The lines that the warpgroup's share of a tile starts with, ahead of time: a thread asks for those of one query.
  __device__ __forceinline__ void ask_for(unsigned item, bool gates) const {
    if (item >= items.count) return;
    const Tile t = tile(item);
    const int thread = thread_of_group(), i = t.q0 + group * kBlockKeys + thread % kBlockKeys;
    if (i >= e.T) return;
    if (thread < kBlockKeys && gates) ask_for_line(e.gate.tau + t.list_row(e) * e.T + i);
    if constexpr (kLeft == 2) {
      const Rows& rows = thread < kBlockKeys ? e.q : e.dout;
      const auto* scalars = static_cast<const float*>(thread < kBlockKeys ? e.statistics : e.delta);
      ask_for_line(scalars + t.query_row(e, i));
      const bf16* row = static_cast<const bf16*>(rows.base) + (t.b * e.T + i) * rows.stride + rows.offset + t.h * D;
#pragma unroll
      for (int s = 0; s < D / kSlabFeatures; ++s) ask_for_line(row + s * kSlabFeatures);
    }
  }
  __device__ __forceinline__ void await_left(unsigned item) const { wait(ring.left_full(group), item / gridDim.x & 1); }
  __device__ __forceinline__ void meet_group() const { meet(1 + group, kWarpgroup); }
  // Waits for the block at `at`.
  __device__ __forceinline__ BlockClass open() const {
    wait(ring.full(at.stage), at.phase);
    return BlockClass(ring.scalars(at.stage), group);
  }
  // Blocks from `at` on that can arrive while `held` is held: the ring has no stage for more.
  __device__ __forceinline__ int reach() const {
    const int past = at.stage - held;
    return past > 0 ? Ring::kStages - past : -past;
  }
  // Goes to the tile's next block that concerns the warpgroup and gives those before it back. False: none is left or,
  // where one is held, in reach.
  template <bool kHolds>
  __device__ __forceinline__ bool find() {
    for (int most = kHolds ? reach() : 1; most > 0 && !now.last; most -= kHolds) {
      const BlockClass next = open();
      if (kHolds && !next.seen && !Ring::kAnyOrder) return false;
      now = next;
      if (now.seen) return true;
      release(at.stage);
      at.advance();
    }
    return false;
  }
  __device__ __forceinline__ void release(int stage) const {
    __syncwarp();
    if (thread_of_group() % 32 == 0) arrive(ring.empty(stage));
  }
  // For descriptor_of.
  __device__ __forceinline__ std::uint32_t keys(int stage) const {
    return ring_at + static_cast<std::uint32_t>(stage) * (2 * kTileStep);
  }
  __device__ __forceinline__ std::uint32_t values(int stage) const { return keys(stage) + kTileStep; }
  __device__ __forceinline__ std::uint32_t left(int which) const {
    return left_at + static_cast<std::uint32_t>(which) * kTileStep;
  }
};

// How many of the thread's two queries there are.
__device__ inline int real_of(const Engine& e, int i) { return i + 8 < e.T ? 2 : (i < e.T ? 1 : 0); }

// f(x, alive) for every element of a product with a block of the window.
template <class F>
__device__ __forceinline__ void visit_window(const OwnQueries& q, int key, const F& f) {
  const int column = key + 2 * quad_lane(), low[2] = {q.begin[0] - column, q.begin[1] - column}, high = q.i - column;
#pragma unroll
  for (int x = 0; x < kPairs; ++x) {
    const int at = column_at(x), r = row_at(x);
    f(x, at >= low[r] && at <= high + 8 * r);
  }
}
// The same for a gathered block.
template <class F>
__device__ __forceinline__ void visit_rows(const OwnQueries& q, const KeyScalars& keys, const F& f) {
#pragma unroll
  for (int n = 0; n < kPairs; n += 4) {
    const int at = 2 * n + 2 * quad_lane();
    const int2 from = *reinterpret_cast<const int2*>(keys.from + at), to = *reinterpret_cast<const int2*>(keys.to + at);
#pragma unroll
    for (int x = 0; x < 4; ++x) {
      const int i = q.i + 8 * row_at(x);
      f(n + x, i >= (x % 2 == 0 ? from.x : from.y) && i < (x % 2 == 0 ? to.x : to.y));
    }
  }
}

template <class F>
__device__ __forceinline__ void visit_block(const OwnQueries& q, const KeyScalars& keys, const F& f) {
  const int first = __shfl_sync(0xffffffffu, keys.first, 0);
  if (first >= 0) visit_window(q, first, f);
  else visit_rows(q, keys, f);
}

// tau of the thread's two queries less the tile's center; where it is -inf, low enough for every m to be 1.
__device__ inline void load_tau(const Engine& e, const Tile& t, const OwnQueries& q, float (&tau)[2]) {
  const double center = t.center(e);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const double own = q.i + 8 * r < e.T ? e.gate.tau[t.list_row(e) * e.T + q.i + 8 * r] : 0;
    tau[r] = own > -1e300 ? static_cast<float>(own - center) : kMaskedLogit;
  }
}

// A warpgroup's tile as the left operand of products.
template <int D>
__device__ inline void hold_left(std::uint32_t (&a)[D / 16][4], const unsigned char* tile) {
  const auto thread = static_cast<std::uint32_t>(thread_of_group());
  const std::uint32_t row = thread / 32 * 16 + thread % 16, half = thread / 16 % 2;
#pragma unroll
  for (int d = 0; d < D / 16; ++d) {
    const unsigned char* at = tile + d / 4 * kSlabBytes + swizzled(row, d % 4 * 2 + half);
    load_matrices(a[d], reinterpret_cast<const bf16*>(at));
  }
}
// Products as in primitives.cuh, tiles given as for descriptor_of. They only issue.
inline constexpr std::uint32_t kSlabStep = kSlabBytes >> 4, kFeatureStep = 32 >> 4, kRowStep = 16 * kSlabRowBytes >> 4;
// c (64, 64) = A B^T, A in registers.
template <int D>
__device__ __forceinline__ void issue_held(float (&c)[kPairs], const std::uint32_t (&a)[D / 16][4], std::uint32_t b) {
#pragma unroll
  for (int d = 0; d < D / 16; ++d)
    product_step<kBlockKeys, false>(c, a[d], descriptor_of(b + d / 4 * kSlabStep + d % 4 * kFeatureStep), d > 0);
}
// c (64, 64) = A B^T.
template <int D>
__device__ __forceinline__ void issue_pairs(float (&c)[kPairs], std::uint32_t a, std::uint32_t b) {
#pragma unroll
  for (int d = 0; d < D / 16; ++d) {
    const std::uint32_t step = d / 4 * kSlabStep + d % 4 * kFeatureStep;
    product_step<kBlockKeys, false>(c, descriptor_of(a + step), descriptor_of(b + step), d > 0);
  }
}
// c (64, D) += A B over the rows of a block, A in registers.
template <int D>
__device__ __forceinline__ void issue_sums(float (&c)[D / 2], const std::uint32_t (&a)[kBlockKeys / 16][4],
                                           std::uint32_t b) {
#pragma unroll
  for (int k = 0; k < kBlockKeys / 16; ++k)
    product_step<D, true>(c, a[k], descriptor_of(b + k * kRowStep, kSlabBytes), true);
}

// Lane c of four has words w[n] of columns 8 n + 2 c + {0, 1} and gets columns 8 c .. 8 c + 7.
__device__ inline void gather_columns(std::uint32_t (&w)[4]) {
  const bool odd = (threadIdx.x & 1) != 0, high = (threadIdx.x & 2) != 0;
#pragma unroll
  for (int n = 0; n < 4; n += 2) {
    const std::uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? w[n] : w[n + 1], 1);
    w[n] = odd ? got : w[n], w[n + 1] = odd ? w[n + 1] : got;
  }
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const std::uint32_t got = __shfl_xor_sync(0xffffffffu, high ? w[n] : w[n + 2], 2);
    w[n] = high ? got : w[n], w[n + 2] = high ? w[n + 2] : got;
  }
}
// The thread's two rows of an accumulator (64, D) in bf16, each row times its factor, in pieces of 16 bytes. All lanes
// of a warp call it; only the first `real` rows are written.
template <int D>
__device__ inline void store_rows(const float (&c)[D / 2], const float (&factor)[2], bf16* const (&row)[2], int real) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int n = 0; n < D / 8; n += 4) {
      std::uint32_t w[4];
#pragma unroll
      for (int x = 0; x < 4; ++x)
        w[x] = pack_pair(c[4 * (n + x) + 2 * r] * factor[r], c[4 * (n + x) + 2 * r + 1] * factor[r]);
      gather_columns(w);
      if (r < real) *reinterpret_cast<uint4*>(row[r] + 8 * (n + quad_lane())) = make_uint4(w[0], w[1], w[2], w[3]);
    }
  }
}

// The plan's lists must be those of these tiles.
template <int D>
Items items_of(const Engine& e) {
  const std::int64_t tiles = (e.T + kTileQueries<D> - 1) / kTileQueries<D>, count = e.B * e.H * tiles;
  require(e.plan.from_BHT == nullptr || (e.plan.tiles.queries == kTileQueries<D> && e.plan.tiles.lists == tiles),
          "attention", "lists of ", e.plan.tiles.queries, " queries for tiles of ", kTileQueries<D>);
  require(count < (std::int64_t{1} << 31), "attention", count, " tiles of queries exceed a launch");
  return {static_cast<unsigned>(tiles), static_cast<unsigned>(e.H), static_cast<unsigned>(e.group()),
          static_cast<unsigned>(count)};
}

}  // namespace sieve::cuda::hopper
