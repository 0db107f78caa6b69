// Pieces of a generation step that several kernels share (kernels/decode_step.h).
#pragma once

#include "attention/kernels/decode_step.h"
#include "attention/kernels/select.h"
#include "tensor/kernels/cuda/pack.cuh"

namespace sieve::cuda {

// The score of a new key on its way into the ring; one thread calls it.
__device__ inline void push_score(const DecodeScores& a, std::int64_t b, std::int64_t h, float score) {
  const std::int64_t row = b * a.Hs + h, position = *a.position;
  if (a.gain_H != nullptr) {  // as timestep_norm: the statistics include this score
    const double s = score, count = a.count[row] + 1, sum = a.sum[row] + s, squares = a.squares[row] + s * s;
    const double mean = sum / count, v = squares / count - mean * mean;
    score = static_cast<float>(static_cast<double>(a.gain_H[h]) * (s - mean) * (1.0 / sqrt((v < 0 ? 0 : v) + a.eps)));
    a.count[row] = count, a.sum[row] = sum, a.squares[row] = squares;
  }
  if (score != score) atomicAdd(a.nan_count, 1ull);
  a.ring[row * a.ring_size + position % a.ring_size] = order_score(score, a.slope, position);
}

// Which rows the query sees, in the order: window (newest first), sinks, slots.
struct DecodeRows {
  std::int64_t position, window, sinks, slots, ring, start;
  std::int64_t first_row = 0, first_sinks = 0;

  __device__ explicit DecodeRows(const DecodeAttendArgs& a) : position(*a.position) {
    const bool full = a.kind == AttentionKind::full;
    first_sinks = a.sinks;
    ring = full ? 0 : a.window;
    window = full ? position : min(position, a.window - 1);
    sinks = min(first_sinks, position - window);
    slots = a.kind == AttentionKind::sparsek ? a.selection.k : 0;
    first_row = full || position < first_sinks ? position : (position - first_sinks) % ring;
    start = position < first_sinks ? position : first_sinks + first_row;
  }
  __device__ std::int64_t count() const { return window + sinks + slots; }
  // Cache row of the key `distance` back, 1 <= distance < window.
  __device__ std::int64_t back(std::int64_t distance) const {
    const std::int64_t key = position - distance;
    if (ring == 0 || key < first_sinks) return key;
    const std::int64_t place = first_row - distance;
    return first_sinks + (place < 0 ? place + ring : place);
  }
  __device__ std::int64_t place(std::int64_t r) const {
    if (r < window) return back(r + 1);
    return r < window + sinks ? r - window : ring + (r - window - sinks);
  }
};

inline constexpr int kMerged = 4;  // features joined at once

// Features d .. d + kMerged of (batch row, query head) `head`, the splits joined in their order, eight on their way at
// once.
__device__ inline Pack<float, kMerged> merged(const DecodeParts& a, std::int64_t head, std::int64_t d) {
  constexpr int kAtOnce = 8;
  float high = -1e30f, total = 0;
  Pack<float, kMerged> out{};
  for (std::int64_t base = 0; base < a.S; base += kAtOnce) {
    Pack<float, 2> stats[kAtOnce];
    Pack<float, kMerged> sums[kAtOnce];
    float top = high;
#pragma unroll
    for (int s = 0; s < kAtOnce; ++s) {
      const std::int64_t at = head * a.S + min(base + s, a.S - 1);
      stats[s] = load_pack<2>(a.stats + at * 2);
      sums[s] = load_pack<kMerged>(a.sums + at * a.D + d);
    }
#pragma unroll
    for (int s = 0; s < kAtOnce; ++s) top = fmaxf(top, stats[s].at[0]);
    const float shrink = expf(high - top);
    total *= shrink;
#pragma unroll
    for (int k = 0; k < kMerged; ++k) out.at[k] *= shrink;
#pragma unroll
    for (int s = 0; s < kAtOnce; ++s) {
      const float weight = base + s < a.S ? expf(stats[s].at[0] - top) : 0.f;
      total = fmaf(stats[s].at[1], weight, total);
#pragma unroll
      for (int k = 0; k < kMerged; ++k) out.at[k] = fmaf(sums[s].at[k], weight, out.at[k]);
    }
    high = top;
  }
#pragma unroll
  for (int k = 0; k < kMerged; ++k) out.at[k] /= total;
  return out;
}

}  // namespace sieve::cuda
