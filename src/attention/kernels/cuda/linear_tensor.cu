// The linear form on tensor cores: states, outputs, and what the two directions of both forms launch.
#include "attention/kernels/cuda/linear_states.cuh"
#include "attention/kernels/cuda/linear_tensor.h"
#include "attention/kernels/cuda/linear_tile.cuh"

namespace sieve::cuda::linear {
namespace {

constexpr int kColumns = kTile + 1;  // of a state

__device__ void write_decays(const ChunkPlace& p, const Masks& masks, float* decays) {
  if (decays != nullptr && threadIdx.x < kTile)
    decays[p.index * kTile + threadIdx.x] = masks.old[p.length - 1] != 0 ? 0.f : -1.f;
}

__global__ void __launch_bounds__(kTileThreads) add_states(const LinearArgs a, float* states, float* decays) {
  __shared__ Masks masks;
  auto* const keys = reinterpret_cast<bf16*>(dynamic_shared());
  bf16* const values = keys + kTile * kNarrow;
  const ChunkPlace p(a);
  const Entries entries(a, p);
  masks.fill(a, p);
  __syncthreads();
  write_decays(p, masks, decays);
  const int reach = masks.reach(p);
  const auto* const k = static_cast<const bf16*>(a.qkv_BTF) + (a.H + p.head) * kTile;
  const bf16* const v = k + a.H * kTile;
  float c[5][8] = {};
  for (int first = reach / kTile * kTile; first < entries.count; first += kTile) {
    const auto position = [&](int r) { return first + r < reach ? -1 : entries.position(first + r); };
    __syncthreads();
    load_tile<kTile, kNarrow>(keys, k, a.features(), position, Feature{});
    load_tile<kTile, kJoined>(values, v, a.features(), position, AsItIs{});
    if (threadIdx.x < kTile) {
      Eight one{};
      store_eight(values + threadIdx.x * kJoined + kTile + 8, one);
      one.at[0] = bf16(position(static_cast<int>(threadIdx.x)) >= 0 ? 1.f : 0.f);
      store_eight(values + threadIdx.x * kJoined + kTile, one);
    }
    __syncthreads();
    multiply_transposed<kNarrow, kJoined>(c, keys, values);
  }
  float* const state = states + p.index * kTile * kColumns;
  each(c, [&](int d, int column, float x) {
    if (column < kColumns) state[d * kColumns + column] = x;
  });
}

// The sum's gradient is -(dout . out) / sum: too long for one bf16, hence two columns.
__global__ void __launch_bounds__(kTileThreads)
    add_gradients(const LinearArgs a, const bf16* dout, const float2* normals, float* dstates, float* decays) {
  __shared__ Masks masks;
  __shared__ float2 normal[kTile];
  auto* const queries = reinterpret_cast<bf16*>(dynamic_shared());
  bf16* const gradients = queries + kTile * kNarrow;
  const ChunkPlace p(a);
  const auto thread = static_cast<int>(threadIdx.x);
  masks.fill(a, p);
  if (thread < p.length) normal[thread] = normals[(p.row + thread) * a.H + p.head];
  __syncthreads();
  write_decays(p, masks, decays);
  const auto position = [&](int r) { return r < p.length && masks.old[r] != 0 ? p.row + r : -1; };
  load_tile<kTile, kNarrow>(queries, static_cast<const bf16*>(a.qkv_BTF) + p.head * kTile, a.features(), position,
                            [&](Eight& x, int r, int) {
                              for (bf16& y : x.at) y = bf16(elu_feature(static_cast<float>(y)) * normal[r].x);
                            });
  load_tile<kTile, kJoined>(gradients, dout + p.head * kTile, a.H * kTile, position, AsItIs{});
  if (thread < kTile) {
    Eight last{};
    store_eight(gradients + thread * kJoined + kTile + 8, last);
    if (position(thread) >= 0) {
      last.at[0] = bf16(-normal[thread].y);
      last.at[1] = bf16(-normal[thread].y - static_cast<float>(last.at[0]));
    }
    store_eight(gradients + thread * kJoined + kTile, last);
  }
  __syncthreads();
  float c[5][8] = {};
  multiply_transposed<kNarrow, kJoined>(c, queries, gradients);
  float* const state = dstates + p.index * kTile * kColumns;
  if (tile_lane() % 4 == 0) {
    c[4][0] += c[4][1];
    c[4][2] += c[4][3];
  }
  each(c, [&](int d, int column, float x) {
    if (column < kColumns) state[d * kColumns + column] = x;
  });
}

__global__ void __launch_bounds__(kTileThreads) outputs(const LinearArgs a, const float* states) {
  __shared__ Masks masks;
  auto* const queries = reinterpret_cast<bf16*>(dynamic_shared());
  bf16 *const keys = queries + kTile * kNarrow, *const values = keys + kTile * kNarrow;
  const ChunkPlace p(a);
  const Entries entries(a, p);
  masks.fill(a, p);
  const bf16 *const q = static_cast<const bf16*>(a.qkv_BTF) + p.head * kTile, *const k = q + a.H * kTile,
                    *const v = k + a.H * kTile;
  load_tile<kTile, kNarrow>(
      queries, q, a.features(), [&](int r) { return p.position(r); }, Feature{});
  for (int x = static_cast<int>(threadIdx.x); x < kTile * 2; x += kTileThreads)
    store_eight(values + x / 2 * kJoined + kTile + x % 2 * 8, Eight{});
  __syncthreads();
  read_state(states + p.index * kTile * kColumns, kTile * kColumns,
             [&](int x, float y) { values[x / kColumns * kJoined + x % kColumns] = bf16(y); });
  __syncthreads();
  float c[5][8] = {};
  multiply_tiles<kTile, kNarrow, Right::plain, kJoined>(c, queries, values);
  each(c, [&](int t, int, float& x) { x = masks.old[t] != 0 ? x : 0.f; });
  for (int first = 0; first < entries.count; first += kTile) {
    const auto position = [&](int r) { return entries.position(first + r); };
    __syncthreads();
    load_tile<kTile, kNarrow>(keys, k, a.features(), position, Feature{});
    load_tile<kTile, kJoined>(values, v, a.features(), position, AsItIs{});
    if (threadIdx.x < kTile) values[threadIdx.x * kJoined + kTile] = bf16(1.f);  // the other fifteen meet no output
    __syncthreads();
    float weights[4][8] = {};
    multiply_tiles<kTile, kNarrow, Right::transposed, kNarrow>(weights, queries, keys);
    each(weights, [&](int t, int e, float& x) { x = masks.sees(t, first + e) ? x : 0.f; });
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      Left left;
      round_left(left, weights[n]);
      multiply_row<Right::plain, kJoined>(c, left, values, 16 * n);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {  // rows lane / 4, and 8 below
    const float sum = __shfl_sync(0xffffffffu, c[4][2 * half], tile_lane() / 4 * 4);
    const float factor = sum == 0.f ? 0.f : 1 / sum;
    const int t = row_of(2 * half);
    if (t >= p.length) continue;
    const std::int64_t row = (p.row + t) * a.H + p.head;
    if (tile_lane() % 4 == 0 && a.sums_BTH != nullptr) static_cast<float*>(a.sums_BTH)[row] = sum;
    auto* const out = static_cast<bf16*>(a.out_BTHV) + row * kTile;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int e = 2 * half; e < 8; e += 4)
        *reinterpret_cast<std::uint32_t*>(out + column_of(n, e)) = pack_pair(c[n][e] * factor, c[n][e + 1] * factor);
    }
  }
}

// Eight lanes a row.
__global__ void normals_of(const bf16* dout, const bf16* out, const float* sums, float2* normals, std::int64_t rows) {
  const std::int64_t row = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 8;
  float dot = 0;
  const auto lane = static_cast<int>(threadIdx.x) % 8;
  if (row < rows) {
    const Eight x = load_eight(dout + row * kTile + lane * 8), y = load_eight(out + row * kTile + lane * 8);
#pragma unroll
    for (int i = 0; i < 8; ++i) dot = fmaf(static_cast<float>(x.at[i]), static_cast<float>(y.at[i]), dot);
  }
#pragma unroll
  for (int offset = 4; offset > 0; offset /= 2) dot += __shfl_xor_sync(0xffffffffu, dot, offset);
  if (row < rows && lane == 0) normals[row] = float2{sums[row] == 0.f ? 0.f : 1 / sums[row], dot};
}

bool aligned_16(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }

}  // namespace

bool takes_tensor_cores(const LinearArgs& a) {
  return a.dtype == DType::bf16 && a.H == a.Hkv && a.D == kTile && a.V == (a.gated() ? 2 * kTile : kTile) &&
         !(a.gated() && a.entry_first_BHT != nullptr) && a.state_BHDV == nullptr && aligned_16(a.qkv_BTF) &&
         aligned_16(a.gates_BTHD) && aligned_16(a.out_BTHV) && aligned_16(a.chunk_states);
}
bool takes_tensor_cores(const LinearBackwardArgs& back) {
  return takes_tensor_cores(back.forward) && aligned_16(back.dout_BTHV) && aligned_16(back.dqkv_BTF) &&
         (!back.forward.gated() || fits_gated_gradients());
}

void add_linear_states(const LinearArgs& a, float* states, float* decays, const Stream& stream) {
  start("linear states", add_states, a.B * a.Hkv * a.chunks(), kTileThreads, tile_bytes(kNarrow + kJoined), stream, a,
        states, decays);
}
void add_linear_gradients(const LinearBackwardArgs& back, const float* normals, float* dstates, float* decays,
                          const Stream& stream) {
  const LinearArgs& a = back.forward;
  start("linear state gradients", add_gradients, a.B * a.Hkv * a.chunks(), kTileThreads, tile_bytes(kNarrow + kJoined),
        stream, a, static_cast<const bf16*>(back.dout_BTHV), reinterpret_cast<const float2*>(normals), dstates, decays);
}
void find_linear_outputs(const LinearArgs& a, const float* states, const Stream& stream) {
  start("linear outputs", outputs, a.B * a.Hkv * a.chunks(), kTileThreads, tile_bytes(2 * kNarrow + kJoined), stream, a,
        states);
}
void find_normals(const LinearBackwardArgs& back, float* normals, const Stream& stream) {
  const LinearArgs& a = back.forward;
  const std::int64_t rows = a.B * a.T * a.H;
  start("linear normals", normals_of, (rows * 8 + kThreads - 1) / kThreads, kThreads, 0, stream,
        static_cast<const bf16*>(back.dout_BTHV), static_cast<const bf16*>(a.out_BTHV),
        static_cast<const float*>(a.sums_BTH), reinterpret_cast<float2*>(normals), rows);
}

void tensor_forward(const LinearArgs& a, const Stream& stream) {
  const std::int64_t chunks = a.B * a.Hkv * a.chunks();
  const Scratch own(a.chunk_states != nullptr ? 0 : floats(chunks * a.D * a.columns()), stream);
  const Scratch decay(decays(a) ? floats(chunks * a.D) : 0, stream);
  auto* const states = a.chunk_states != nullptr ? static_cast<float*>(a.chunk_states) : own.as<float>();
  float* const chunk_decays = decays(a) ? decay.as<float>() : nullptr;
  a.gated() ? add_gated_states(a, states, chunk_decays, stream) : add_linear_states(a, states, chunk_decays, stream);
  carry_states(a, states, chunk_decays, stream);
  a.gated() ? find_gated_outputs(a, states, stream) : find_linear_outputs(a, states, stream);
}

void tensor_backward(const LinearBackwardArgs& back, const Stream& stream) {
  const LinearArgs& a = back.forward;
  const std::int64_t chunks = a.B * a.Hkv * a.chunks();
  const Scratch dstates(floats(chunks * a.D * a.columns()), stream),
      decay(decays(a) ? floats(chunks * a.D) : 0, stream), normals(a.gated() ? 0 : floats(a.B * a.T * a.H * 2), stream);
  float* const chunk_decays = decays(a) ? decay.as<float>() : nullptr;
  if (a.gated()) {
    add_gated_gradients(back, dstates.as<float>(), chunk_decays, stream);
    carry_gradients(a, dstates.as<float>(), chunk_decays, stream);
    find_gated_gradients(back, dstates.as<float>(), stream);
    return;
  }
  find_normals(back, normals.as<float>(), stream);
  add_linear_gradients(back, normals.as<float>(), dstates.as<float>(), chunk_decays, stream);
  carry_gradients(a, dstates.as<float>(), chunk_decays, stream);
  find_linear_gradients(back, normals.as<float>(), dstates.as<float>(), stream);
}

}  // namespace sieve::cuda::linear
