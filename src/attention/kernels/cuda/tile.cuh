// The vocabulary of the softmax kernels: 64 x 64 products of tiles in shared memory, on tensor cores or by plain
// arithmetic, with one layout of accumulators for both. A block has four warps; warp w owns rows 16 w .. 16 w + 15 of a
// product, lane l the rows g = l / 4 and g + 8 of those and the columns 8 n + 2 (l mod 4) + {0, 1} of every n: what
// mma.m16n8k16 says. So a row lies in four lanes of one warp, and a product's left operand in shared memory is written
// and read by the same warp.
#pragma once

#include "attention/kernels/cuda/mma.cuh"
#include "attention/kernels/softmax.h"
#include "tensor/kernels/cuda/block.cuh"

namespace sieve::cuda {

inline constexpr int kSide = 64;          // of a tile; head sizes are cut into pieces of as many features
inline constexpr int kTileThreads = 128;  // of a block
inline constexpr int kHeld = 32;          // elements of a 64 x 64 product that a thread holds
static_assert(kSide == kQueryTile && kSide == kKeyBlock);

// Rows of queries, keys, values or gradients: that of (b, i, h) begins at element ((b T + i) stride + offset + h D).
struct Rows {
  const void* base = nullptr;
  std::int64_t stride = 0, offset = 0;
  DType dtype = DType::f32;
};

__device__ inline int warp_row() {
  return static_cast<int>(threadIdx.x) / 32 * 16 + static_cast<int>(threadIdx.x) % 32 / 4;
}
__device__ inline int row_of(int x) { return warp_row() + (x & 2) * 4; }
__device__ inline int column_of(int x) { return x / 4 * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + (x & 1); }

__device__ inline float power_of_2(float x) { return exp2f(x); }
__device__ inline double power_of_2(double x) { return exp2(x); }
__device__ inline float logarithm_2(float x) { return log2f(x); }
__device__ inline double logarithm_2(double x) { return log2(x); }

// Over the four lanes of a row, in a fixed order.
template <class A>
__device__ inline A row_sum(A v) {
  v += __shfl_xor_sync(0xffffffffu, v, 1);
  return v + __shfl_xor_sync(0xffffffffu, v, 2);
}
template <class A>
__device__ inline A row_max(A v) {
  A other = __shfl_xor_sync(0xffffffffu, v, 1);
  v = other > v ? other : v;
  other = __shfl_xor_sync(0xffffffffu, v, 2);
  return other > v ? other : v;
}

template <class C>
__device__ inline C load_as(const void* base, std::int64_t at, DType dtype) {
  if (dtype == DType::bf16) return static_cast<C>(static_cast<float>(static_cast<const bf16*>(base)[at]));
  if (dtype == DType::f64) return static_cast<C>(static_cast<const double*>(base)[at]);
  return static_cast<C>(static_cast<const float*>(base)[at]);
}
template <class C>
__device__ inline void store_as(void* base, std::int64_t at, DType dtype, C value) {
  if (dtype == DType::bf16) static_cast<bf16*>(base)[at] = bf16(static_cast<float>(value));
  else if (dtype == DType::f64) static_cast<double*>(base)[at] = static_cast<double>(value);
  else static_cast<float*>(base)[at] = static_cast<float>(value);
}

// ---- Plain arithmetic in C (fp32, fp64): any head size, any alignment.
template <class C>
struct Simt {
  using Compute = C;
  using Element = C;
  static constexpr int kStride = kSide + 1;  // lanes of different rows meet different banks
  static constexpr bool kResident = false;   // pieces are loaded as a product needs them

  // 64 rows of features [first, first + 64) of `rows`, row r from position at[r]; zero where at[r] < 0 or beyond D.
  __device__ static void load(Element* to, const Rows& rows, std::int64_t b, std::int64_t T, std::int64_t h,
                              std::int64_t D, int first, const int* at) {
    for (int x = static_cast<int>(threadIdx.x); x < kSide * kSide; x += kTileThreads) {
      const int r = x / kSide, d = first + x % kSide;
      const bool real = at[r] >= 0 && d < D;
      to[r * kStride + x % kSide] =
          real ? load_as<C>(rows.base, (b * T + at[r]) * rows.stride + rows.offset + h * D + d, rows.dtype) : C(0);
    }
  }

  // sum (rows of a, rows of b) += a b^T
  __device__ static void multiply_transposed(C* sum, const Element* a, const Element* b) {
    const Element* row = a + warp_row() * kStride;
    const Element* other = b + static_cast<int>(threadIdx.x) % 4 * 2 * kStride;
#pragma unroll 2
    for (int k = 0; k < kSide; ++k) {
      const C a0 = row[k], a1 = row[8 * kStride + k];
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const C b0 = other[n * 8 * kStride + k], b1 = other[(n * 8 + 1) * kStride + k];
        sum[4 * n] += a0 * b0, sum[4 * n + 1] += a0 * b1;
        sum[4 * n + 2] += a1 * b0, sum[4 * n + 3] += a1 * b1;
      }
    }
  }
  // sum (rows of a, columns of b) += a b
  __device__ static void multiply(C* sum, const Element* a, const Element* b) {
    const Element* row = a + warp_row() * kStride;
    const Element* column = b + static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll 2
    for (int k = 0; k < kSide; ++k) {
      const C a0 = row[k], a1 = row[8 * kStride + k];
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const C b0 = column[k * kStride + n * 8], b1 = column[k * kStride + n * 8 + 1];
        sum[4 * n] += a0 * b0, sum[4 * n + 1] += a0 * b1;
        sum[4 * n + 2] += a1 * b0, sum[4 * n + 3] += a1 * b1;
      }
    }
  }
};

// ---- Tensor cores on bf16, fp32 accumulators: D a multiple of 64, rows aligned to 16 bytes.
struct TensorCore {
  using Compute = float;
  using Element = bf16;
  static constexpr int kStride = kSide + 8;  // rows 144 bytes apart: eight of them meet all banks once
  static constexpr bool kResident = true;    // operands stay in shared memory whole

  __device__ static void load(Element* to, const Rows& rows, std::int64_t b, std::int64_t T, std::int64_t h,
                              std::int64_t D, int first, const int* at) {
    const auto* base = static_cast<const bf16*>(rows.base) + rows.offset + h * D + first;
#pragma unroll
    for (int step = 0; step < kSide * kSide / 8 / kTileThreads; ++step) {
      const int x = step * kTileThreads + static_cast<int>(threadIdx.x), r = x / 8, d = x % 8 * 8;
      uint4 v = make_uint4(0, 0, 0, 0);
      if (at[r] >= 0) v = *reinterpret_cast<const uint4*>(base + (b * T + at[r]) * rows.stride + d);
      *reinterpret_cast<uint4*>(to + r * kStride + d) = v;
    }
  }

  __device__ static void multiply_transposed(float* sum, const Element* a, const Element* b) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const Element* row = a + (static_cast<int>(threadIdx.x) / 32 * 16 + lane % 16) * kStride + lane / 16 * 8;
    const Element* other = b + (lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 8;
#pragma unroll
    for (int k = 0; k < kSide; k += 16) {
      std::uint32_t left[4], right[4];
      load_matrices(left, row + k);
#pragma unroll
      for (int n = 0; n < 8; n += 2) {
        load_matrices(right, other + n * 8 * kStride + k);
        multiply_add(sum + 4 * n, left, right[0], right[1]);
        multiply_add(sum + 4 * n + 4, left, right[2], right[3]);
      }
    }
  }
  __device__ static void multiply(float* sum, const Element* a, const Element* b) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const Element* row = a + (static_cast<int>(threadIdx.x) / 32 * 16 + lane % 16) * kStride + lane / 16 * 8;
    const Element* column = b + (lane / 8 % 2 * 8 + lane % 8) * kStride + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < kSide; k += 16) {
      std::uint32_t left[4], right[4];
      load_matrices(left, row + k);
#pragma unroll
      for (int n = 0; n < 8; n += 2) {
        load_matrices_transposed(right, column + k * kStride + n * 8);
        multiply_add(sum + 4 * n, left, right[0], right[1]);
        multiply_add(sum + 4 * n + 4, left, right[2], right[3]);
      }
    }
  }
};

// One operand of a product: 64 rows of a head in shared memory, in `kPieces` pieces of 64 features if they are
// resident, else one piece at a time.
template <class Math, int kPieces>
struct Operand {
  using Element = typename Math::Element;
  static constexpr int kPiece = kSide * Math::kStride;  // elements
  static constexpr int kElements = (Math::kResident ? kPieces : 1) * kPiece;

  Element* memory;
  const int* at;  // (64) positions, -1: none
  Rows rows;
  std::int64_t b, T, h, D;

  __device__ Element* piece(int p) const { return memory + (Math::kResident ? p * kPiece : 0); }
  __device__ void load(int p) const { Math::load(piece(p), rows, b, T, h, D, p * kSide, at); }
  // Where operands are resident. A barrier must stand before (the last readers) and after.
  __device__ void load_resident() const {
    if constexpr (Math::kResident) {
      for (int p = 0; p < kPieces; ++p) load(p);
    }
  }
};

// Both operands of a block of pairs, where they are resident, and the barrier after. A barrier must stand before.
template <class Math, int kPieces>
__device__ __forceinline__ void load_block(const Operand<Math, kPieces>& a, const Operand<Math, kPieces>& b) {
  if constexpr (Math::kResident) {
    a.load_resident();
    b.load_resident();
    __syncthreads();
  }
}

// sum = a b^T over all features.
template <class Math, int kPieces>
__device__ inline void product_transposed(typename Math::Compute* sum, const Operand<Math, kPieces>& a,
                                          const Operand<Math, kPieces>& b) {
#pragma unroll
  for (int x = 0; x < kHeld; ++x) sum[x] = 0;
#pragma unroll
  for (int p = 0; p < kPieces; ++p) {
    if constexpr (!Math::kResident) {
      __syncthreads();
      a.load(p);
      b.load(p);
      __syncthreads();
    }
    Math::multiply_transposed(sum, a.piece(p), b.piece(p));
  }
}
// sums (64, kPieces of 64 features) += weights (64, 64) b
template <class Math, int kPieces>
__device__ inline void add_product(typename Math::Compute (*sums)[kHeld], const typename Math::Element* weights,
                                   const Operand<Math, kPieces>& b) {
#pragma unroll
  for (int p = 0; p < kPieces; ++p) {
    if constexpr (!Math::kResident) {
      __syncthreads();
      b.load(p);
      __syncthreads();
    }
    Math::multiply(sums[p], weights, b.piece(p));
  }
}

// A product as the left operand of the next one. Only the warp that wrote a row reads it.
template <class Math>
__device__ inline void keep_weights(typename Math::Element* to, const typename Math::Compute* values) {
  __syncwarp();
#pragma unroll
  for (int x = 0; x < kHeld; ++x)
    to[row_of(x) * Math::kStride + column_of(x)] = static_cast<typename Math::Element>(values[x]);
  __syncwarp();
}

template <class C, int kPieces>
__device__ __forceinline__ void clear(C (&sums)[kPieces][kHeld]) {
#pragma unroll
  for (int p = 0; p < kPieces; ++p) {
#pragma unroll
    for (int x = 0; x < kHeld; ++x) sums[p][x] = 0;
  }
}

// Positions of a block's 64 rows from `first` on, -1 beyond the last. Threads 0 .. 63 fill them.
__device__ __forceinline__ void fill_positions(int* at, std::int64_t first, std::int64_t T) {
  const auto thread = static_cast<int>(threadIdx.x);
  if (thread < kSide) at[thread] = first + thread < T ? static_cast<int>(first + thread) : -1;
}

// Sums of whole rows in shared memory, (64, kPieces * 64 + 1), for what crosses lanes: rotation, coalesced stores.
template <int kPieces>
inline constexpr int kStageStride = kPieces* kSide + 1;
// Dynamic shared memory of a kernel with so many operands (two share the place of all where they are not resident) and
// one buffer of weights. The stage takes their place in the end.
template <class Math, int kPieces>
constexpr std::size_t shared_bytes(int operands) {
  using Part = Operand<Math, kPieces>;
  const std::size_t held = static_cast<std::size_t>((Math::kResident ? operands : 2) * Part::kElements + Part::kPiece) *
                           sizeof(typename Math::Element),
                    stage = kSide * kStageStride<kPieces> * sizeof(typename Math::Compute);
  return held > stage ? held : stage;
}
template <class C, int kPieces>
__device__ inline void to_stage(C* stage, const C (*sums)[kHeld], const C (&factor)[2]) {
#pragma unroll
  for (int p = 0; p < kPieces; ++p) {
#pragma unroll
    for (int x = 0; x < kHeld; ++x)
      stage[row_of(x) * kStageStride<kPieces> + p * kSide + column_of(x)] = sums[p][x] * factor[x / 2 % 2];
  }
}
// The same at any time; nobody else needs shared memory until the stage has been read.
template <class C, int kPieces>
__device__ __forceinline__ C* staged(const C (*sums)[kHeld], const C (&factor)[2]) {
  __syncthreads();
  C* stage = reinterpret_cast<C*>(dynamic_shared());
  to_stage<C, kPieces>(stage, sums, factor);
  __syncthreads();
  return stage;
}

// Element d of a staged row turned to `position`, or back (sign = -1). Rotate-half layout, R = rotary_dims / 2.
template <class C>
__device__ inline C rotated(const C* row, int d, const RotaryView& rotary, std::int64_t position, C sign) {
  const int R = static_cast<int>(rotary.rotary_dims / 2);
  if (d >= 2 * R) return row[d];
  const int r = d < R ? d : d - R;
  const C c = static_cast<const C*>(rotary.cos)[position * R + r],
          s = static_cast<const C*>(rotary.sin)[position * R + r] * sign;
  return d < R ? row[r] * c - row[R + r] * s : row[R + r] * c + row[r] * s;
}
// Elements d and R + d of a staged row, turned alike.
template <class C>
__device__ __forceinline__ void turn_pair(C* row, int d, const RotaryView& rotary, std::int64_t position, C sign) {
  const int R = static_cast<int>(rotary.rotary_dims / 2);
  const C low = rotated(row, d, rotary, position, sign), high = rotated(row, R + d, rotary, position, sign);
  row[d] = low, row[R + d] = high;
}
// Sums through the stage and back: turn(row, r, d) turns elements d and R + d of row r.
template <class C, int kPieces, class Turn>
__device__ __forceinline__ void turn_sums(C (*sums)[kHeld], const RotaryView& rotary, const Turn& turn) {
  C* stage = staged<C, kPieces>(sums, {C(1), C(1)});
  const int R = static_cast<int>(rotary.rotary_dims / 2);
  for (int x = static_cast<int>(threadIdx.x); x < kSide * R; x += kTileThreads) {
    const int r = x / R, d = x % R;
    turn(stage + r * kStageStride<kPieces>, r, d);
  }
  __syncthreads();
#pragma unroll
  for (int p = 0; p < kPieces; ++p) {
#pragma unroll
    for (int x = 0; x < kHeld; ++x) sums[p][x] = stage[row_of(x) * kStageStride<kPieces> + p * kSide + column_of(x)];
  }
  __syncthreads();
}

}  // namespace sieve::cuda
