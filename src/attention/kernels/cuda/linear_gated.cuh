// The gated form on tensor cores: a pair (t, j) of a chunk weighs sum_d q_td k_jd exp(L_td - L_jd), L the sums of the
// logarithms of the decays from the chunk's begin on. No quotient of decays is ever formed: the pairs of which the
// highest bit in which t and j differ is `half` meet at m, the last position before the upper half of their 2 `half`,
// as (q_t exp(L_t - L_m)) (k_j exp(L_m - L_j)), both exponents at most 0. Six halves and the pairs t = j are all. One
// tile a half holds both sides, queries in the rows of upper halves, keys in those of lower ones.
#pragma once

#include "attention/kernels/cuda/linear_tile.cuh"

namespace sieve::cuda::linear {

// Below it a decay is nothing; sums of 64 keep two decimals.
inline constexpr float kLeastLog = -64;

__device__ inline float log_decay(float gate, float power) {
  const float size = fabsf(gate), log = -power * ((gate < 0 ? size : 0.f) + log1pf(__expf(-size)));
  return log < kLeastLog ? kLeastLog : log;
}

// Eight numbers of a row of fp32 in shared memory, in accesses of 16 bytes.
__device__ inline void load_exact(float (&x)[8], const float* from) {
  const float4 low = reinterpret_cast<const float4*>(from)[0], high = reinterpret_cast<const float4*>(from)[1];
  x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
  x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
}
// Queries on their way from the chunk's begin, keys on theirs to its end.
__device__ inline void decay_query(Eight& x, const float* logs, float scale, int t, int c) {
  float to[8];
  load_exact(to, logs + t * kExact + c);
#pragma unroll
  for (int i = 0; i < 8; ++i) x.at[i] = bf16(static_cast<float>(x.at[i]) * scale * __expf(to[i]));
}
__device__ inline void decay_key(Eight& x, const float* logs, int t, int c) {
  float to[8], from[8];
  load_exact(to, logs + (kTile - 1) * kExact + c);
  load_exact(from, logs + t * kExact + c);
#pragma unroll
  for (int i = 0; i < 8; ++i) x.at[i] = bf16(static_cast<float>(x.at[i]) * __expf(to[i] - from[i]));
}

// logs (64, kExact): L, from the gates alone; behind the chunk's last position it stays as it is there. Needs no
// barrier before it and ends with one, after which what the caller's threads wrote before it can be read as well.
__device__ inline void load_logs(const LinearArgs& a, const ChunkPlace& p, float* logs) {
  const auto thread = static_cast<int>(threadIdx.x);
  const auto* const gates = static_cast<const bf16*>(a.gates_BTHD) + p.head * kTile;
  const auto power = static_cast<float>(a.power);
#pragma unroll 4
  for (int x = thread; x < kTile * 8; x += kTileThreads) {
    const int t = x / 8, c = x % 8 * 8;
    Eight eight{};
    if (t < p.length) eight = load_eight(gates + (p.row + t) * a.Hkv * kTile + c);
    float log[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) log[i] = t < p.length ? log_decay(static_cast<float>(eight.at[i]), power) : 0.f;
    auto* const to = reinterpret_cast<float4*>(logs + t * kExact + c);
    to[0] = float4{log[0], log[1], log[2], log[3]}, to[1] = float4{log[4], log[5], log[6], log[7]};
  }
  __syncthreads();
  float* const column = logs + thread % kTile;
  const int first = thread / kTile * 32;
  float sum = 0;
#pragma unroll 8
  for (int t = first; t < first + 32; ++t) column[t * kExact] = sum += column[t * kExact];
  __syncthreads();
  const float before = column[31 * kExact];
  if (first != 0) {
#pragma unroll 8
    for (int t = 32; t < kTile; ++t) column[t * kExact] += before;
  }
  __syncthreads();
}

// Whether the warp's rows have pairs with the 16 columns of `block` at this half, and whether (row, column) is one.
__device__ inline bool block_meets(int half, int block) {
  const int own = first_row() / 16;
  return half == 32 ? (block ^ own) >= 2 : block == (half == 16 ? own ^ 1 : own);
}
__device__ inline bool meets(int half, int row, int column) {
  const int differ = row ^ column;
  return differ >= half && differ < 2 * half;
}
// Whether all the warp's rows lie in halves of the other kind.
__device__ inline bool none_upper(int half) { return half >= 16 && (first_row() & half) == 0; }
__device__ inline bool none_lower(int half) { return half >= 16 && (first_row() & half) != 0; }

// m, where the pairs of row's half meet.
__device__ inline int middle_of(int half, int row) { return (row & ~(2 * half - 1)) | (half - 1); }

// The tile of a half from q and k as they came, and, if it is wanted, what the rounding left of it.
__device__ inline void build_half(int half, const bf16* q, const bf16* k, const float* logs, float scale, bf16* tile,
                                  bf16* rest = nullptr) {
#pragma unroll 2
  for (int x = static_cast<int>(threadIdx.x); x < kTile * 8; x += kTileThreads) {
    const int t = x / 8, c = x % 8 * 8;
    const bool upper = (t & half) != 0;
    const float sign = upper ? 1.f : -1.f, factor = upper ? scale : 1.f;
    const uint4 word = *reinterpret_cast<const uint4*>((upper ? q : k) + t * kNarrow + c);
    Eight eight, left{};
    memcpy(&eight, &word, sizeof(eight));
    float to[8], from[8];
    load_exact(to, logs + t * kExact + c);
    load_exact(from, logs + middle_of(half, t) * kExact + c);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float y = static_cast<float>(eight.at[i]) * factor * __expf(sign * (to[i] - from[i]));
      eight.at[i] = bf16(y);
      left.at[i] = bf16(y - static_cast<float>(eight.at[i]));
    }
    store_eight(tile + t * kNarrow + c, eight);
    if (rest != nullptr) store_eight(rest + t * kNarrow + c, left);
  }
}

// c (16, 16) = rows of the warp times rows [16 block, 16 block + 16) of right, both (64, 64).
__device__ inline void pair_block(float (&c)[8], const bf16* left, const bf16* right, int block) {
#pragma unroll
  for (float& x : c) x = 0.f;
#pragma unroll
  for (int k = 0; k < kTile; k += 16) {
    Left x;
    load_left<kNarrow>(x, left, k);
    multiply_block<Right::transposed, kNarrow>(c, x, right, k, 16 * block);
  }
}

// Adds the weights t = j to the warp's own block.
__device__ inline void add_own_pairs(float (&w)[4][8], const bf16* left, const bf16* right, float scale) {
  float c[8];
  pair_block(c, left, right, first_row() / 16);
  each_place<4>([&](int n, int e, int row, int column) { w[n][e] += row == column ? scale * c[e] : 0.f; });
}

// Four numbers of a state, rounded into a tile, and what the rounding left into another, if it is wanted.
__device__ inline void round_four(const float4& x, bf16* tile, bf16* rest, int at) {
  const uint2 high{pack_pair(x.x, x.y), pack_pair(x.z, x.w)};
  *reinterpret_cast<uint2*>(tile + at) = high;
  if (rest == nullptr) return;
  bf16 y[4];
  memcpy(y, &high, sizeof(y));
  *reinterpret_cast<uint2*>(rest + at) =
      uint2{pack_pair(x.x - static_cast<float>(y[0]), x.y - static_cast<float>(y[1])),
            pack_pair(x.z - static_cast<float>(y[2]), x.w - static_cast<float>(y[3]))};
}

// A state (64, 128) as a tile.
__device__ inline void load_wide_state(const float* state, bf16* tile, bf16* rest = nullptr) {
#pragma unroll 4
  for (int x = static_cast<int>(threadIdx.x); x < kTile * 32; x += kTileThreads)
    round_four(__ldg(reinterpret_cast<const float4*>(state) + x), tile, rest, x / 32 * kWide + x % 32 * 4);
}

}  // namespace sieve::cuda::linear
