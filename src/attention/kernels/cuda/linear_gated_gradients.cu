// Gradients of the gated form on tensor cores, all in one pass over the chunks. The gradient of log alpha_t sums what
// pairs around t do: q dq - k dk of the positions from t to the chunk's end, and, for the pairs around the end, the
// products of the state there with its gradient; so no rounding adds up from chunk to chunk.
#include "attention/kernels/cuda/linear_gated.cuh"
#include "attention/kernels/cuda/linear_tensor.h"

namespace sieve::cuda::linear {
namespace {

struct Gradients {
  LinearArgs a;
  const bf16* dout;
  const float* dstates;
  bf16 *dqkv, *dgates;
};

struct Shared {
  Masks masks;
  float own[kTile];       // gradient of the weight t = t
  float boundary[kTile];  // what the pairs around the chunk's end have to do with a feature's decays
};

// dS at the chunk's end as a tile; its products with S there.
__device__ void load_end(const Gradients& g, const ChunkPlace& p, bf16* tile, bf16* rest, float* boundary) {
  const std::int64_t size = kTile * 2 * kTile;
  const auto* const dstate = reinterpret_cast<const float4*>(g.dstates + p.index * size);
  const bool more = p.chunk + 1 < g.a.chunks();
  const auto* const state =
      reinterpret_cast<const float4*>(static_cast<const float*>(g.a.chunk_states) + (p.index + (more ? 1 : 0)) * size);
#pragma unroll 4
  for (int x = static_cast<int>(threadIdx.x); x < kTile * 32; x += kTileThreads) {  // a warp a row
    const float4 d = __ldg(dstate + x), s = __ldg(state + x);
    round_four(d, tile, rest, x / 32 * kWide + x % 32 * 4);
    const float sum = warp_sum(d.x * s.x + d.y * s.y + d.z * s.z + d.w * s.w);
    if (tile_lane() == 0) boundary[x / 32] = more ? sum : 0.f;
  }
}

struct Block {
  Shared& shared;
  float *logs, scale;
  bf16 *queries, *keys, *values, *douts, *state;
  bf16 *tile, *rest;  // a half's factors; before them, in the place of both, what rounding left of `state`
  int reach;          // the chunk's first key that its end sees

  __device__ float passes(int t, int d) const {  // from t to the chunk's end
    return __expf(logs[(kTile - 1) * kExact + d] - logs[t * kExact + d]);
  }
  __device__ float query(int t, int d) const { return scale * static_cast<float>(queries[t * kNarrow + d]); }
  __device__ float key(int t, int d) const { return static_cast<float>(keys[t * kNarrow + d]); }
};

using Numbers = float[4][8];
using Factors = Left[4];

// The gradients of the weights, rounded, with queries as rows and with keys as rows.
__device__ void differentiate_weights(const Block& m, Factors& by_query, Factors& by_key) {
  Numbers dw = {};
  multiply_tiles<2 * kTile, kWide, Right::transposed, kWide>(dw, m.douts, m.values);
  each(dw, [&](int t, int j, float& x) {
    if (t == j) m.shared.own[t] = x;
    x = j >= m.shared.masks.low[t] ? x : 0.f;
  });
#pragma unroll
  for (int n = 0; n < 4; ++n) round_left(by_query[n], dw[n]);
  each(dw, [](int, int, float& x) { x = 0.f; });
  multiply_tiles<2 * kTile, kWide, Right::transposed, kWide>(dw, m.values, m.douts);
  each(dw, [&](int j, int t, float& x) { x = j >= m.shared.masks.low[t] ? x : 0.f; });
#pragma unroll
  for (int n = 0; n < 4; ++n) round_left(by_key[n], dw[n]);
}

// Columns of the 16 of a block that meet the warp's rows at this half.
__device__ void choose_factor(Left& to, const Left& by_query, const Left& by_key, int half, int block) {
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const int row = row_of(2 * r), column = column_of(block, 2 * r);
    const std::uint32_t both = (row & half) != 0 ? by_query[r] : by_key[r];
    to[r] = both & ((meets(half, row, column) ? 0xffffu : 0u) | (meets(half, row, column + 1) ? 0xffff0000u : 0u));
  }
}

// One half: the weights with keys as rows, and what its pairs add to the gradients of q (scaled), k and to `terms`.
__device__ void add_half(const Block& m, int half, const Factors& by_query, const Factors& by_key, Numbers& w,
                         Numbers& dq, Numbers& dk, Numbers& terms) {
  if (!none_lower(half)) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      if (!block_meets(half, n)) continue;
      float c[8];
      pair_block(c, m.tile, m.tile, n);
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const int j = row_of(e);
        w[n][e] += (j & half) == 0 && meets(half, j, column_of(n, e)) ? c[e] : 0.f;
      }
    }
  }
  Numbers sum = {};
#pragma unroll
  for (int block = 0; block < 4; ++block) {
    if (!block_meets(half, block)) continue;
    Left left;
    choose_factor(left, by_query[block], by_key[block], half, block);
    multiply_row<Right::plain, kNarrow>(sum, left, m.tile, 16 * block);
    multiply_row<Right::plain, kNarrow>(sum, left, m.rest, 16 * block);
  }
#pragma unroll
  for (int n = 0; n < 4; ++n) {
#pragma unroll
    for (int e = 0; e < 8; e += 2) {
      const int row = row_of(e), d = column_of(n, e);
      const bool upper = (row & half) != 0;
      const float sign = upper ? 1.f : -1.f;
      const float2 to = *reinterpret_cast<const float2*>(m.logs + row * kExact + d),
                   from = *reinterpret_cast<const float2*>(m.logs + middle_of(half, row) * kExact + d);
      const float decays[2] = {__expf(sign * (to.x - from.x)), __expf(sign * (to.y - from.y))};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int at = row * kNarrow + d + i;
        const float x = sum[n][e + i] * decays[i];
        dq[n][e + i] += upper ? x : 0.f;
        dk[n][e + i] += upper ? 0.f : x;
        terms[n][e + i] += sign * sum[n][e + i] * (static_cast<float>(m.tile[at]) + static_cast<float>(m.rest[at]));
      }
    }
  }
}

__device__ void store_numbers(const Numbers& x, bf16* to, std::int64_t stride, int length, float factor) {
#pragma unroll
  for (int n = 0; n < 4; ++n) {
#pragma unroll
    for (int e = 0; e < 8; e += 2) {
      if (row_of(e) < length)
        *reinterpret_cast<std::uint32_t*>(to + row_of(e) * stride + column_of(n, e)) =
            pack_pair(x[n][e] * factor, x[n][e + 1] * factor);
    }
  }
}

__device__ void find_value_gradients(const Block& m, const Numbers& w, bf16* dv, std::int64_t stride, int length) {
  Factors factors;
#pragma unroll
  for (int n = 0; n < 4; ++n) round_left(factors[n], w[n]);
#pragma unroll 1
  for (int first = 0; first < 2 * kTile; first += kTile) {
    Numbers c = {};
    multiply_tiles<kTile, kNarrow, Right::plain, kWide>(c, m.tile, m.state + first);
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      if (16 * n >= first_row()) multiply_row<Right::plain, kWide>(c, factors[n], m.douts + first, 16 * n);
    }
    store_numbers(c, dv + first, stride, length, 1.f);
  }
}

// A thread a feature, from the chunk's end.
__device__ void find_gate_gradients(const Gradients& g, const ChunkPlace& p, const Shared& shared, const float* terms) {
  const auto d = static_cast<int>(threadIdx.x);
  if (d >= kTile) return;
  const LinearArgs& a = g.a;
  const auto* const gates = static_cast<const bf16*>(a.gates_BTHD);
  const auto power = static_cast<float>(a.power);
  float sum = shared.boundary[d];
#pragma unroll 4
  for (int t = p.length - 1; t >= 0; --t) {
    // Nothing lies before a start that could decay.
    const bool restart = p.begin + t == 0 || (shared.masks.old[t] == 0 && shared.masks.low[t] == t);
    sum = restart ? 0.f : sum + terms[t * kExact + d];
    const std::int64_t at = ((p.row + t) * a.Hkv + p.head) * kTile + d;
    g.dgates[at] = bf16(sum * decay_slope(static_cast<float>(gates[at]), power));
  }
}

static_assert(2 * kNarrow >= kWide);
constexpr std::size_t kBytes = sizeof(float) * kTile * kExact + tile_bytes(4 * kNarrow + 3 * kWide);

__global__ void __launch_bounds__(kTileThreads, 2) gradients(const Gradients g) {
  __shared__ Shared shared;
  const LinearArgs& a = g.a;
  const ChunkPlace p(a);
  Block m{shared, reinterpret_cast<float*>(dynamic_shared()), 1 / sqrtf(static_cast<float>(a.D))};
  m.queries = reinterpret_cast<bf16*>(m.logs + kTile * kExact), m.keys = m.queries + kTile * kNarrow;
  m.tile = m.keys + kTile * kNarrow, m.rest = m.tile + kTile * kNarrow, m.values = m.rest + kTile * kNarrow;
  m.douts = m.values + kTile * kWide, m.state = m.douts + kTile * kWide;
  const auto position = [&](int r) { return p.position(r); };
  const auto* const qkv = static_cast<const bf16*>(a.qkv_BTF);
  const std::int64_t F = a.features(), q = p.head * kTile, k = q + a.H * kTile, v = (a.H + p.head) * 2 * kTile;
  shared.masks.fill(a, p);
  load_tile<kTile, kNarrow>(m.queries, qkv + q, F, position, AsItIs{});
  load_tile<kTile, kNarrow>(m.keys, qkv + k, F, position, AsItIs{});
  load_tile<2 * kTile, kWide>(m.values, qkv + v, F, position, AsItIs{});
  load_tile<2 * kTile, kWide>(m.douts, g.dout + p.head * 2 * kTile, a.H * 2 * kTile, position, AsItIs{});
  load_wide_state(static_cast<const float*>(a.chunk_states) + p.index * kTile * 2 * kTile, m.state, m.tile);
  load_logs(a, p, m.logs);
  m.reach = shared.masks.reach(p);
  Numbers dq = {}, dk = {}, terms, w = {};
  multiply_tiles<2 * kTile, kWide, Right::transposed, kWide>(dq, m.douts, m.state);
  multiply_tiles<2 * kTile, kWide, Right::transposed, kWide>(dq, m.douts, m.tile);
  each_place<4>([&](int n, int e, int t, int d) {
    dq[n][e] = shared.masks.old[t] != 0 ? dq[n][e] * __expf(m.logs[t * kExact + d]) : 0.f;
    terms[n][e] = dq[n][e] * m.query(t, d);
  });
  __syncthreads();  // S is read
  load_end(g, p, m.state, m.tile, shared.boundary);
  __syncthreads();
  multiply_tiles<2 * kTile, kWide, Right::transposed, kWide>(dk, m.values, m.state);
  multiply_tiles<2 * kTile, kWide, Right::transposed, kWide>(dk, m.values, m.tile);
  each_place<4>([&](int n, int e, int j, int d) {
    dk[n][e] = j >= m.reach ? dk[n][e] * m.passes(j, d) : 0.f;
    terms[n][e] -= dk[n][e] * m.key(j, d);
  });
  Factors by_query, by_key;
  differentiate_weights(m, by_query, by_key);
#pragma unroll 1
  for (int half = kTile / 2; half > 0; half /= 2) {
    __syncthreads();  // the tile before is read
    build_half(half, m.queries, m.keys, m.logs, m.scale, m.tile, m.rest);
    __syncthreads();
    add_half(m, half, by_query, by_key, w, dq, dk, terms);
  }
  add_own_pairs(w, m.keys, m.queries, m.scale);
  each_place<4>([&](int n, int e, int row, int column) {
    dq[n][e] += shared.own[row] * m.key(row, column);
    dk[n][e] += shared.own[row] * m.query(row, column);
    w[n][e] = row >= shared.masks.low[column] ? w[n][e] : 0.f;
  });
  bf16* const to = g.dqkv + p.row * F;
  store_numbers(dq, to + q, F, p.length, m.scale);
  store_numbers(dk, to + k, F, p.length, 1.f);
  __syncthreads();
  load_tile<kTile, kNarrow>(
      m.tile, qkv + k, F, [&](int r) { return r >= m.reach ? p.position(r) : -1; },
      [&](Eight& x, int t, int c) { decay_key(x, m.logs, t, c); });
  __syncthreads();
  each_place<4>([&](int n, int e, int t, int d) { m.logs[t * kExact + d] = terms[n][e]; });  // which nobody needs now
  find_value_gradients(m, w, to + v, F, p.length);
  __syncthreads();
  find_gate_gradients(g, p, shared, m.logs);
}

}  // namespace

void find_gated_gradients(const LinearBackwardArgs& back, const float* dstates, const Stream& stream) {
  const LinearArgs& a = back.forward;
  const Gradients g{a, static_cast<const bf16*>(back.dout_BTHV), dstates, static_cast<bf16*>(back.dqkv_BTF),
                    static_cast<bf16*>(back.dgates_BTHD)};
  start("gated gradients", gradients, a.B * a.Hkv * a.chunks(), kTileThreads, kBytes, stream, g);
}

bool fits_gated_gradients() { return most_shared_bytes() >= static_cast<std::int64_t>(kBytes + sizeof(Shared)); }

}  // namespace sieve::cuda::linear
