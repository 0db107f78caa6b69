// Gradients of the linear form on tensor cores. With w_ti = phi(q_t) . phi(k_i) / sum_t, the weight of key i, and
// dw_ti = dout_t . v_i - dout_t . out_t: dphi(q_t) = sum_i dw phi(k_i) / sum_t, dphi(k_i) = sum_t dw phi(q_t) / sum_t,
// dv_i = sum_t w dout_t. What is beyond the chunk stands in the states, whose last column belongs to the sum.
#include "attention/kernels/cuda/linear_tensor.h"
#include "attention/kernels/cuda/linear_tile.cuh"
#include "tensor/cuda/check.h"

namespace sieve::cuda::linear {
namespace {

constexpr int kColumns = kTile + 1;  // of a state

struct Gradients {
  LinearArgs a;
  const bf16* dout;
  const float2* normals;
  const float* dstates;
  bf16* dqkv;
};

struct Shared {
  Masks masks;
  float2 normal[kTile];
  float last[kTile];  // a state's last column
};

__device__ void fill_shared(const Gradients& g, const ChunkPlace& p, Shared& shared) {
  const auto thread = static_cast<int>(threadIdx.x);
  shared.masks.fill(g.a, p);
  if (thread < kTile)
    shared.normal[thread] = thread < p.length ? g.normals[(p.row + thread) * g.a.H + p.head] : float2{0.f, 0.f};
}

// Rounded into a tile, what the rounding left into another: gradients of values that have a mean cancel against the
// last column.
__device__ void load_state(const float* state, bf16* tile, bf16* rest, float* last) {
  read_state(state, kTile * kColumns, [&](int x, float y) {
    const int d = x / kColumns, column = x % kColumns;
    if (column == kTile) {
      last[d] = y;
      return;
    }
    const bf16 high(y);
    tile[d * kNarrow + column] = high;
    rest[d * kNarrow + column] = bf16(y - static_cast<float>(high));
  });
}

// Two neighbouring numbers of a row of dqkv: the features' gradients times the slopes.
__device__ void store_pair(const Gradients& g, std::int64_t at, float x, float y, bool slope) {
  if (slope) {
    const std::uint32_t pair =
        __ldg(reinterpret_cast<const std::uint32_t*>(static_cast<const bf16*>(g.a.qkv_BTF) + at));
    x *= elu_slope(__uint_as_float(pair << 16)), y *= elu_slope(__uint_as_float(pair & 0xffff0000u));
  }
  *reinterpret_cast<std::uint32_t*>(g.dqkv + at) = pack_pair(x, y);
}

__global__ void __launch_bounds__(kTileThreads) query_gradients(const Gradients g) {
  __shared__ Shared shared;
  const LinearArgs& a = g.a;
  auto* const douts = reinterpret_cast<bf16*>(dynamic_shared());
  bf16 *const keys = douts + kTile * kNarrow, *const values = keys + kTile * kNarrow;
  const ChunkPlace p(a);
  const Entries entries(a, p);
  fill_shared(g, p, shared);
  load_tile<kTile, kNarrow>(
      douts, g.dout + p.head * kTile, a.H * kTile, [&](int r) { return p.position(r); }, AsItIs{});
  load_state(static_cast<const float*>(a.chunk_states) + p.index * kTile * kColumns, values, keys, shared.last);
  __syncthreads();
  float c[4][8] = {};
  multiply_tiles<kTile, kNarrow, Right::transposed, kNarrow>(c, douts, values);
  multiply_tiles<kTile, kNarrow, Right::transposed, kNarrow>(c, douts, keys);
  each(c,
       [&](int t, int d, float& x) { x = shared.masks.old[t] != 0 ? x - shared.normal[t].y * shared.last[d] : 0.f; });
  const bf16 *const k = static_cast<const bf16*>(a.qkv_BTF) + (a.H + p.head) * kTile, *const v = k + a.H * kTile;
  for (int first = 0; first < entries.count; first += kTile) {
    const auto position = [&](int r) { return entries.position(first + r); };
    __syncthreads();
    load_tile<kTile, kNarrow>(keys, k, a.features(), position, Feature{});
    load_tile<kTile, kNarrow>(values, v, a.features(), position, AsItIs{});
    __syncthreads();
    float dw[4][8] = {};
    multiply_tiles<kTile, kNarrow, Right::transposed, kNarrow>(dw, douts, values);
    each(dw, [&](int t, int e, float& x) { x = shared.masks.sees(t, first + e) ? x - shared.normal[t].y : 0.f; });
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      Left left;
      round_left(left, dw[n]);
      multiply_row<Right::plain, kNarrow>(c, left, keys, 16 * n);
    }
  }
#pragma unroll
  for (int n = 0; n < 4; ++n) {
#pragma unroll
    for (int e = 0; e < 8; e += 2) {
      const int t = row_of(e);
      const float factor = shared.normal[t].x;
      if (t < p.length)
        store_pair(g, (p.row + t) * a.features() + p.head * kTile + column_of(n, e), c[n][e] * factor,
                   c[n][e + 1] * factor, true);
    }
  }
}

// The gradients of the keys that enter in the chunk, 64 at a time: rows of all products are keys.
__global__ void __launch_bounds__(kTileThreads) key_gradients(const Gradients g) {
  __shared__ Shared shared;
  const LinearArgs& a = g.a;
  auto* const queries = reinterpret_cast<bf16*>(dynamic_shared());
  bf16 *const douts = queries + kTile * kNarrow, *const keys = douts + kTile * kNarrow,
              *const values = keys + kTile * kNarrow, *const state = values + kTile * kNarrow,
              *const rest = state + kTile * kNarrow;
  const ChunkPlace p(a);
  const Entries entries(a, p);
  fill_shared(g, p, shared);
  __syncthreads();
  const auto here = [&](int r) { return p.position(r); };
  const auto* const q = static_cast<const bf16*>(a.qkv_BTF) + p.head * kTile;
  const bf16 *const k = q + a.H * kTile, *const v = k + a.H * kTile;
  load_tile<kTile, kNarrow>(queries, q, a.features(), here, Feature{});
  load_tile<kTile, kNarrow>(douts, g.dout + p.head * kTile, a.H * kTile, here, AsItIs{});
  load_state(g.dstates + p.index * kTile * kColumns, state, rest, shared.last);
  const int reach = shared.masks.reach(p);
  for (int first = 0; first < entries.count; first += kTile) {
    const auto position = [&](int r) { return entries.position(first + r); };
    __syncthreads();
    load_tile<kTile, kNarrow>(keys, k, a.features(), position, Feature{});
    load_tile<kTile, kNarrow>(values, v, a.features(), position, AsItIs{});
    __syncthreads();
    const auto finish = [&](float(&c)[4][8], const float(&w)[4][8], const bf16* right, std::int64_t to, bool slope) {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        Left left, left_rest;
        round_left(left, left_rest, w[n]);
        multiply_row<Right::plain, kNarrow>(c, left, right, 16 * n);
        multiply_row<Right::plain, kNarrow>(c, left_rest, right, 16 * n);
      }
#pragma unroll
      for (int e = 0; e < 4; e += 2) {
        const std::int64_t row = position(row_of(e));
        if (row < 0) continue;
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          store_pair(g, row * a.features() + to + column_of(n, e), c[n][e], c[n][e + 1], slope);
          store_pair(g, row * a.features() + to + column_of(n, e + 4), c[n][e + 4], c[n][e + 5], slope);
        }
      }
    };
    {
      float c[4][8] = {}, w[4][8] = {};
      multiply_tiles<kTile, kNarrow, Right::plain, kNarrow>(c, keys, state);
      multiply_tiles<kTile, kNarrow, Right::transposed, kNarrow>(w, keys, queries);
      each(c, [&](int e, int, float& x) { x = first + e >= reach ? x : 0.f; });
      each(w, [&](int e, int t, float& x) {  // rounded as in the sum that it is divided by
        x = shared.masks.sees(t, first + e) ? static_cast<float>(bf16(x)) * shared.normal[t].x : 0.f;
      });
      finish(c, w, douts, (2 * a.H + p.head) * kTile, false);
    }
    float c[4][8] = {}, w[4][8] = {};
    multiply_tiles<kTile, kNarrow, Right::transposed, kNarrow>(c, values, state);
    multiply_tiles<kTile, kNarrow, Right::transposed, kNarrow>(c, values, rest);
    multiply_tiles<kTile, kNarrow, Right::transposed, kNarrow>(w, values, douts);
    each(c, [&](int e, int d, float& x) { x = first + e >= reach ? x + shared.last[d] : 0.f; });
    each(w, [&](int e, int t, float& x) {
      x = shared.masks.sees(t, first + e) ? (x - shared.normal[t].y) * shared.normal[t].x : 0.f;
    });
    finish(c, w, queries, (a.H + p.head) * kTile, true);
  }
}

}  // namespace

void find_linear_gradients(const LinearBackwardArgs& back, const float* normals, const float* dstates,
                           const Stream& stream) {
  const LinearArgs& a = back.forward;
  const Gradients g{a, static_cast<const bf16*>(back.dout_BTHV), reinterpret_cast<const float2*>(normals), dstates,
                    static_cast<bf16*>(back.dqkv_BTF)};
  if (a.entry_first_BHT != nullptr) {  // keys that never enter
    check(cudaMemsetAsync(back.dqkv_BTF, 0, static_cast<std::size_t>(a.B * a.T * a.features()) * sizeof(bf16),
                          handle_of(stream)),
          "linear gradients");
  }
  const std::int64_t blocks = a.B * a.Hkv * a.chunks();
  start("linear dq", query_gradients, blocks, kTileThreads, tile_bytes(3 * kNarrow), stream, g);
  start("linear dk and dv", key_gradients, blocks, kTileThreads, tile_bytes(6 * kNarrow), stream, g);
}

}  // namespace sieve::cuda::linear
