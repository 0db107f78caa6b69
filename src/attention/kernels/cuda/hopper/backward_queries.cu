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

// Logits s and dO . v become logit gradients (in s), where no gate acts.
__device__ __forceinline__ void differentiate(float (&s)[kPairs], const float (&dp)[kPairs], const QueryScalars& own,
                                              float factor) {
#pragma unroll
  for (int x = 0; x < kPairs; ++x) {
    const int r = row_at(x);
    s[x] = fast_power_of_2(fmaf(s[x], factor, -own.statistics[r])) * (dp[x] - own.delta[r]);
  }
}
// The same where gates act or scores want their gradient, formulas of engine.cuh; pairs that do not count become 0.
__device__ __forceinline__ void differentiate_gated(float (&s)[kPairs], const float (&dp)[kPairs], QueryScalars& own,
                                                    float factor, const OwnQueries& q, const KeyScalars& keys,
                                                    GateMode mode) {
  const bool kv = mode == GateMode::kv, weighs = kv || mode == GateMode::value, prob = mode == GateMode::prob,
             hard = mode == GateMode::hard;
#pragma unroll
  for (int n = 0; n < kPairs; n += 4) {
    const int at = 2 * n + 2 * quad_lane();
    const int2 from = *reinterpret_cast<const int2*>(keys.from + at), to = *reinterpret_cast<const int2*>(keys.to + at);
    const int2 band_from = *reinterpret_cast<const int2*>(keys.band_from + at),
               band_to = *reinterpret_cast<const int2*>(keys.band_to + at);
    const float2 z = *reinterpret_cast<const float2*>(keys.z + at);
#pragma unroll
    for (int x = 0; x < 4; ++x) {
      const bool first = x % 2 == 0;
      const int r = row_at(x), i = q.i + 8 * r;
      const bool alive = i >= (first ? from.x : from.y) && i < (first ? to.x : to.y),
                 band = i >= (first ? band_from.x : band_from.y) && i < (first ? band_to.x : band_to.y);
      const float m = hard ? 1.0f : __saturatef((first ? z.x : z.y) - own.tau[r]);
      const float s0 = s[n + x] * factor, v = dp[n + x];
      const float p = fast_power_of_2((kv ? s0 * m : s0) - own.statistics[r]);
      const float ds = p * ((weighs ? v * m : v) - own.delta[r]);
      const float g = (weighs ? p * v : ds) + (kv ? ds * s0 * static_cast<float>(kLn2) : 0.0f);
      if (alive && band) own.row_sums[r] += g;
      s[n + x] = alive ? (kv || prob ? ds * m : ds) : 0.0f;
    }
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

// All blocks of one tile: dq += dS K. On return all products are done.
template <int D, bool kScored>
__device__ __forceinline__ void add_blocks(Consumer<D, 2>& stream, const OwnQueries& q, QueryScalars& own, float factor,
                                           float (&dq)[D / 2]) {
  float s[kPairs], dp[kPairs];
  std::uint32_t ds[kBlockKeys / 16][4];
  int held = -1;  // stage whose keys may still be read by the product that makes dQ
  for (bool last = false; !last; stream.at.advance()) {
    const BlockClass c = stream.open();
    last = c.last;
    if (!c.seen) {
      wait_products<0>();
      if (held >= 0) stream.release(held);
      held = -1;
      stream.release(stream.at.stage);
      continue;
    }
    fence_products();
    issue_pairs<D>(s, stream.left(0), stream.keys(stream.at.stage));
    issue_pairs<D>(dp, stream.left(1), stream.values(stream.at.stage));
    commit_products();
    wait_products<1>();
    if (held >= 0) stream.release(held);
    held = stream.at.stage;
    wait_products<0>();
    pin(s);
    pin(dp);
    const KeyScalars& keys = stream.scalars();
    if (kScored && c.gated) {
      differentiate_gated(s, dp, own, factor, q, keys, stream.e.gate.mode);
    } else {
      differentiate(s, dp, own, factor);
      if (c.masked) visit_block(q, keys, [&](int x, bool alive) { s[x] = alive ? s[x] : 0.0f; });
    }
    pack_left<kBlockKeys>(ds, s);
    fence_products();
    issue_sums<D>(dq, ds, stream.keys(stream.at.stage));
    commit_products();
  }
  wait_products<0>();
  pin(dq);
  if (held >= 0) stream.release(held);
}

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
    if (kScored && e.gate.mode != GateMode::hard) load_tau(e, t, q, own.tau);
    float dq[D / 2];
#pragma unroll
    for (int x = 0; x < D / 2; ++x) dq[x] = 0;
    stream.await_left(item);
    add_blocks<D, kScored>(stream, q, own, factor, dq);
    stream.meet_group();
    stream.fetch(item + gridDim.x);
    finish<D>(e, t, q, own, dq);
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
  start("attention backward, queries", backward_tiles<D, kScored>, persistent_blocks(items), kStreamThreads<D>,
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
