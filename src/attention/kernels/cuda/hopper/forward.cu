// Forward on Hopper: the online softmax of the general kernel (softmax_forward.cu). A warpgroup has 64 queries, holds
// them and its sums in registers, and starts the logits of the next block before it weighs the values of the last, so
// that exponentials run beside products.
#include "attention/kernels/cuda/hopper/query_group.cuh"

namespace sieve::cuda::hopper {
namespace {

// Maximum (of logits before scaling) and this thread's share of the denominator of its two queries.
struct Running {
  float top[2] = {kMasked1, kMasked1}, sum[2] = {0, 0};
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
  const float now[2] = {row_max(fmaxf(high[0], high[1])), row_max(fmaxf(high[2], high[3]))};
  const bool grew = now[0] > run.top[0] + scaling.slack || now[1] > run.top[1] + scaling.slack;
  if (!__any_sync(0xffffffffu, grew)) return false;
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
__device__ __forceinline__ void gate_logits(float (&s)[kPairs], const KeyScalars& keys, const float (&tau)[2]) {
#pragma unroll
  for (int n = 0; n < kPairs; n += 4) {
    float m[4];
    gates_of(m, keys, n, tau);
#pragma unroll
    for (int x = 0; x < 4; ++x) s[n + x] *= m[x];
  }
}
// Weights become those of the values; the denominator is theirs (prob) or that of the logits alone.
__device__ __forceinline__ void gate_and_add_up(float (&s)[kPairs], Running& run, const KeyScalars& keys,
                                                const float (&tau)[2], bool prob) {
#pragma unroll
  for (int n = 0; n < kPairs; n += 4) {
    float m[4];
    gates_of(m, keys, n, tau);
#pragma unroll
    for (int x = 0; x < 4; ++x) {
      const float weight = s[n + x] * m[x];
      run.sum[row_at(x)] += prob ? weight : s[n + x];
      s[n + x] = weight;
    }
  }
}

// Logits of a block become weights of its values. True: the sums so far shrink.
template <bool kGates>
__device__ __forceinline__ bool absorb(float (&s)[kPairs], Running& run, float (&shrink)[2], Scaling scaling,
                                       const OwnQueries& q, BlockClass c, const KeyScalars& keys, GateMode mode,
                                       const float (&tau)[2]) {
  if (kGates && c.gated && mode == GateMode::kv) gate_logits(s, keys, tau);
  if (c.masked) {
    visit_block(q, keys, [&](int x, bool alive) { s[x] = alive ? s[x] : kMasked1; });
  }
  const bool shrinks = raise(s, run, shrink, scaling);
  weigh(s, run, scaling);
  if (kGates && c.gated) gate_and_add_up(s, run, keys, tau, mode == GateMode::prob);
  else add_up(s, run);
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
    rows[r] = static_cast<bf16*>(e.out) + ((t.b * e.T + i) * e.H + t.h) * D;
    if (e.statistics == nullptr || r >= real || quad_lane() != 0) continue;
    static_cast<float*>(e.statistics)[t.query_row(e, static_cast<int>(i))] =
        sum == 0 ? -kMasked1 : run.top[r] * scaling.factor + log2f(sum);
  }
  store_rows<D>(sums, inverse, rows, real);
}

// A warpgroup's way through all tiles of its block of threads.
template <int D, bool kGates>
__device__ __forceinline__ void consume(const Engine& e, const KeyRing<D, 1> ring, const CUtensorMap* map, int group,
                                        const Items& items) {
  using Ring = KeyRing<D, 1>;
  const Scaling scaling(e.scale);
  const auto fetch = [&](unsigned item) {
    if (item >= items.count || thread_of_group() != 0) return;
    arrive_expecting(ring.left_full(group), Ring::kTileBytes);
    copy_left<D>(ring.left(group, 0), map, ring.left_full(group), Tile(e, items, item, kTileQueries<D>), group);
  };
  const auto release = [&](int stage) {
    __syncwarp();
    if (thread_of_group() % 32 == 0) arrive(ring.empty(stage));
  };
  fetch(blockIdx.x);
  Cursor<Ring::kStages> at;
  std::uint32_t left_phase = 0;
  for (unsigned item = blockIdx.x; item < items.count; item += gridDim.x, left_phase ^= 1) {
    const Tile t(e, items, item, kTileQueries<D>);
    const OwnQueries q(e, t, group);
    float tau[2] = {0, 0};
    if constexpr (kGates) load_tau(e, t, q, tau);
    std::uint32_t queries[D / 16][4], weights[kBlockKeys / 16][4];
    wait(ring.left_full(group), left_phase);
    hold_left<D>(queries, ring.left(group, 0));
    meet(1 + group, kWarpgroup);
    fetch(item + gridDim.x);

    float s[kPairs], sums[D / 2], shrink[2];
#pragma unroll
    for (int x = 0; x < D / 2; ++x) sums[x] = 0;
    Running run;
    const auto open = [&] {
      wait(ring.full(at.stage), at.phase);
      return BlockClass(ring.scalars(at.stage), group);
    };
    const auto rescale = [&] {
#pragma unroll
      for (int x = 0; x < D / 2; ++x) sums[x] *= shrink[row_at(x)];
    };
    BlockClass c = open();
    for (;;) {
      if (!c.seen) {
        release(at.stage);
        at.advance();
        if (c.last) break;
        c = open();
        continue;
      }
      fence_products();
      issue_held_by_rows<kBlockKeys, D>(s, queries, shared_address(ring.keys(at.stage)));
      commit_products();
      wait_products<0>();
      pin(s);
      if (absorb<kGates>(s, run, shrink, scaling, q, c, ring.scalars(at.stage), e.gate.mode, tau)) rescale();
      pack_left<kBlockKeys>(weights, s);
      int held = at.stage;  // its values are not yet weighed
      for (;;) {
        at.advance();
        if (c.last) break;
        c = open();
        if (!c.seen) break;
        fence_products();
        issue_held_by_rows<kBlockKeys, D>(s, queries, shared_address(ring.keys(at.stage)));
        commit_products();
        issue_left_by_rows<D, kBlockKeys>(sums, weights, shared_address(ring.values(held)), kSlabBytes);
        commit_products();
        wait_products<1>();
        pin(s);
        const bool shrinks = absorb<kGates>(s, run, shrink, scaling, q, c, ring.scalars(at.stage), e.gate.mode, tau);
        // Never so; it makes the compiler wait for the values' product behind the exponentials, not before them.
        if (run.sum[0] + run.sum[1] < 0) __trap();
        wait_products<0>();
        pin(sums);
        release(held);
        held = at.stage;
        if (shrinks) rescale();
        pack_left<kBlockKeys>(weights, s);
      }
      fence_products();
      issue_left_by_rows<D, kBlockKeys>(sums, weights, shared_address(ring.values(held)), kSlabBytes);
      commit_products();
      wait_products<0>();
      pin(sums);
      release(held);
      if (c.seen) break;  // it was the last; else the next to be skipped
    }
    finish<D>(e, t, q, run, scaling, sums);
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
    keep_registers<kProducerRegisters>();
    KeyProducer<D, 1, kGates>{e, ring, {}}.run(&k, &v, items);
  } else {
    take_registers<kConsumerRegisters<D>>();
    consume<D, kGates>(e, ring, &q, group, items);
  }
}

template <int D, bool kGates>
void launch(const Engine& e, Stream stream) {
  const Items items = items_of<D>(e);
  start("attention forward", forward_tiles<D, kGates>, persistent_blocks(items), kStreamThreads<D>,
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
