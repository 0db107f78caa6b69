// Backward towards the queries on Hopper: forward's tiles, stream and order. Queries and output gradients stay in
// shared memory, dQ in registers. The product of a block's logit gradients with its keys runs on while the logits of
// the next block are computed.
#include "attention/kernels/cuda/hopper/query_group.cuh"

namespace sieve::cuda::hopper {
namespace {

// What a thread knows of its two queries.
struct QueryScalars {
  float statistics[2] = {0, 0}, delta[2] = {0, 0}, tau[2] = {0, 0};
  float row_sums[2] = {0, 0};  // this thread's share of the score gradient over the band

  __device__ QueryScalars(const Engine& e, const Tile& t, const OwnQueries& q) {
    const std::int64_t at = t.query_row(e, q.i);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (q.i + 8 * r >= e.T) continue;
      statistics[r] = static_cast<const float*>(e.statistics)[at + 8 * r];
      delta[r] = static_cast<const float*>(e.delta)[at + 8 * r];
    }
  }
};

// Logits become weights of the softmax.
__device__ __forceinline__ void weigh(float (&s)[kPairs], const QueryScalars& own, float factor) {
#pragma unroll
  for (int x = 0; x < kPairs; ++x) s[x] = fast_power_of_2(fmaf(s[x], factor, -own.statistics[row_at(x)]));
}
// Weights s and dO . v become logit gradients (in s), where no gate acts.
__device__ __forceinline__ void differentiate(float (&s)[kPairs], const float (&dp)[kPairs], const QueryScalars& own) {
#pragma unroll
  for (int x = 0; x < kPairs; ++x) s[x] *= dp[x] - own.delta[row_at(x)];
}

// Where a thread's pair of neighbouring columns counts, and where it lies in the band.
struct ColumnIntervals {
  int2 from, to, band_from, band_to;

  __device__ __forceinline__ ColumnIntervals(const KeyScalars& keys, int at)
      : from(*reinterpret_cast<const int2*>(keys.from + at)),
        to(*reinterpret_cast<const int2*>(keys.to + at)),
        band_from(*reinterpret_cast<const int2*>(keys.band_from + at)),
        band_to(*reinterpret_cast<const int2*>(keys.band_to + at)) {}
  __device__ __forceinline__ bool alive(int column, int i) const {
    return column == 0 ? i >= from.x && i < to.x : i >= from.y && i < to.y;
  }
  __device__ __forceinline__ bool in_band(int column, int i) const {
    return column == 0 ? i >= band_from.x && i < band_to.x : i >= band_from.y && i < band_to.y;
  }
};

// Logits s and dO . v become logit gradients where gates act or scores want their gradient; formulas of engine.cuh.
// kKv: mode kv. kMixes false: all pairs count and lie in the band; true: those that do not count become 0.
template <bool kKv, bool kMixes>
__device__ __forceinline__ void differentiate_gated(float (&s)[kPairs], const float (&dp)[kPairs], QueryScalars& own,
                                                    float factor, const OwnQueries& q, const KeyScalars& keys,
                                                    GateMode mode) {
  const bool value = kKv || mode == GateMode::value, logit = kKv || mode == GateMode::prob;
  // With a threshold of "minus infinity" m is 1.
  const float value_tau[2] = {value ? own.tau[0] : kMaskedLogit, value ? own.tau[1] : kMaskedLogit},
              logit_tau[2] = {logit ? own.tau[0] : kMaskedLogit, logit ? own.tau[1] : kMaskedLogit},
              score_delta[2] = {value ? 0 : own.delta[0], value ? 0 : own.delta[1]};
  float by_value[2] = {0, 0}, by_logit[2] = {0, 0};  // what moves the score through values, through logits
#pragma unroll
  for (int n = 0; n < kPairs; n += 4) {
    const int at = 2 * n + 2 * quad_lane();
    const float2 z = *reinterpret_cast<const float2*>(keys.z + at);
    const ColumnIntervals in(keys, at);
#pragma unroll
    for (int x = 0; x < 4; ++x) {
      const int r = row_at(x), i = q.i + 8 * r;
      const float score = x % 2 == 0 ? z.x : z.y, m = __saturatef(score - logit_tau[r]);
      const float s0 = s[n + x] * factor, v = dp[n + x];
      const float p = fast_power_of_2(kKv ? fmaf(s0, m, -own.statistics[r]) : s0 - own.statistics[r]);
      const float ds = p * fmaf(v, kKv ? m : __saturatef(score - value_tau[r]), -own.delta[r]);
      const bool alive = !kMixes || in.alive(x % 2, i);
      const bool counts = !kMixes || (alive && in.in_band(x % 2, i));
      const float to_value = fmaf(p, kKv ? v : v - score_delta[r], by_value[r]);
      by_value[r] = counts ? to_value : by_value[r];
      if (kKv) by_logit[r] = counts ? fmaf(ds, s0, by_logit[r]) : by_logit[r];
      s[n + x] = alive ? ds * m : 0.0f;
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) own.row_sums[r] += fmaf(by_logit[r], static_cast<float>(kLn2), by_value[r]);
}
__device__ __forceinline__ void differentiate_gated(float (&s)[kPairs], const float (&dp)[kPairs], QueryScalars& own,
                                                    float factor, const OwnQueries& q, const KeyScalars& keys,
                                                    GateMode mode, bool mixed) {
  if (mode == GateMode::kv) {
    if (mixed) differentiate_gated<true, true>(s, dp, own, factor, q, keys, mode);
    else differentiate_gated<true, false>(s, dp, own, factor, q, keys, mode);
  } else {
    if (mixed) differentiate_gated<false, true>(s, dp, own, factor, q, keys, mode);
    else differentiate_gated<false, false>(s, dp, own, factor, q, keys, mode);
  }
}

// Turns the thread's two rows of an accumulator back by their positions: feature d with d + 8 kSteps.
template <int D, int kSteps>
__device__ __forceinline__ void turn_back(float (&c)[D / 2], const Engine& e, int i, int real) {
  const auto *cosines = static_cast<const float*>(e.rotary.cos), *sines = static_cast<const float*>(e.rotary.sin);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (r >= real) continue;
    const std::int64_t at = static_cast<std::int64_t>(i + 8 * r) * (8 * kSteps) + 2 * quad_lane();
#pragma unroll
    for (int n = 0; n < kSteps; ++n) {
      const float2 cosine = *reinterpret_cast<const float2*>(cosines + at + 8 * n),
                   sine = *reinterpret_cast<const float2*>(sines + at + 8 * n);
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        float &low = c[4 * n + 2 * r + x], &high = c[4 * (n + kSteps) + 2 * r + x];
        const float co = x == 0 ? cosine.x : cosine.y, si = x == 0 ? sine.x : sine.y, was = low;
        low = was * co + high * si, high = high * co - was * si;
      }
    }
  }
}
template <int D, int kSteps = D / 16>
__device__ __forceinline__ void rotate_back(float (&c)[D / 2], const Engine& e, int i, int real) {
  if constexpr (kSteps > 0) {
    if (e.rotary.rotary_dims == 16 * kSteps) turn_back<D, kSteps>(c, e, i, real);
    else rotate_back<D, kSteps - 1>(c, e, i, real);
  }
}

template <int D>
__device__ inline void finish(const Engine& e, const Tile& t, const OwnQueries& q, const QueryScalars& own,
                              float (&dq)[D / 2]) {
  const int real = real_of(e, q.i);
  const auto scale = static_cast<float>(e.scale);
  bf16* rows[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int i = q.i + 8 * r;
    rows[r] = static_cast<bf16*>(e.dqkv) + (t.b * e.T + i) * e.features() + t.h * D;
    if (e.row_heads == nullptr) continue;
    const double sum = row_sum(static_cast<double>(own.row_sums[r]));
    if (r < real && quad_lane() == 0) e.row_heads[t.query_row(e, i)] = sum;
  }
  rotate_back<D>(dq, e, q.i, real);
  store_rows<D>(dq, {scale, scale}, rows, real);
}

// A warpgroup's 64 queries of one tile.
template <int D, bool kScored>
struct QueryGradient {
  Consumer<D, 2>& stream;
  const OwnQueries& q;
  QueryScalars& own;
  const float factor;
  float s[kPairs], dp[kPairs], dq[D / 2];
  std::uint32_t ds[kBlockKeys / 16][4];  // logit gradients of the block that is held

  // The logit gradients of the block at the stream's place, while those of the last one meet its keys. All products are
  // issued and awaited in here: what they read in registers must not outlive a loop's end.
  __device__ __forceinline__ void turn() {
    const int at = stream.at.stage;
    const BlockClass c = stream.now;
    const KeyScalars& keys = stream.ring.scalars(at);
    stream.at.advance();
    fence_products();
    issue_pairs<D>(s, stream.left(0), stream.keys(at));
    commit_products();
    issue_sums<D>(dq, ds, stream.keys(stream.held));
    issue_pairs<D>(dp, stream.left(1), stream.values(at));
    commit_products();
    if (kScored && c.gated) {
      wait_products<0>();
      pin(s);
      pin(dp);
      differentiate_gated(s, dp, own, factor, q, keys, stream.e.gate.mode, c.mixed);
    } else {
      wait_products<1>();
      pin(s);
      weigh(s, own, factor);
      if (c.masked) visit_block(q, keys, [&](int x, bool alive) { s[x] = alive ? s[x] : 0.0f; });
      wait_products<0>();
      pin(dp);
      differentiate(s, dp, own);
    }
    pin(dq);
    if (stream.held != at) stream.release(stream.held);
    stream.held = at;  // until its logit gradients have met its keys
    pack_left<kBlockKeys>(ds, s);
  }
  // From the block at the stream's place on. The first turn adds nothing: a product under a condition would make the
  // compiler wait for every one.
  __device__ __forceinline__ void take_reachable() {
    stream.held = stream.at.stage;
#pragma unroll
    for (int k = 0; k < kBlockKeys / 16; ++k) ds[k][0] = ds[k][1] = ds[k][2] = ds[k][3] = 0;
    do { turn(); } while (stream.template find<true>());
    fence_products();
    issue_sums<D>(dq, ds, stream.keys(stream.held));
    commit_products();
    wait_products<0>();
    pin(dq);
    stream.release(stream.held);
  }
  __device__ __forceinline__ void take_all() {
    stream.now = BlockClass();
#pragma unroll
    for (int x = 0; x < D / 2; ++x) dq[x] = 0;
    while (stream.template find<false>()) take_reachable();
  }
};

// A warpgroup's way through all tiles of its block of threads.
template <int D, bool kScored>
__device__ __forceinline__ void consume(Consumer<D, 2>& stream) {
  const Engine& e = stream.e;
  const auto factor = static_cast<float>(e.scale * kLog2E);
  stream.fetch(blockIdx.x);
  for (unsigned item = blockIdx.x; item < stream.items.count; item += gridDim.x) {
    const Tile t = stream.tile(item);
    const OwnQueries q(e, t, stream.group);
    QueryScalars own(e, t, q);
    const bool gates = kScored && e.gate.mode != GateMode::hard;
    if (gates) load_tau(e, t, q, own.tau);
    stream.ask_for(item + gridDim.x, gates);
    QueryGradient<D, kScored> work{stream, q, own, factor};
    stream.await_left(item);
    work.take_all();
    stream.meet_group();
    stream.fetch(item + gridDim.x);
    finish<D>(e, t, q, own, work.dq);
  }
}

template <int D, bool kScored>
__global__ void __launch_bounds__(kStreamThreads<D>, 1)
    backward_tiles(const __grid_constant__ Engine e, const __grid_constant__ CUtensorMap q,
                   const __grid_constant__ CUtensorMap dout, const __grid_constant__ CUtensorMap k,
                   const __grid_constant__ CUtensorMap v, const Items items) {
  const KeyRing<D, 2> ring;
  ring.open();
  const int group = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarpgroup, 0) - 1;
  if (group < 0) {
    keep_registers<kProducerRegisters<D>>();
    const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
    KeyProducer<D, 2, kScored>{e, ring, warp}.run(&k, &v, items);
  } else {
    take_registers<kConsumerRegisters<D>>();
    Consumer<D, 2> stream(e, ring, items, &q, &dout, group);
    consume<D, kScored>(stream);
  }
}

template <int D, bool kScored>
void launch(const Engine& e, Stream stream) {
  const Items items = items_of<D>(e);
  start("attention backward, queries", backward_tiles<D, kScored>, persistent_blocks(items.count), kStreamThreads<D>,
        KeyRing<D, 2>::kAskFor, stream, e, map_rows(e.q, e.B, e.T, e.H, D, kBlockKeys),
        map_rows(e.dout, e.B, e.T, e.H, D, kBlockKeys), map_rows(e.k, e.B, e.T, e.Hkv, D, kBlockKeys),
        map_rows(e.v, e.B, e.T, e.Hkv, D, kBlockKeys), items);
}

}  // namespace

void backward_queries(const Engine& e, Stream stream) {
  if (e.B * e.T == 0) return;
  const bool scored =
      e.plan.from_BHT != nullptr && e.gate.z != nullptr && (e.row_heads != nullptr || e.gate.mode != GateMode::hard);
  if (e.D == 64) return scored ? launch<64, true>(e, stream) : launch<64, false>(e, stream);
  return scored ? launch<128, true>(e, stream) : launch<128, false>(e, stream);
}

}  // namespace sieve::cuda::hopper
