// Forward of the gated form on tensor cores, and what the states' two directions begin with.
#include "attention/kernels/cuda/linear_gated.cuh"
#include "attention/kernels/cuda/linear_tensor.h"

namespace sieve::cuda::linear {
namespace {

constexpr std::size_t kLogBytes = sizeof(float) * kTile * kExact;

// Forward: keys on their way to the chunk's end and their values; backward: queries on the way to its begin and dout.
template <bool kBackward>
__global__ void __launch_bounds__(kTileThreads)
    add_states(const LinearArgs a, const bf16* dout, float* states, float* decays) {
  __shared__ Masks masks;
  auto* const logs = reinterpret_cast<float*>(dynamic_shared());
  auto* const rows = reinterpret_cast<bf16*>(logs + kTile * kExact);
  bf16* const others = rows + kTile * kNarrow;
  const ChunkPlace p(a);
  masks.fill(a, p);
  load_logs(a, p, logs);
  if (threadIdx.x < kTile) {
    decays[p.index * kTile + threadIdx.x] =
        masks.old[p.length - 1] != 0 ? expm1f(logs[(kTile - 1) * kExact + threadIdx.x]) : -1.f;
  }
  const auto* const q = static_cast<const bf16*>(a.qkv_BTF) + p.head * kTile;
  if constexpr (kBackward) {
    const float scale = 1 / sqrtf(static_cast<float>(a.D));
    const auto position = [&](int r) { return masks.old[r] != 0 ? p.position(r) : -1; };
    load_tile<kTile, kNarrow>(rows, q, a.features(), position,
                              [&](Eight& x, int t, int c) { decay_query(x, logs, scale, t, c); });
    load_tile<2 * kTile, kWide>(others, dout + p.head * 2 * kTile, a.H * 2 * kTile, position, AsItIs{});
  } else {
    const int reach = masks.reach(p);
    const auto position = [&](int r) { return r >= reach ? p.position(r) : -1; };
    load_tile<kTile, kNarrow>(rows, q + a.H * kTile, a.features(), position,
                              [&](Eight& x, int t, int c) { decay_key(x, logs, t, c); });
    load_tile<2 * kTile, kWide>(others, static_cast<const bf16*>(a.qkv_BTF) + (a.H + p.head) * 2 * kTile, a.features(),
                                position, AsItIs{});
  }
  __syncthreads();
  float c[8][8] = {};
  multiply_transposed<kNarrow, kWide>(c, rows, others);
  float* const state = states + p.index * kTile * 2 * kTile;
#pragma unroll
  for (int n = 0; n < 8; ++n) {
#pragma unroll
    for (int e = 0; e < 8; e += 2)
      *reinterpret_cast<float2*>(state + row_of(e) * 2 * kTile + column_of(n, e)) = float2{c[n][e], c[n][e + 1]};
  }
}

// w: the weights of the pairs t > j of the warp's rows t.
__device__ void add_pairs(float (&w)[4][8], const bf16* q, const bf16* k, const float* logs, float scale, bf16* tile) {
#pragma unroll 1
  for (int half = kTile / 2; half > 0; half /= 2) {
    __syncthreads();  // the tile before is read
    build_half(half, q, k, logs, scale, tile);
    __syncthreads();
    if (none_upper(half)) continue;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      if (!block_meets(half, n)) continue;
      float c[8];
      pair_block(c, tile, tile, n);
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const int t = row_of(e);
        w[n][e] += (t & half) != 0 && meets(half, t, column_of(n, e)) ? c[e] : 0.f;
      }
    }
  }
}

__global__ void __launch_bounds__(kTileThreads) outputs(const LinearArgs a, const float* states) {
  __shared__ Masks masks;
  auto* const logs = reinterpret_cast<float*>(dynamic_shared());
  auto* const queries = reinterpret_cast<bf16*>(logs + kTile * kExact);
  bf16 *const keys = queries + kTile * kNarrow, *const tile = keys + kTile * kNarrow,
              *const wide = tile + kTile * kNarrow;
  const ChunkPlace p(a);
  const float scale = 1 / sqrtf(static_cast<float>(a.D));
  const auto position = [&](int r) { return p.position(r); };
  const auto* const q = static_cast<const bf16*>(a.qkv_BTF) + p.head * kTile;
  masks.fill(a, p);
  load_tile<kTile, kNarrow>(queries, q, a.features(), position, AsItIs{});
  load_tile<kTile, kNarrow>(keys, q + a.H * kTile, a.features(), position, AsItIs{});
  load_wide_state(states + p.index * kTile * 2 * kTile, wide);
  load_logs(a, p, logs);
  load_tile<kTile, kNarrow>(
      tile, q, a.features(), [&](int r) { return masks.old[r] != 0 ? p.position(r) : -1; },
      [&](Eight& x, int t, int c) { decay_query(x, logs, scale, t, c); });
  __syncthreads();
  float c[8][8] = {};
  multiply_tiles<kTile, kNarrow, Right::plain, kWide>(c, tile, wide);
  each(c, [&](int t, int, float& x) { x = masks.old[t] != 0 ? x : 0.f; });
  __syncthreads();  // the state is read
  load_tile<2 * kTile, kWide>(wide, static_cast<const bf16*>(a.qkv_BTF) + (a.H + p.head) * 2 * kTile, a.features(),
                              position, AsItIs{});
  float w[4][8] = {};
  add_own_pairs(w, queries, keys, scale);
  add_pairs(w, queries, keys, logs, scale, tile);
  each(w, [&](int t, int j, float& x) { x = j >= masks.low[t] ? x : 0.f; });
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    if (16 * n > first_row()) break;
    Left left;
    round_left(left, w[n]);
    multiply_row<Right::plain, kWide>(c, left, wide, 16 * n);
  }
#pragma unroll
  for (int n = 0; n < 8; ++n) {
#pragma unroll
    for (int e = 0; e < 8; e += 2) {
      const int t = row_of(e);
      if (t >= p.length) continue;
      auto* const out = static_cast<bf16*>(a.out_BTHV) + ((p.row + t) * a.H + p.head) * 2 * kTile;
      *reinterpret_cast<std::uint32_t*>(out + column_of(n, e)) = pack_pair(c[n][e], c[n][e + 1]);
    }
  }
}

template <bool kBackward>
void start_states(const char* name, const LinearArgs& a, const void* dout, float* states, float* decays,
                  const Stream& stream) {
  start(name, add_states<kBackward>, a.B * a.Hkv * a.chunks(), kTileThreads, kLogBytes + tile_bytes(kNarrow + kWide),
        stream, a, static_cast<const bf16*>(dout), states, decays);
}

}  // namespace

void add_gated_states(const LinearArgs& a, float* states, float* decays, const Stream& stream) {
  start_states<false>("gated states", a, nullptr, states, decays, stream);
}
void add_gated_gradients(const LinearBackwardArgs& back, float* dstates, float* decays, const Stream& stream) {
  start_states<true>("gated state gradients", back.forward, back.dout_BTHV, dstates, decays, stream);
}
void find_gated_outputs(const LinearArgs& a, const float* states, const Stream& stream) {
  start("gated outputs", outputs, a.B * a.Hkv * a.chunks(), kTileThreads, kLogBytes + tile_bytes(3 * kNarrow + kWide),
        stream, a, states);
}

}  // namespace sieve::cuda::linear
