// Forward on Hopper: the online softmax of the general kernel (softmax_forward.cu). A warpgroup has 64 queries, holds
// them and its sums in registers, and starts the logits of the next block before it weighs the values of the last, so
// that exponentials run beside products.
#include "attention/kernels/cuda/hopper/query_group.cuh"

namespace sieve::cuda::hopper {
namespace {

// Maximum (of logits before scaling) and this thread's share of the denominator of its two queries.
struct Running {
  float top[2] = {kMaskedLogit, kMaskedLogit}, sum[2] = {0, 0};
};
struct Scaling {
  float factor, slack;  // logit in units of log 2; how far above the maximum a logit may lie: 2^8 in weight

  __device__ explicit Scaling(double scale) : factor(static_cast<float>(scale * kLog2E)), slack(8 / factor) {}
};

// Raises the maxima where some query's grew by more than the slack. True: what was summed so far shrinks.
__device__ __forceinline__ bool raise(const float (&s)[kPairs], Running& run, float (&shrink)[2], Scaling scaling) {
  float high[4] = {run.top[0], run.top[0], run.top[1], run.top[1]};
#pragma unroll
  for (int x = 0; x < kPairs; ++x) high[x % 4] = fmaxf(high[x % 4], s[x]);
  const float own[2] = {fmaxf(high[0], high[1]), fmaxf(high[2], high[3])};  // the row's maximum only where it matters
  const bool grew = own[0] > run.top[0] + scaling.slack || own[1] > run.top[1] + scaling.slack;
  if (!__any_sync(0xffffffffu, grew)) return false;
  const float now[2] = {row_max(own[0]), row_max(own[1])};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    shrink[r] = fast_power_of_2((run.top[r] - now[r]) * scaling.factor);
    run.top[r] = now[r], run.sum[r] *= shrink[r];
  }
  return true;
}
// Logits become weights of the softmax.
__device__ __forceinline__ void weigh(float (&s)[kPairs], const Running& run, Scaling scaling) {
  const float top[2] = {run.top[0] * scaling.factor, run.top[1] * scaling.factor};
#pragma unroll
  for (int x = 0; x < kPairs; ++x) s[x] = fast_power_of_2(fmaf(s[x], scaling.factor, -top[row_at(x)]));
}
__device__ __forceinline__ void add_up(const float (&s)[kPairs], Running& run) {
  float sum[4] = {s[0], s[1], s[2], s[3]};
#pragma unroll
  for (int x = 4; x < kPairs; ++x) sum[x % 4] += s[x];
  run.sum[0] += sum[0] + sum[1], run.sum[1] += sum[2] + sum[3];
}
// m of the elements n .. n + 3.
__device__ __forceinline__ void gates_of(float (&m)[4], const KeyScalars& keys, int n, const float (&tau)[2]) {
  const float2 z = *reinterpret_cast<const float2*>(keys.z + 2 * n + 2 * quad_lane());
#pragma unroll
  for (int x = 0; x < 4; ++x) m[x] = __saturatef((x % 2 == 0 ? z.x : z.y) - tau[row_at(x)]);
}
// Times m: logits, or weights of a softmax, which become those of the values.
__device__ __forceinline__ void gate(float (&s)[kPairs], const KeyScalars& keys, const float (&tau)[2]) {
#pragma unroll
  for (int n = 0; n < kPairs; n += 4) {
    float m[4];
    gates_of(m, keys, n, tau);
#pragma unroll
    for (int x = 0; x < 4; ++x) s[n + x] *= m[x];
  }
}
// Logits of a block become weights of its values. True: the sums so far shrink.
template <bool kGates>
__device__ __forceinline__ bool absorb(float (&s)[kPairs], Running& run, float (&shrink)[2], Scaling scaling,
                                       const OwnQueries& q, BlockClass c, const KeyScalars& keys, GateMode mode,
                                       const float (&tau)[2]) {
  if (kGates && c.gated && mode == GateMode::kv) gate(s, keys, tau);
  if (c.masked) {
    visit_block(q, keys, [&](int x, bool alive) { s[x] = alive ? s[x] : kMaskedLogit; });
  }
  const bool shrinks = raise(s, run, shrink, scaling);
  if (!kGates || !c.gated) {
    weigh(s, run, scaling);
    add_up(s, run);
  } else if (mode == GateMode::prob) {  // the denominator is that of the gated weights
    // Nothing in common with the other branch, for the compiler: it would take the exponentials out of both, away from
    // the sums and gates that fill the gaps between them.
    Scaling again = scaling;
    float factor[1] = {scaling.factor};
    pin(factor);
    again.factor = factor[0];
    weigh(s, run, again);
    gate(s, keys, tau);
    add_up(s, run);
  } else {
    weigh(s, run, scaling);
    add_up(s, run);
    gate(s, keys, tau);
  }
  return shrinks;
}

template <int D>
__device__ inline void finish(const Engine& e, const Tile& t, const OwnQueries& q, Running& run, Scaling scaling,
                              const float (&sums)[D / 2]) {
  const int real = real_of(e, q.i);
  float inverse[2];
  bf16* rows[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const std::int64_t i = q.i + 8 * r;
    const float sum = row_sum(run.sum[r]);
    inverse[r] = sum == 0 ? 0.0f : 1 / sum;
    rows[r] = static_cast<bf16*>(e.out) + ((opaque(t.b) * e.T + i) * e.H + t.h) * D;
    if (e.statistics == nullptr || r >= real || quad_lane() != 0) continue;
    static_cast<float*>(e.statistics)[t.query_row(e, static_cast<int>(i))] =
        sum == 0 ? -kMaskedLogit : run.top[r] * scaling.factor + log2f(sum);
  }
  store_rows<D>(sums, inverse, rows, real);
}

// A warpgroup's 64 queries of one tile. Two sets of logits take turns: one becomes weights while the other is computed.
template <int D, bool kGates>
struct ForwardTile {
  Consumer<D, 1>& stream;
  const OwnQueries& q;
  const Scaling scaling;
  Running run;
  float tau[2] = {0, 0};
  std::uint32_t queries[D / 16][4], weights[kBlockKeys / 16][4];
  float even[kPairs], odd[kPairs], sums[D / 2];

  __device__ __forceinline__ void rescale(const float (&shrink)[2]) {
#pragma unroll
    for (int x = 0; x < D / 2; ++x) sums[x] *= shrink[row_at(x)];
  }
  // The logits s become weights, while `next` becomes the logits of the next block and the last block's weights meet
  // its values. All products are issued and awaited in here: what they read in registers must not outlive a loop's end.
  // False: no next block was in reach.
  __device__ __forceinline__ bool turn(float (&s)[kPairs], float (&next)[kPairs]) {
    const int own = stream.at.stage;
    const BlockClass c = stream.now;
    stream.at.advance();
    const bool more = stream.template find<true>();
    fence_products();
    issue_held<D>(next, queries, stream.keys(more ? stream.at.stage : own));
    issue_sums<D>(sums, weights, stream.values(stream.held));
    commit_products();
    float shrink[2];
    const bool shrinks =
        absorb<kGates>(s, run, shrink, scaling, q, c, stream.ring.scalars(own), stream.e.gate.mode, tau);
    // Never so; it makes the compiler wait for the products behind the exponentials, not before them.
    if (run.sum[0] + run.sum[1] < 0) stream.ring.scalars(own).padding[0] = 0;
    wait_products<0>();
    pin(next);
    pin(sums);
    if (stream.held != own) stream.release(stream.held);
    stream.held = own;  // until its weights have met its values
    if (shrinks) rescale(shrink);
    pack_left<kBlockKeys>(weights, s);
    return more;
  }
  // From the block at the stream's place on.
  __device__ __forceinline__ void take_reachable() {
    // The first turn weighs its own block with nothing, the last computes logits that nobody reads: a product under a
    // condition would make the compiler wait for every one.
    stream.held = stream.at.stage;
#pragma unroll
    for (int k = 0; k < kBlockKeys / 16; ++k) weights[k][0] = weights[k][1] = weights[k][2] = weights[k][3] = 0;
    fence_products();
    issue_held<D>(even, queries, stream.keys(stream.at.stage));
    commit_products();
    wait_products<0>();
    pin(even);
    while (turn(even, odd) && turn(odd, even)) {}
    fence_products();
    issue_sums<D>(sums, weights, stream.values(stream.held));
    commit_products();
    wait_products<0>();
    pin(sums);
    stream.release(stream.held);
  }
  __device__ __forceinline__ void take_all() {
    stream.now = BlockClass();
#pragma unroll
    for (int x = 0; x < D / 2; ++x) sums[x] = 0;
    while (stream.template find<false>()) take_reachable();
  }
};

// A warpgroup's way through all tiles of its block of threads.
template <int D, bool kGates>
__device__ __forceinline__ void consume(Consumer<D, 1>& stream) {
  const Engine& e = stream.e;
  const Scaling scaling(e.scale);
  stream.fetch(blockIdx.x);
  for (unsigned item = blockIdx.x; item < stream.items.count; item += gridDim.x) {
    const Tile t = stream.tile(item);
    const OwnQueries q(e, t, stream.group);
    ForwardTile<D, kGates> work{stream, q, scaling};
    if constexpr (kGates) {
      load_tau(e, t, q, work.tau);
      stream.ask_for(item + gridDim.x, true);
    }
    stream.await_left(item);
    hold_left<D>(work.queries, stream.ring.left(stream.group, 0));
    stream.meet_group();
    stream.fetch(item + gridDim.x);
    work.take_all();
    finish<D>(e, t, q, work.run, scaling, work.sums);
  }
}

template <int D, bool kGates>
__global__ void __launch_bounds__(kStreamThreads<D>, 1)
    forward_tiles(const __grid_constant__ Engine e, const __grid_constant__ CUtensorMap q,
                  const __grid_constant__ CUtensorMap k, const __grid_constant__ CUtensorMap v, const Items items) {
  const KeyRing<D, 1> ring;
  ring.open();
  const int group = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarpgroup, 0) - 1;
  if (group < 0) {
    keep_registers<kProducerRegisters<D>>();
    const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
    KeyProducer<D, 1, kGates>{e, ring, warp}.run(&k, &v, items);
  } else {
    take_registers<kConsumerRegisters<D>>();
    Consumer<D, 1> stream(e, ring, items, &q, nullptr, group);
    consume<D, kGates>(stream);
  }
}

template <int D, bool kGates>
void launch(const Engine& e, Stream stream) {
  const Items items = items_of<D>(e);
  start("attention forward", forward_tiles<D, kGates>, persistent_blocks(items.count), kStreamThreads<D>,
        KeyRing<D, 1>::kAskFor, stream, e, map_rows(e.q, e.B, e.T, e.H, D, kBlockKeys),
        map_rows(e.k, e.B, e.T, e.Hkv, D, kBlockKeys), map_rows(e.v, e.B, e.T, e.Hkv, D, kBlockKeys), items);
}

}  // namespace

void forward(const Engine& e, Stream stream) {
  if (e.B * e.T == 0) return;
  const bool gates = e.gate.z != nullptr && e.gate.mode != GateMode::hard && e.plan.from_BHT != nullptr;
  if (e.D == 64) return gates ? launch<64, true>(e, stream) : launch<64, false>(e, stream);
  return gates ? launch<128, true>(e, stream) : launch<128, false>(e, stream);
}

}  // namespace sieve::cuda::hopper
