// The vocabulary of pattern attention by tensor cores: rows on their way to shared memory while others are in work, and
// products whose left operand lies in registers. A warp owns 16 rows of a tile of 64; accumulators lie as tile.cuh
// says.
#pragma once

#include <cmath>

#include "attention/kernels/cuda/pattern_lists.cuh"
#include "attention/kernels/cuda/pattern_primitives.cuh"

namespace sieve::cuda {

// The rows of one (b, head): position i begins at base + i * stride.
struct HeadRows {
  const bf16* base;
  std::int64_t stride;

  __device__ HeadRows(const Rows& rows, std::int64_t b, std::int64_t T, std::int64_t h, std::int64_t D)
      : base(static_cast<const bf16*>(rows.base) + b * T * rows.stride + rows.offset + h * D), stride(rows.stride) {}
};

// 64 rows of D features in shared memory, 16 bytes beyond a multiple of 128 apart: eight of them meet all banks once.
template <int D>
struct Panel {
  static constexpr int kStride = D + 8, kElements = kSide * kStride;

  // Rows of the slots from `slot` on. The whole block of threads.
  __device__ static void fetch(bf16* to, const HeadRows& rows, const std::int32_t* order, std::int64_t slot,
                               std::int64_t T) {
    constexpr int kChunks = D / 8, kStep = kTileThreads / kChunks;
    const int r = static_cast<int>(threadIdx.x) / kChunks, d = static_cast<int>(threadIdx.x) % kChunks * 8;
    const bf16* base = rows.base + d;
    to += r * kStride + d;
    slot += r;
    if (order != nullptr) {
#pragma unroll
      for (int x = 0; x < kSide; x += kStep) {
        const int i = PatternLists::position(order, slot + x, T);
        copy_16(to + x * kStride, base + (i < 0 ? 0 : i) * rows.stride, i >= 0);
      }
      return;
    }
    const bf16* from = base + slot * rows.stride;
#pragma unroll
    for (int x = 0; x < kSide; x += kStep, from += kStep * rows.stride) {
      const bool real = slot + x < T;
      copy_16(to + x * kStride, real ? from : base, real);
    }
  }

  // The same of two kinds of rows, one behind the other.
  __device__ __forceinline__ static void fetch_two(bf16* to, const HeadRows& first, const HeadRows& second,
                                                   const std::int32_t* order, std::int64_t slot, std::int64_t T) {
    fetch(to, first, order, slot, T);
    fetch(to + kElements, second, order, slot, T);
  }

  // sum (16 own rows, kColumns rows of `other` from `first` on) = left other^T
  template <int kColumns>
  __device__ static void multiply_transposed(float* sum, const std::uint32_t (*left)[4], const bf16* other, int first) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const bf16* row = other + (first + lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 8;
#pragma unroll
    for (int x = 0; x < kColumns / 2; ++x) sum[x] = 0;
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
#pragma unroll
      for (int n = 0; n < kColumns / 8; n += 2) {
        std::uint32_t right[4];
        load_matrices(right, row + n * 8 * kStride + k * 16);
        multiply_add(sum + 4 * n, left[k], right[0], right[1]);
        multiply_add(sum + 4 * n + 4, left[k], right[2], right[3]);
      }
    }
  }
  // The same where the left operand waits in shared memory.
  template <int kColumns>
  __device__ static void multiply_transposed(float* sum, const bf16* left, const bf16* other, int first) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const bf16* row = other + (first + lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 8;
    const bf16* own = left + (static_cast<int>(threadIdx.x) / 32 * 16 + lane % 16) * kStride + lane / 16 * 8;
#pragma unroll
    for (int x = 0; x < kColumns / 2; ++x) sum[x] = 0;
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      std::uint32_t held[4], right[4];
      load_matrices(held, own + k * 16);
#pragma unroll
      for (int n = 0; n < kColumns / 8; n += 2) {
        load_matrices(right, row + n * 8 * kStride + k * 16);
        multiply_add(sum + 4 * n, held, right[0], right[1]);
        multiply_add(sum + 4 * n + 4, held, right[2], right[3]);
      }
    }
  }

  // sums (16 own rows, D) += weights (16, kRows) times the rows of `other` from `first` on. Weights are rounded to
  // bf16.
  template <int kRows>
  __device__ static void add_product(float (*sums)[kHeld], const float* weights, const bf16* other, int first) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const bf16* column = other + (first + lane / 8 % 2 * 8 + lane % 8) * kStride + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < kRows / 16; ++k) {
      const float* w = weights + 8 * k;
      const std::uint32_t left[4] = {pack_pair(w[0], w[1]), pack_pair(w[2], w[3]), pack_pair(w[4], w[5]),
                                     pack_pair(w[6], w[7])};
#pragma unroll
      for (int n = 0; n < D / 8; n += 2) {
        std::uint32_t right[4];
        load_matrices_transposed(right, column + k * 16 * kStride + n * 8);
        float* sum = sums[n / 8] + n % 8 * 4;
        multiply_add(sum, left, right[0], right[1]);
        multiply_add(sum + 4, left, right[2], right[3]);
      }
    }
  }

  // The warp's 16 rows as a left operand, straight from memory. at: positions of the thread's two rows.
  __device__ static void hold(std::uint32_t (*left)[4], const HeadRows& rows, const int (&at)[2]) {
    const int column = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
#pragma unroll
      for (int x = 0; x < 4; ++x) {
        const int i = at[x % 2];
        left[k][x] =
            i < 0 ? 0u
                  : *reinterpret_cast<const std::uint32_t*>(rows.base + i * rows.stride + k * 16 + x / 2 * 8 + column);
      }
    }
  }
};

// Logits of 64 keys become weights, in units of log 2 (times factor); what was summed before them shrinks.
template <int D>
__device__ inline void advance(float* s, float (&top)[2], float (&denominator)[2], float (*sums)[kHeld], float factor) {
  float high[2] = {-INFINITY, -INFINITY}, shrink[2];
#pragma unroll
  for (int x = 0; x < kHeld; ++x) high[x / 2 % 2] = fmaxf(high[x / 2 % 2], s[x]);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float moved = fmaxf(top[r], row_max(high[r]) * factor);
    shrink[r] = quick_power_of_2(top[r] - moved);
    top[r] = moved;
    denominator[r] *= shrink[r];
  }
#pragma unroll
  for (int x = 0; x < kHeld; ++x) {
    s[x] = quick_power_of_2(fmaf(s[x], factor, -top[x / 2 % 2]));  // NaN stays one
    denominator[x / 2 % 2] += s[x];
  }
#pragma unroll
  for (int p = 0; p < D / kSide; ++p) {
#pragma unroll
    for (int x = 0; x < kHeld; ++x) sums[p][x] *= shrink[x / 2 % 2];
  }
}

// The end of a row's softmax: completes the denominator; returns what the row's sums are to be multiplied by.
__device__ __forceinline__ float finish(float& denominator) {
  denominator = row_sum(denominator);
  return denominator == 0 ? 0.f : 1 / denominator;
}
__device__ __forceinline__ float statistic(float top, float denominator) {
  return denominator == 0 ? static_cast<float>(-kNothing) : top + logarithm_2(denominator);
}

// dO . o of the thread's two rows, given dO as a left operand.
template <int D>
__device__ inline void make_delta(float (&delta)[2], const std::uint32_t (*dout)[4], const HeadRows& out,
                                  const int (&at)[2]) {
  std::uint32_t o[D / 16][4];
  Panel<D>::hold(o, out, at);
  delta[0] = delta[1] = 0;
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
#pragma unroll
    for (int x = 0; x < 4; ++x) delta[x % 2] += product_of_pairs(dout[k][x], o[k][x]);
  }
  delta[0] = row_sum(delta[0]), delta[1] = row_sum(delta[1]);
}

// The words of the thread's two rows, moved so that bit 8 n + e belongs to the column of an accumulator 4 n + e.
struct RowWords {
  std::uint32_t half[2][2];  // row, columns of 32

  __device__ void read(const Word* words, std::int32_t entry) {
    if ((entry & 1) == 0) {
      half[0][0] = half[0][1] = half[1][0] = half[1][1] = ~0u;
      return;
    }
    const auto* at = reinterpret_cast<const uint2*>(words + static_cast<std::int64_t>(entry >> 1) * kSide + warp_row());
    const uint2 low = at[0], high = at[8];
    const int shift = static_cast<int>(threadIdx.x) % 4 * 2;
    half[0][0] = low.x >> shift, half[0][1] = low.y >> shift;
    half[1][0] = high.x >> shift, half[1][1] = high.y >> shift;
  }
  // Accumulator x of the columns from 32 * part on.
  __device__ bool sees(int part, int x) const {
    return (half[x / 2 % 2][part + x / 16] >> (x % 16 / 4 * 8 + (x & 1)) & 1u) != 0;
  }
};

// Sums of the thread's two rows as one phase leaves them to the next. base: of the (row, head); at: positions.
template <int D>
struct Between {
  float* base;
  std::int64_t stride;

  __device__ float* place(int row, int p, int n) const {
    return base + row * stride + p * kSide + n * 8 + static_cast<int>(threadIdx.x) % 4 * 2;
  }
  __device__ void read(float (*sums)[kHeld], const int (&at)[2]) const {
#pragma unroll
    for (int p = 0; p < D / kSide; ++p) {
#pragma unroll
      for (int x = 0; x < kHeld; x += 2) {
        const int row = at[x / 2 % 2];
        const float2 pair = row < 0 ? make_float2(0, 0) : *reinterpret_cast<const float2*>(place(row, p, x / 4));
        sums[p][x] = pair.x, sums[p][x + 1] = pair.y;
      }
    }
  }
  __device__ void write(const float (*sums)[kHeld], const float (&factor)[2], const int (&at)[2]) const {
#pragma unroll
    for (int p = 0; p < D / kSide; ++p) {
#pragma unroll
      for (int x = 0; x < kHeld; x += 2) {
        const int r = x / 2 % 2;
        if (at[r] < 0) continue;
        *reinterpret_cast<float2*>(place(at[r], p, x / 4)) =
            make_float2(sums[p][x] * factor[r], sums[p][x + 1] * factor[r]);
      }
    }
  }
};

// Rows of the stage, times scale, to the positions `at` (-1: nowhere) of a head of `out`; turned back to position 0
// where `turns`. Two features a thread.
template <int D>
__device__ inline void store_rows(bf16* out, std::int64_t stride, const float* stage, const int* at,
                                  const RotaryView& rotary, bool turns, float scale) {
  for (int x = static_cast<int>(threadIdx.x); x < kSide * D / 2; x += kTileThreads) {
    const int r = x / (D / 2), d = x % (D / 2) * 2;
    if (at[r] < 0) continue;
    const float* row = stage + r * kStageStride<D / kSide>;
    float low = row[d], high = row[d + 1];
    if (turns) low = rotated(row, d, rotary, at[r], -1.f), high = rotated(row, d + 1, rotary, at[r], -1.f);
    *reinterpret_cast<std::uint32_t*>(out + at[r] * stride + d) = pack_pair(low * scale, high * scale);
  }
}

}  // namespace sieve::cuda
