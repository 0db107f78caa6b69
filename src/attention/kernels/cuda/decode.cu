// One generation step against a cache: a block per (row, query head), whose warps take every eighth cached row each and
// carry an online softmax; the warps' parts are joined in their order.
#include "attention/kernels/cuda/launch.cuh"
#include "attention/kernels/cuda/tile.cuh"
#include "attention/kernels/decode.h"
#include "tensor/kernels/cuda/block.cuh"

namespace sieve::cuda {
namespace {

constexpr int kWarps = kThreads / 32;
constexpr int kEach = 8;  // features of a lane: lane, lane + 32, ...

__device__ inline float power_of_e(float x) { return expf(x); }
__device__ inline double power_of_e(double x) { return exp(x); }

// Element d of a row turned by an angle of the tables; sign -1 turns back. `row` is in global memory.
template <class C>
__device__ C turned(const void* base, std::int64_t at, std::int64_t d, DType dtype, std::int64_t R, const void* cos,
                    const void* sin, std::int64_t angle, C sign) {
  const C x = load_as<C>(base, at + d, dtype);
  if (d >= 2 * R) return x;
  const std::int64_t r = d < R ? d : d - R;
  const C c = static_cast<const C*>(cos)[angle * R + r], s = static_cast<const C*>(sin)[angle * R + r] * sign;
  const C other = load_as<C>(base, d < R ? at + R + r : at + r, dtype);
  return d < R ? x * c - other * s : x * c + other * s;
}

template <class C>
__global__ void __launch_bounds__(kThreads) decode(const DecodeArgs a) {
  __shared__ C tops[kWarps], sums[kWarps];
  C* parts = reinterpret_cast<C*>(dynamic_shared());  // (kWarps, D)
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const std::int64_t h = blockIdx.x % a.H, b = blockIdx.x / a.H, kv = h / (a.H / a.Hkv), R = a.rotary_dims / 2;
  const std::int64_t selection = b * a.Hs + (a.Hs == 1 ? 0 : kv);
  const CachedSlot* slots = a.slots != nullptr ? a.slots + selection * a.slot_stride : nullptr;
  const std::int64_t n = a.plain_rows + (slots != nullptr ? a.slot_count[selection] : 0);
  const bool turns_keys = R > 0 && a.distance_cos != nullptr;
  const std::int64_t q_at = b * a.qkv_stride + h * a.D, rows = (b * a.Hkv + kv) * a.capacity;
  C q[kEach], far_q[kEach], out[kEach], top = C(-1e30), sum = 0;
  for (int x = 0; x < kEach; ++x) {
    const std::int64_t d = lane + 32 * x;
    q[x] = far_q[x] = out[x] = 0;
    if (d >= a.D) continue;
    const std::int64_t turn = turns_keys ? 0 : R;  // keys at their own positions meet a query at its own
    q[x] = turned<C>(a.qkv_BF, q_at, d, a.dtype, turn, a.query_cos, a.query_sin, 0, C(1)) * static_cast<C>(a.scale);
    if (turns_keys)
      far_q[x] = turned<C>(a.qkv_BF, q_at, d, a.dtype, R, a.distance_cos, a.distance_sin, a.far_distance, C(1)) *
                 static_cast<C>(a.scale);
  }
  for (std::int64_t r = warp; r < n; r += kWarps) {
    const CachedSlot* slot = r < a.plain_rows ? nullptr : slots + (r - a.plain_rows);
    const std::int64_t at = (rows + (slot != nullptr ? slot->row : r)) * a.D;
    const std::int64_t distance = slot != nullptr ? slot->distance : (turns_keys ? (a.position - r) % a.ring : 0);
    const bool far = slot != nullptr && distance > a.far_distance;
    // (R_i q) . (R_j k) = q . (R_{-(i - j)} k): keys that are not rotated turn by minus their distance.
    const std::int64_t turn = turns_keys && !far ? R : 0;
    C logit = 0;
    for (int x = 0; x < kEach && lane + 32 * x < a.D; ++x) {
      logit += (turns_keys && far ? far_q[x] : q[x]) * turned<C>(a.keys_BKCD, at, lane + 32 * x, a.dtype, turn,
                                                                 a.distance_cos, a.distance_sin, distance, C(-1));
    }
    logit = warp_sum(logit);
    const C m = slot != nullptr && a.gate != GateMode::hard ? static_cast<C>(slot->gate) : C(1);
    if (a.gate == GateMode::kv) logit *= m;
    const C high = logit > top ? logit : top, shrink = power_of_e(top - high);
    C p = power_of_e(logit - high);
    if (a.gate == GateMode::prob) p *= m;
    sum = sum * shrink + p;
    if (a.gate == GateMode::kv || a.gate == GateMode::value) p *= m;
    for (int x = 0; x < kEach && lane + 32 * x < a.D; ++x)
      out[x] = out[x] * shrink + p * load_as<C>(a.values_BKCD, at + lane + 32 * x, a.dtype);
    top = high;
  }
  if (lane == 0) tops[warp] = top, sums[warp] = sum;
  for (int x = 0; x < kEach && lane + 32 * x < a.D; ++x) parts[warp * a.D + lane + 32 * x] = out[x];
  __syncthreads();
  C highest = tops[0], total = 0;
  for (int w = 1; w < kWarps; ++w) highest = tops[w] > highest ? tops[w] : highest;
  for (int w = 0; w < kWarps; ++w) total += sums[w] * power_of_e(tops[w] - highest);
  for (std::int64_t d = threadIdx.x; d < a.D; d += kThreads) {
    C value = 0;
    for (int w = 0; w < kWarps; ++w) value += parts[w * a.D + d] * power_of_e(tops[w] - highest);
    store_as(a.out_BHD, b * a.out_stride + h * a.D + d, a.dtype, total > 0 ? value / total : C(0));
  }
}

// A block per move.
template <class C>
__global__ void store_rows(const CacheStoreArgs a) {
  const CacheMove m = a.moves[blockIdx.x];
  const std::int64_t R = a.rotary_dims / 2, features = (a.H + 2 * a.Hkv) * a.D,
                     rows = (static_cast<std::int64_t>(m.b) * a.Hkv + m.kv) * a.capacity, to = (rows + m.to) * a.D;
  for (std::int64_t d = threadIdx.x; d < a.D; d += blockDim.x) {
    if (m.from < 0) {
      const std::int64_t from = (rows - 1 - m.from) * a.D + d;
      store_as(a.keys_BKCD, to + d, a.dtype, load_as<C>(a.keys_BKCD, from, a.dtype));
      store_as(a.values_BKCD, to + d, a.dtype, load_as<C>(a.values_BKCD, from, a.dtype));
      continue;
    }
    const std::int64_t token = (m.b * a.N + m.from) * features;
    store_as(a.keys_BKCD, to + d, a.dtype,
             turned<C>(a.qkv_BNF, token + (a.H + m.kv) * a.D, d, a.dtype, R, a.cos_NR, a.sin_NR, m.from, C(1)));
    store_as(a.values_BKCD, to + d, a.dtype, load_as<C>(a.qkv_BNF, token + (a.H + a.Hkv + m.kv) * a.D + d, a.dtype));
  }
}

}  // namespace

void run(const DecodeArgs& a, Stream stream) {
  if (a.D > 32 * kEach)
    fail(Exit::config, "cache", "head_dim ", a.D, " exceeds the ", 32 * kEach, " that the GPU's kernels hold");
  const auto part = static_cast<std::size_t>(kWarps * a.D);
  if (a.dtype == DType::f64) start("decode", decode<double>, a.B * a.H, kThreads, part * sizeof(double), stream, a);
  else start("decode", decode<float>, a.B * a.H, kThreads, part * sizeof(float), stream, a);
}

void run(const CacheStoreArgs& a, Stream stream) {
  if (a.dtype == DType::f64) start("cache rows", store_rows<double>, a.count, 128, 0, stream, a);
  else start("cache rows", store_rows<float>, a.count, 128, 0, stream, a);
}

}  // namespace sieve::cuda
