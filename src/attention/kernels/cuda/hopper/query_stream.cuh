// Keys' backward on sm_90a: a block owns 128 keys of one (row, key-value head) at a time and streams tiles of 64
// queries past them. What the passes over gathered rows and over spans share. Blocks stay: each takes every
// gridDim.x-th item.
//
// Warps 0 and 1 send queries: Q and dO tiles by the copy engine, per-query numbers by plain stores, in `kStages`
// stages.
//
// Warps 2 and 3 send keys: K, V and what is known of each key, an item ahead, in two buffers.
//
// Warps 4 to 11 are two warpgroups of 64 keys each: S^T = K Q^T, dP^T = V dO^T, dV += P^T dO, dK += dS^T Q.
//
// A key's number is a row of every product, hence in registers; a query's is a column, hence read from shared memory.
#pragma once

#include "attention/kernels/cuda/hopper/hopper.h"
#include "attention/kernels/cuda/hopper/primitives.cuh"

namespace sieve::cuda::hopper {

inline constexpr int kItemKeys = 128;               // keys of an item
inline constexpr int kStageQueries = 64;            // queries of a stage
inline constexpr int kSenders = 64;                 // threads that send queries, and as many that send keys
inline constexpr int kKeyThreads = 3 * kWarpgroup;  // of a block
inline constexpr int kConsumerWarps = 8;            // the last ones of a block
inline constexpr int kConsumers = 32 * kConsumerWarps;
inline constexpr std::int32_t kNever = 0x7fffffff;    // later than every query
inline constexpr float kNoWeight = -float(kNothing);  // statistics of a query beyond T: all its weights are 0
inline constexpr int kSenderBarrier = 1;              // hardware barrier of those that send keys
inline constexpr int kTurnBarrier = 2;                // and the first of two, of each warpgroup that consumes
static_assert(kSenders == kStageQueries, "a sender of queries fills the numbers of one");

// What the consumers know of a stage's queries.
struct QueryNumbers {
  alignas(16) float statistics[kStageQueries];
  float delta[kStageQueries];
  float tau[kStageQueries];           // rows: threshold less the item's center
  std::int32_t begin[kStageQueries];  // spans: first key that the query sees; kNever beyond T
  std::int32_t q0, last;              // first query; whether no stage of the item follows
};
// Of an item's keys. Rows beyond the list: every query sees them, none is in their band; nobody reads their sums.
struct KeyNumbers {
  Interval any[2], all[2];     // rows, of each warpgroup: queries that some key of it sees, and that all of them see
  std::int32_t gated_from[2];  // rows, of each warpgroup: first query of which some m may be below 1
  std::int32_t key[kItemKeys];
  std::int32_t from[kItemKeys], to[kItemKeys];  // rows: queries that see it
  std::int32_t band_from[kItemKeys], band_to[kItemKeys];
  float z[kItemKeys];             // rows: score less the item's center
  std::int64_t place[kItemKeys];  // spans: row of `partial` with the sum of the key's chunks; -1: none
};
struct Item {
  std::int32_t b, kv;
  std::int32_t first;           // rows: entry of the list; spans: key
  std::int32_t real;            // keys that exist; 0: there are no more items
  std::int32_t q_begin, q_end;  // rows: queries of the list
  std::int64_t place;           // rows: row of `partial` of the first key
  double center;                // subtracted from z and tau in fp64 before they become fp32
};

template <int D>
struct KeyShared {
  static constexpr int kSlabs = D / kSlabFeatures;
  static constexpr int kStages = D == 64 ? 4 : 2;
  static constexpr int kSenderRegisters = D == 64 ? 56 : 40, kConsumerRegisters = D == 64 ? 224 : 232;
  static constexpr int kKeySlab = kItemKeys * kSlabRowBytes, kQuerySlab = kStageQueries * kSlabRowBytes;  // bytes

  alignas(kTileAlignment) unsigned char k[2][kSlabs * kKeySlab];
  unsigned char v[2][kSlabs * kKeySlab];
  unsigned char q[kStages][kSlabs * kQuerySlab];
  unsigned char dout[kStages][kSlabs * kQuerySlab];
  QueryNumbers queries[kStages];
  KeyNumbers keys[2];
  Item items[2];
  std::uint64_t full[kStages], empty[kStages], keys_full[2], keys_empty[2];

  // All threads of the block.
  __device__ static KeyShared& open() {
    const std::uint32_t base = shared_address(dynamic_shared());
    auto& s = *reinterpret_cast<KeyShared*>(dynamic_shared() + (-base & (kTileAlignment - 1)));
    if (threadIdx.x == 0) {
      for (int x = 0; x < kStages; ++x) init_barrier(&s.full[x], kSenders), init_barrier(&s.empty[x], kConsumerWarps);
      for (int x = 0; x < 2; ++x) {
        init_barrier(&s.keys_full[x], kSenders);
        init_barrier(&s.keys_empty[x], kConsumerWarps + kSenders / 32);
      }
      publish_barriers();
    }
    __syncthreads();
    return s;
  }
};
template <int D>
constexpr std::size_t kKeySharedBytes = sizeof(KeyShared<D>) + kTileAlignment;

// The calling warp is done with what `bar` guards.
__device__ inline void release(std::uint64_t* bar) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) arrive(bar);
}

// Place in a ring of kSize buffers, and the parity of their uses so far.
template <unsigned kSize>
struct Ring {
  static_assert((kSize & (kSize - 1)) == 0, "the count runs over");
  unsigned count = 0;

  __device__ unsigned at() const { return count % kSize; }
  __device__ std::uint32_t phase() const { return count / kSize % 2; }
};

// ---- Senders of queries
// They have few registers: what an item says is read again from shared memory, which each barrier makes the compiler
// do.

// Sends a tile of 64 queries of head h.
template <int D, bool kRows, bool kSoft>
__device__ inline void send_tile(const Engine& e, const CUtensorMap* q_map, const CUtensorMap* dout_map,
                                 KeyShared<D>& s, const Item& item, int q0, int h, float tau, std::int32_t begin,
                                 bool last, Ring<KeyShared<D>::kStages>& ring) {
  using S = KeyShared<D>;
  const int thread = static_cast<int>(threadIdx.x), i = q0 + thread;
  float statistics = kNoWeight, delta = 0;
  if (i < e.T) {
    const std::int64_t at = (item.b * e.H + h) * e.T + i;
    statistics = static_cast<const float*>(e.statistics)[at];
    delta = static_cast<const float*>(e.delta)[at];
  }
  std::uint64_t* full = &s.full[ring.at()];
  wait(&s.empty[ring.at()], ring.phase() ^ 1);
  QueryNumbers& x = s.queries[ring.at()];
  if (thread == 0) {
    expect(full, 2 * S::kSlabs * S::kQuerySlab);
#pragma unroll
    for (int slab = 0; slab < S::kSlabs; ++slab) {
      copy_box(s.q[ring.at()] + slab * S::kQuerySlab, q_map, full, slab * kSlabFeatures, h, q0, item.b);
      copy_box(s.dout[ring.at()] + slab * S::kQuerySlab, dout_map, full, slab * kSlabFeatures, h, q0, item.b);
    }
    x.q0 = q0, x.last = last;
  }
  x.statistics[thread] = statistics, x.delta[thread] = delta;
  if constexpr (kRows && kSoft) x.tau[thread] = tau;
  if constexpr (!kRows) x.begin[thread] = begin;
  arrive(full);
  ++ring.count;
}

// The stages of one item: tiles of queries ascending, the heads of the group inside. At least one stage.
template <int D, bool kRows, bool kSoft>
__device__ inline void send_item(const Engine& e, const CUtensorMap* q_map, const CUtensorMap* dout_map,
                                 KeyShared<D>& s, const Item& item, int q0, int q_end,
                                 Ring<KeyShared<D>::kStages>& ring) {
  const int T = static_cast<int>(e.T), group = static_cast<int>(e.group());
  for (bool more = true; more; q0 += kStageQueries) {
    const int i = q0 + static_cast<int>(threadIdx.x), next = q0 + kStageQueries;
    if constexpr (kRows) more = next < q_end;
    else more = next < T && span_of(e, kNearSpan, item.b, next).begin < q_end;
    float tau = 0;
    std::int32_t begin = kNever;
    if constexpr (kRows && kSoft) {
      // -inf, where nothing competes yet, stays finite: every m becomes 1.
      if (i < T) {
        const double threshold = e.gate.tau[e.list_row(item.b, item.kv) * e.T + i];
        tau = fmaxf(static_cast<float>(threshold - item.center), -1e30f);
      }
    }
    if constexpr (!kRows) {
      if (i < T) begin = span_of(e, kNearSpan, item.b, i).begin;
    }
    for (int g = 0; g < group; ++g) {
      send_tile<D, kRows, kSoft>(e, q_map, dout_map, s, item, q0, item.kv * group + g, tau, begin,
                                 !more && g + 1 == group, ring);
    }
  }
}

template <int D, bool kRows, bool kSoft>
__device__ inline void send_queries(const Engine& e, const CUtensorMap* q_map, const CUtensorMap* dout_map,
                                    KeyShared<D>& s) {
  Ring<KeyShared<D>::kStages> ring;
  for (Ring<2> buffer;; ++buffer.count) {
    wait(&s.keys_full[buffer.at()], buffer.phase());
    const Item& item = s.items[buffer.at()];
    if (item.real == 0) return;
    int q0 = item.first, q_end = item.first + kItemKeys;  // spans: from the diagonal on, while they begin before q_end
    if constexpr (kRows) {
      const Interval* any = s.keys[buffer.at()].any;
      q0 = max(min(any[0].begin, any[1].begin), item.q_begin) / kStageQueries * kStageQueries;
      q_end = min(max(any[0].end, any[1].end), item.q_end);
    }
    send_item<D, kRows, kSoft>(e, q_map, dout_map, s, item, q0, q_end, ring);
    release(&s.keys_empty[buffer.at()]);
  }
}

// ---- Consumers
// What a warpgroup does with a tile of queries, the same for all its threads.
enum class Pass { skip, clean, masked, gated };

// The thread's rows of an item are row and row + 8; its columns of a tile 8 n + {0, 1} from `column` on.
struct Lane {
  int row, column;

  __device__ Lane()
      : row((static_cast<int>(threadIdx.x) - kWarpgroup) / 32 * 16 + static_cast<int>(threadIdx.x) % 32 / 4),
        column(static_cast<int>(threadIdx.x) % 4 * 2) {}
  __device__ int warpgroup_row() const { return row / 64 * 64; }  // first row of the warpgroup
};

// Which of the thread's 16 columns lie in [begin, end), counted from its first column: bit 2 n + x for 8 n + x.
__device__ inline unsigned columns_in(int begin, int end) {
  const auto before = [](int c) {  // columns below c
    c = min(max(c, 0), kStageQueries);
    return c / 8 * 2 + min(c % 8, 2);
  };
  const int low = before(begin), high = before(end);
  return low < high ? (1u << high) - (1u << low) : 0;
}
// The same of the pairs of a product, of both rows: bit of pair y.
__device__ inline bool has(unsigned pairs, int y) { return (pairs >> (y / 4 * 2 + y % 2 + y / 2 % 2 * 16) & 1) != 0; }

__device__ inline float2 pair_at(const float* numbers, int column) {
  return *reinterpret_cast<const float2*>(numbers + column);
}

// Weights of pairs without gates, from logits; then dL/dlogit from those and dO . v.
__device__ inline void plain_weights(const QueryNumbers& x, float (&s)[32], float factor, int column) {
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const float2 statistics = pair_at(x.statistics, 8 * n + column);
#pragma unroll
    for (int y = 0; y < 4; ++y)
      s[4 * n + y] = fast_power_of_2(fmaf(s[4 * n + y], factor, -(y % 2 == 0 ? statistics.x : statistics.y)));
  }
}
__device__ inline void plain_gradients(const QueryNumbers& x, const float (&s)[32], float (&dp)[32], int column) {
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const float2 delta = pair_at(x.delta, 8 * n + column);
#pragma unroll
    for (int y = 0; y < 4; ++y) dp[4 * n + y] = s[4 * n + y] * (dp[4 * n + y] - (y % 2 == 0 ? delta.x : delta.y));
  }
}

// Warpgroups that wait for the same stages would compute at the same time and leave the tensor cores to idle; so they
// issue products in turns, strictly, the first one first. Every turn taken is passed on.
__device__ inline void take_turn(const Lane& lane) { meet(kTurnBarrier + lane.row / 64, kConsumers); }
__device__ inline void pass_turn(const Lane& lane) { announce(kTurnBarrier + 1 - lane.row / 64, kConsumers); }
// All senders, once: the first warpgroup's first turn.
__device__ inline void begin_turns() { announce(kTurnBarrier, kConsumers); }

// A warpgroup's 64 rows of K or V as left operand: in registers where they have room (D = 64: shared memory is read
// half as often), else where they are.
template <int D, bool kHeld>
struct LeftRows {
  __device__ explicit LeftRows(std::uint32_t) {}
  // c = rows (64, D) times those of a tile of queries, transposed. Issues only.
  __device__ void issue(float (&c)[32], std::uint32_t tile, std::uint32_t b) const {
    issue_rows_by_rows<64, D>(c, tile, KeyShared<D>::kKeySlab, b, KeyShared<D>::kQuerySlab);
  }
};
template <>
struct LeftRows<64, true> {
  std::uint32_t held[4][4];

  __device__ explicit LeftRows(std::uint32_t tile) {
    const std::uint32_t lane = threadIdx.x % 32, row = threadIdx.x / 32 % 4 * 16 + lane % 16;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                   : "=r"(held[k][0]), "=r"(held[k][1]), "=r"(held[k][2]), "=r"(held[k][3])
                   : "r"(tile + swizzled(row, 2 * k + lane / 16))
                   : "memory");
    }
  }
  __device__ void issue(float (&c)[32], std::uint32_t, std::uint32_t b) const {
#pragma unroll
    for (int k = 0; k < 4; ++k) product_step<64, false>(c, held[k], tile_descriptor(b + k * 32), k > 0);
  }
};

// The products that end a tile of queries: dv += P^T dO, dk += dS^T Q. They issue only.
template <int D>
struct TileProducts {
  using S = KeyShared<D>;
  std::uint32_t q, dout;  // addresses

  __device__ TileProducts(const S& s, int stage) : q(shared_address(s.q[stage])), dout(shared_address(s.dout[stage])) {}
  __device__ void issue_dv(float (&dv)[D / 2], const std::uint32_t (&p)[4][4]) const {
    issue_left_by_rows<D, kStageQueries>(dv, p, dout, S::kQuerySlab);
  }
  __device__ void issue_dk(float (&dk)[D / 2], const std::uint32_t (&ds)[4][4]) const {
    issue_left_by_rows<D, kStageQueries>(dk, ds, q, S::kQuerySlab);
  }
};

// A warpgroup at work on the stages of an item: dk and dv (64 keys, D), neither scaled nor turned back.
//
// Pairs: look(x) -> Pass; weigh(x, pass, s): logits to 2^logit over the denominator (gated: left as they are);
// differentiate(x, pass, s, dp): s to weights of the values, dp from dO . v to dL/dlogit.
//
// Registers that products still read (p, ds) are not known to the compiler to be in use once it has left the stretch of
// code that issued them: they are issued and awaited in one turn of the loop.
template <int D, class Pairs>
struct KeyGroup {
  using S = KeyShared<D>;
  using LeftK = LeftRows<D, D == 64 && !Pairs::kGates>;
  using LeftV = LeftRows<D, D == 64 && !Pairs::kGates>;  // gates want the registers
  S& s;
  const int buffer;
  Ring<S::kStages>& ring;
  const Lane& lane;
  Pairs& pairs;
  float (&dk)[D / 2];
  float (&dv)[D / 2];

  __device__ std::uint32_t k_rows(int at) const {
    return shared_address(s.k[at]) + lane.warpgroup_row() * kSlabRowBytes;
  }
  __device__ std::uint32_t v_rows(int at) const {
    return shared_address(s.v[at]) + lane.warpgroup_row() * kSlabRowBytes;
  }
  __device__ const QueryNumbers& open() const {
    wait(&s.full[ring.at()], ring.phase());
    return s.queries[ring.at()];
  }
  // Said so, the compiler sees that no warp diverges around products that run.
  __device__ Pass look(const QueryNumbers& x) const {
    return static_cast<Pass>(__shfl_sync(0xffffffffu, static_cast<int>(pairs.look(x)), 0));
  }
  __device__ void issue_first(const LeftK& k, const LeftV& v, const TileProducts<D>& tile, float (&logits)[32],
                              float (&gradients)[32]) const {
    pin(logits);
    pin(gradients);
    fence_products();
    k.issue(logits, k_rows(opaque(buffer)), tile.q);
    commit_products();
    v.issue(gradients, v_rows(opaque(buffer)), tile.dout);
    commit_products();
  }

  // The last products of a tile are issued behind the first ones of the next, and run beside its exponentials. The turn
  // lasts until the logits are there: by then the other warpgroup is half a tile behind.
  __device__ void run_ahead(const LeftK& k, const LeftV& v) {
    std::uint32_t p[4][4] = {}, ds[4][4] = {};
    int held = -1;  // stage whose last products are not yet issued
    const auto end_held = [&] {
      if (held < 0) return;
      fence_products();
      TileProducts<D>(s, held).issue_dv(dv, p);
      TileProducts<D>(s, held).issue_dk(dk, ds);
    };
    for (bool last = false; !last; ++ring.count) {
      const QueryNumbers& x = open();
      last = x.last != 0;
      const Pass pass = look(x);
      if (pass == Pass::skip) {  // its stage may come round again before another tile is seen: hold none
        take_turn(lane);
        end_held();
        commit_products();
        pass_turn(lane);
        wait_products<0>();
        pin(dv), pin(dk);
        if (held >= 0) release(&s.empty[held]);
        held = -1;
        release(&s.empty[ring.at()]);
        continue;
      }
      take_turn(lane);
      float logits[32], gradients[32];  // of this turn alone: the products that write them read nothing
      issue_first(k, v, TileProducts<D>(s, ring.at()), logits, gradients);
      end_held();
      commit_products();
      wait_products<2>();
      pass_turn(lane);
      pin(logits);
      pairs.weigh(x, pass, logits);
      wait_products<1>();
      pin(gradients);
      // Always so; but what stands in a branch the assembler does not move behind the wait for the held products.
      if (x.q0 >= 0) pairs.differentiate(x, pass, logits, gradients);
      wait_products<0>();
      pin(dv), pin(dk);
      if (held >= 0) release(&s.empty[held]);
      held = static_cast<int>(ring.at());
      pack_left<kStageQueries>(p, logits);
      pack_left<kStageQueries>(ds, gradients);
    }
    end_held();
    commit_products();
    wait_products<0>();
    pin(dv), pin(dk);
    if (held >= 0) release(&s.empty[held]);
  }

  // Tile by tile, where registers are short. The turn lasts from the last products of a tile to the first ones of the
  // next: the other warpgroup's run while this one computes.
  __device__ void run_in_turn(const LeftK& k, const LeftV& v) {
    take_turn(lane);
    for (bool last = false; !last; ++ring.count) {
      const QueryNumbers& x = open();
      last = x.last != 0;
      const Pass pass = look(x);
      if (pass == Pass::skip) {
        pass_turn(lane);
        release(&s.empty[ring.at()]);
        take_turn(lane);
        continue;
      }
      const TileProducts<D> tile(s, ring.at());
      float logits[32], gradients[32];
      std::uint32_t p[4][4], ds[4][4];
      issue_first(k, v, tile, logits, gradients);
      pass_turn(lane);
      wait_products<1>();
      pin(logits);
      pairs.weigh(x, pass, logits);
      wait_products<0>();
      pin(gradients);
      pairs.differentiate(x, pass, logits, gradients);
      pack_left<kStageQueries>(p, logits);
      pack_left<kStageQueries>(ds, gradients);
      take_turn(lane);
      fence_products();
      tile.issue_dv(dv, p);
      tile.issue_dk(dk, ds);
      commit_products();
      wait_products<0>();
      release(&s.empty[ring.at()]);
    }
    pass_turn(lane);
    pin(dk), pin(dv);
  }
};

// All stages of the item in `buffer`.
template <int D, class Pairs>
__device__ inline void consume(KeyShared<D>& s, int buffer, Ring<KeyShared<D>::kStages>& ring, const Lane& lane,
                               Pairs& pairs, float (&dk)[D / 2], float (&dv)[D / 2]) {
#pragma unroll
  for (int x = 0; x < D / 2; ++x) dk[x] = dv[x] = 0;
  KeyGroup<D, Pairs> group{s, buffer, ring, lane, pairs, dk, dv};
  const typename KeyGroup<D, Pairs>::LeftK k(group.k_rows(buffer));
  const typename KeyGroup<D, Pairs>::LeftV v(group.v_rows(buffer));
  if constexpr (D == 64) group.run_ahead(k, v);
  else group.run_in_turn(k, v);
}

// ---- Host side
// Items are counted in 31 bits, with room for the step beyond the last.
inline constexpr std::int64_t kMostItems = (std::int64_t{1} << 31) - (1 << 16);

}  // namespace sieve::cuda::hopper
