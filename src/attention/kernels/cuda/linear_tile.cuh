// What the tensor-core kernels of attention by a recurrence are made of: a block of 4 warps takes a chunk of 64
// positions of one head; tiles of bf16 lie in shared memory, each warp owns 16 rows of every product, sums are fp32.
// The eight numbers of a lane in 16 columns of a product: rows lane / 4 and 8 below, see row_of() and column_of().
#pragma once

#include <cstring>

#include "attention/kernels/cuda/launch.cuh"
#include "attention/kernels/cuda/mma.cuh"
#include "attention/kernels/cuda/pattern_primitives.cuh"
#include "attention/kernels/linear.h"
#include "tensor/kernels/cuda/block.cuh"

namespace sieve::cuda::linear {

inline constexpr int kTile = 64, kTileThreads = 128;
static_assert(kTile == kLinearChunk);
// Elements from row to row of a tile: eight rows of a matrix in different banks.
inline constexpr int kNarrow = kTile + 8;    // 64 columns
inline constexpr int kJoined = kTile + 24;   // 64 columns and 16 that the linear form's sum uses
inline constexpr int kWide = 2 * kTile + 8;  // 128 columns
inline constexpr int kExact = kTile + 8;     // 64 columns of fp32
constexpr std::size_t tile_bytes(int stride) { return static_cast<std::size_t>(kTile) * stride * sizeof(bf16); }

__device__ inline int tile_lane() { return static_cast<int>(threadIdx.x) % 32; }
__device__ inline int first_row() { return static_cast<int>(threadIdx.x) / 32 * 16; }  // of the warp
__device__ inline int row_of(int e) { return first_row() + tile_lane() / 4 + e / 2 % 2 * 8; }
__device__ inline int column_of(int block, int e) { return 16 * block + e / 4 * 8 + tile_lane() % 4 * 2 + e % 2; }

// f(row, column, number) of a product's numbers.
template <int N, class F>
__device__ inline void each(float (&x)[N][8], F f) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int e = 0; e < 8; ++e) f(row_of(e), column_of(n, e), x[n][e]);
  }
}

using Left = std::uint32_t[4];  // the warp's 16 rows, 16 columns from k on, of a left factor

template <int kStride>
__device__ inline void load_left(Left& x, const bf16* tile, int k) {
  const int lane = tile_lane();
  load_matrices(x, tile + (first_row() + lane % 16) * kStride + k + lane / 16 * 8);
}
// The factor is the tile's transpose: rows are its columns.
template <int kStride>
__device__ inline void load_left_transposed(Left& x, const bf16* tile, int k) {
  const int lane = tile_lane();
  load_matrices_transposed(x, tile + (k + lane % 8 + lane / 16 * 8) * kStride + first_row() + lane / 8 % 2 * 8);
}
// 16 columns of a product, rounded, as a left factor.
__device__ inline void round_left(Left& x, const float (&c)[8]) {
#pragma unroll
  for (int r = 0; r < 4; ++r) x[r] = pack_pair(c[2 * r], c[2 * r + 1]);
}

// The same and what the rounding left.
__device__ inline void round_left(Left& x, Left& rest, const float (&c)[8]) {
  round_left(x, c);
  float left[8];
#pragma unroll
  for (int e = 0; e < 8; ++e) left[e] = c[e] - __uint_as_float(e % 2 != 0 ? x[e / 2] & 0xffff0000u : x[e / 2] << 16);
  round_left(rest, left);
}

// What a tile is as a right factor: itself, or its transpose.
enum class Right { plain, transposed };

// c (16, 16) += left (16, 16) right (16 from k on, 16 from n on).
template <Right kRight, int kStride>
__device__ inline void multiply_block(float (&c)[8], const Left& left, const bf16* right, int k, int n) {
  const int lane = tile_lane();
  std::uint32_t x[4];
  if constexpr (kRight == Right::plain)
    load_matrices_transposed(x, right + (k + lane % 16) * kStride + n + lane / 16 * 8);
  else load_matrices(x, right + (n + lane % 8 + lane / 16 * 8) * kStride + k + lane / 8 % 2 * 8);
  multiply_add(c, left, x[0], x[1]);
  multiply_add(c + 4, left, x[2], x[3]);
}
template <Right kRight, int kStride, int N>
__device__ inline void multiply_row(float (&c)[N][8], const Left& left, const bf16* right, int k, int first = 0) {
#pragma unroll
  for (int n = 0; n < N; ++n) multiply_block<kRight, kStride>(c[n], left, right, k, first + 16 * n);
}
// c (16, 16 N) += left's rows (16, K) right (K, 16 N).
template <int K, int kLeft, Right kRight, int kStride, int N>
__device__ inline void multiply_tiles(float (&c)[N][8], const bf16* left, const bf16* right) {
#pragma unroll
  for (int k = 0; k < K; k += 16) {
    Left x;
    load_left<kLeft>(x, left, k);
    multiply_row<kRight, kStride>(c, x, right, k);
  }
}
// c (16, 16 N) += transpose of left (64, 64) right (64, 16 N).
template <int kLeft, int kStride, int N>
__device__ inline void multiply_transposed(float (&c)[N][8], const bf16* left, const bf16* right) {
#pragma unroll
  for (int k = 0; k < kTile; k += 16) {
    Left x;
    load_left_transposed<kLeft>(x, left, k);
    multiply_row<Right::plain, kStride>(c, x, right, k);
  }
}

// The block's chunk, and which keys enter in it. Index: of its state.
struct ChunkPlace {
  std::int64_t index, chunk, head, b, begin, row;  // row: of its first position in (B T)
  int length;

  __device__ explicit ChunkPlace(const LinearArgs& a)
      : index(blockIdx.x),
        chunk(index % a.chunks()),
        head(index / a.chunks() % a.Hkv),
        b(index / a.chunks() / a.Hkv),
        begin(chunk * kLinearChunk),
        row(b * a.T + begin),
        length(static_cast<int>(begin + kTile < a.T ? kTile : a.T - begin)) {}
  __device__ std::int64_t position(int t) const { return t < length ? row + t : -1; }
};
struct Entries {
  const std::int32_t* keys = nullptr;  // null: the chunk's positions
  std::int64_t row = 0;
  int count = 0;

  __device__ Entries(const LinearArgs& a, const ChunkPlace& p) : row(p.row), count(p.length) {
    if (a.entry_first_BHT == nullptr) return;
    const std::int64_t list = p.b * a.Hs + (a.Hs == 1 ? 0 : p.head);
    const std::int32_t* first = a.entry_first_BHT + list * (a.T + 1) + p.begin;
    keys = a.entry_keys_BHT + list * a.T + first[0];
    row = p.b * a.T, count = first[p.length] - first[0];
  }
  __device__ std::int64_t position(int e) const { return e >= count ? -1 : row + (keys == nullptr ? e : keys[e]); }
};

// Position t of a chunk sees its entries [low, high), and the state before it if `old`.
struct Masks {
  int low[kTile], high[kTile], old[kTile];

  __device__ void fill(const LinearArgs& a, const ChunkPlace& p) {
    const auto t = static_cast<int>(threadIdx.x);
    if (t >= kTile) return;
    low[t] = high[t] = old[t] = 0;
    if (t >= p.length) return;
    const std::int64_t start = a.document_starts_BT == nullptr ? -1 : a.document_starts_BT[p.row + t];
    const int from = start > p.begin ? static_cast<int>(start - p.begin) : 0;
    old[t] = start < p.begin;
    low[t] = from, high[t] = t + 1;
    if (a.entry_first_BHT == nullptr) return;
    const std::int64_t list = p.b * a.Hs + (a.Hs == 1 ? 0 : p.head);
    const std::int32_t* first = a.entry_first_BHT + list * (a.T + 1) + p.begin;
    low[t] = first[from] - first[0], high[t] = first[t + 1] - first[0];
  }
  __device__ bool sees(int t, int entry) const { return entry >= low[t] && entry < high[t]; }
  // From which entry on the chunk's end sees them.
  __device__ int reach(const ChunkPlace& p) const { return low[p.length - 1]; }
};

struct alignas(16) Eight {
  bf16 at[8];
};
__device__ inline Eight load_eight(const bf16* from) {
  const uint4 word = __ldg(reinterpret_cast<const uint4*>(from));
  Eight x;
  memcpy(&x, &word, sizeof(x));
  return x;
}
__device__ inline void store_eight(bf16* to, const Eight& x) {
  uint4 word;
  memcpy(&word, &x, sizeof(x));
  *reinterpret_cast<uint4*>(to) = word;
}

// A tile of kColumns from rows of qkv, gates or gradients: position(r) says which row, -1: zeros. change(eight numbers,
// r, first column) as they come.
template <int kColumns, int kStride, class Position, class Change>
__device__ inline void load_tile(bf16* tile, const bf16* from, std::int64_t stride, Position position, Change change) {
  constexpr int kPacks = kColumns / 8;
#pragma unroll 4
  for (int x = static_cast<int>(threadIdx.x); x < kTile * kPacks; x += kTileThreads) {
    const int r = x / kPacks, c = x % kPacks * 8;
    const std::int64_t row = position(r);
    Eight eight{};
    if (row >= 0) {
      eight = load_eight(from + row * stride + c);
      change(eight, r, c);
    }
    store_eight(tile + r * kStride + c, eight);
  }
}
struct AsItIs {
  __device__ void operator()(Eight&, int, int) const {}
};

// phi of queries and keys of the linear form.
struct Feature {
  __device__ void operator()(Eight& x, int, int) const {
#pragma unroll
    for (bf16& y : x.at) y = bf16(elu_feature(static_cast<float>(y)));
  }
};

// f(n, e, row, column) of all numbers of products of 16 N columns.
template <int N, class F>
__device__ inline void each_place(F f) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int e = 0; e < 8; ++e) f(n, e, row_of(e), column_of(n, e));
  }
}

// put(index, number) of a state's numbers.
template <class Put>
__device__ inline void read_state(const float* state, int numbers, Put put) {
#pragma unroll 4
  for (int x = static_cast<int>(threadIdx.x); x < numbers / 4; x += kTileThreads) {
    const float4 four = __ldg(reinterpret_cast<const float4*>(state) + x);
    put(4 * x, four.x), put(4 * x + 1, four.y), put(4 * x + 2, four.z), put(4 * x + 3, four.w);
  }
}

}  // namespace sieve::cuda::linear
