// The vocabulary of the indexer's loss by tensor cores. Tiles of 64 queries meet blocks of 64 keys head by head; of
// both sides a chunk of features is on its way to shared memory while another is in work, so that any head size fits.
// fp32 numbers are sums of three bf16 numbers, whose products in fp32 leave out nothing above 2^-24; bf16 numbers are
// themselves. Letters as in kernels/index_loss.h.
#pragma once

#include "attention/kernels/cuda/pattern_tile.cuh"
#include "attention/kernels/index_loss.h"

namespace sieve::cuda {

// Rows (B, heads, T, parts, width): width is the head size, or that of a copy filled up to a multiple of 16 by zeros.
struct IndexRows {
  const bf16* base = nullptr;
  std::int64_t heads = 1;
  int width = 0, stride = 0;  // stride: parts * width
};

// What the passes over a slab share. Heads are counted through: H of attention, then Hi of the indexer.
struct IndexTiles {
  IndexRows q, k, index_q, index_k;
  const float* weights = nullptr;
  std::int64_t T = 0, H = 0, group = 1, Hi = 0, Di = 0;
  float factor = 1;         // of q . k, in units of log 2
  PatternLists lists;       // of a slab of tiles of queries; a plan is a row of the batch
  std::int64_t offset = 0;  // of the slab, in blocks of all tiles before it
  // In units of log 2: (B, H + 1, T), the last of I.
  float* log_sums = nullptr;
  double* part_losses = nullptr;  // (units, runs, 64)
  double* losses = nullptr;       // (B, T)
  float* differences = nullptr;   // dI of a tile and a block, (64, 64), where `seen`; null: no gradient
  std::uint8_t* seen = nullptr;   // (units, sides)
  float *dq = nullptr, *dk = nullptr, *dweights = nullptr;

  SIEVE_HD std::int64_t runs() const;
  // Blocks of the tiles of the batch before the one in place `unit` of all: tiles of a row go from the last to the
  // first, and tile t has t + 1.
  SIEVE_HD std::int64_t blocks_before(std::int64_t unit) const {
    const std::int64_t n = lists.sides, place = unit % n;
    return unit / n * (n * (n + 1) / 2) + place * n - place * (place - 1) / 2;
  }
  __device__ float* difference(std::int64_t unit, std::int64_t block) const {
    return differences + (blocks_before(lists.first + unit) - offset + block) * kSide * kSide;
  }
  __device__ int width(int head) const { return head < H ? q.width : index_q.width; }
};
inline constexpr int kRun = 16;  // blocks of keys that one block of threads compares
SIEVE_HD inline std::int64_t IndexTiles::runs() const { return (lists.sides + kRun - 1) / kRun; }

// The rows of one (b, head).
struct IndexHead {
  const bf16* base;
  int width, stride;

  __device__ IndexHead(const IndexRows& rows, std::int64_t b, std::int64_t head, std::int64_t T)
      : base(rows.base + (b * rows.heads + head) * T * rows.stride), width(rows.width), stride(rows.stride) {}
};
__device__ inline IndexHead query_head(const IndexTiles& v, std::int64_t b, int head) {
  return head < v.H ? IndexHead(v.q, b, head, v.T) : IndexHead(v.index_q, b, head - v.H, v.T);
}
__device__ inline IndexHead key_head(const IndexTiles& v, std::int64_t b, int head) {
  return head < v.H ? IndexHead(v.k, b, head / v.group, v.T) : IndexHead(v.index_k, b, 0, v.T);
}

// Two numbers as sums of kSplits bf16 numbers each: pair `at` of every part.
template <int kSplits>
__device__ inline void split_pair(std::uint32_t (*parts)[4], int at, float x, float y) {
#pragma unroll
  for (int s = 0; s < kSplits; ++s) {
    const std::uint32_t pair = pack_pair(x, y);
    parts[s][at] = pair;
    x -= __uint_as_float(pair << 16), y -= __uint_as_float(pair & 0xffff0000u);
  }
}

// A chunk of the features of 64 rows in shared memory, part by part, 16 bytes beyond a multiple of 64 apart: eight of
// them meet all banks once.
template <int kParts>
struct IndexPanel {
  static constexpr int kChunk = kParts == 1 ? 64 : 32, kStride = kChunk + 8, kPart = kSide * kStride,
                       kElements = kParts * kPart;
  static constexpr int kSums = kSide * kChunk / kTileThreads;  // of a (64, kChunk) product that a thread holds
  static constexpr std::size_t kShared = 4 * sizeof(bf16) * kElements;

  __device__ static int chunks(int width) { return (width + kChunk - 1) / kChunk; }
  // Steps of 16 features.
  __device__ static int steps(int width, int chunk) {
    const int left = width - chunk * kChunk;
    return (left < kChunk ? left : kChunk) / 16;
  }

  // Rows from `first` on, zeros beyond T. The whole block of threads.
  __device__ static void fetch(bf16* to, const IndexHead& rows, std::int64_t first, int chunk, std::int64_t T) {
    constexpr int kPieces = kChunk / 8, kStep = kTileThreads / kPieces;
    const int r = static_cast<int>(threadIdx.x) / kPieces, d = static_cast<int>(threadIdx.x) % kPieces * 8;
    if (chunk * kChunk + d >= rows.width) return;
    const bf16* base = rows.base + chunk * kChunk + d;
    to += r * kStride + d;
#pragma unroll
    for (int x = 0; x < kSide; x += kStep) {
      const std::int64_t i = first + r + x;
      const bf16* from = base + (i < T ? i : 0) * rows.stride;
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        copy_16(to + part * kPart + x * kStride, from + part * rows.width, i < T);
    }
  }

  // sum (16 own rows of left, 64 rows of right) += left right^T. Tensor cores cut off what does not fit a sum: products
  // of several parts are summed from the small ones on, by themselves.
  __device__ static void multiply_transposed(float* sum, const bf16* left, const bf16* right, int steps) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const bf16* own = left + (static_cast<int>(threadIdx.x) / 32 * 16 + lane % 16) * kStride + lane / 16 * 8;
    const bf16* row = right + (lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 8;
#pragma unroll
    for (int k = 0; k < kChunk / 16; ++k) {
      if (k >= steps) break;
      std::uint32_t held[kParts][4], other[4];
#pragma unroll
      for (int part = 0; part < kParts; ++part) load_matrices(held[part], own + part * kPart + k * 16);
#pragma unroll
      for (int n = 0; n < 8; n += 2) {
        float alone[8] = {};
        float* to = kParts == 1 ? sum + 4 * n : alone;
#pragma unroll
        for (int b = kParts - 1; b >= 0; --b) {
          load_matrices(other, row + b * kPart + n * 8 * kStride + k * 16);
#pragma unroll
          for (int a = kParts - 1 - b; a >= 0; --a) {
            multiply_add(to, held[a], other[0], other[1]);
            multiply_add(to + 4, held[a], other[2], other[3]);
          }
        }
        if constexpr (kParts > 1) add(sum + 4 * n, alone);
      }
    }
  }

  // sums (16 own rows, features of the chunk) += weights (16, 64) right. A weight is a sum of bf16 numbers as well: two
  // beside bf16 rows, which leaves 2^-17 of it out. The products of 64 rows are summed by themselves: hundreds of
  // roundings towards 0 would be seen.
  __device__ static void add_product(float* sums, const float* weights, const bf16* right, int steps) {
    constexpr int kSplits = kParts == 1 ? 2 : kParts;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const bf16* column = right + (lane / 8 % 2 * 8 + lane % 8) * kStride + lane / 16 * 8;
    std::uint32_t left[kSide / 16][kSplits][4], other[4];
#pragma unroll
    for (int k = 0; k < kSide / 16; ++k) {
#pragma unroll
      for (int x = 0; x < 4; ++x) split_pair<kSplits>(left[k], x, weights[8 * k + 2 * x], weights[8 * k + 2 * x + 1]);
    }
#pragma unroll
    for (int n = 0; n < kChunk / 16; ++n) {
      if (n >= steps) break;
      float alone[8] = {};
#pragma unroll
      for (int k = 0; k < kSide / 16; ++k) {
#pragma unroll
        for (int b = kParts - 1; b >= 0; --b) {
          load_matrices_transposed(other, column + b * kPart + k * 16 * kStride + n * 16);
#pragma unroll
          for (int a = kSplits - 1 - b; a >= 0; --a) {
            multiply_add(alone, left[k][a], other[0], other[1]);
            multiply_add(alone + 4, left[k][a], other[2], other[3]);
          }
        }
      }
      add(sums + 8 * n, alone);
    }
  }

 private:
  __device__ static void add(float* sums, const float (&more)[8]) {
#pragma unroll
    for (int x = 0; x < 8; ++x) sums[x] += more[x];
  }
};

// Of a slab's tile, by the place of the block of threads among `sharers` that share it.
struct IndexTile {
  std::int64_t unit, b, side;
  int sharer, count;
  const std::int32_t* entries;
  const Word* words;
  std::int64_t row[2];  // the thread's two queries

  __device__ IndexTile(const IndexTiles& v, std::int64_t sharers) {
    unit = blockIdx.x / sharers, sharer = static_cast<int>(blockIdx.x % sharers);
    b = v.lists.plan(unit), side = side_of<false>(v.lists, unit);
    entries = v.lists.entries + unit * v.lists.sides;
    words = v.lists.words + unit * v.lists.sides * kSide;
    count = v.lists.counts[unit];
    row[0] = side * kSide + warp_row(), row[1] = row[0] + 8;
  }
};

// The products of a tile with the blocks of its entries [at, end), heads [from, to) of each: the features of the next
// one are on their way while one is in work. Chunks of a head come in the order turn, turn + 1, ..., turn - 1.
template <int kParts>
class IndexWalk {
 public:
  using Panel = IndexPanel<kParts>;

  __device__ IndexWalk(const IndexTiles& v, const IndexTile& t, int at, int end, int from, int to, int turn)
      : v_(v), t_(t), at_(at), end_(end), from_(from), to_(to), head_(from), turn_(turn) {
    fetch();
  }
  // sum = the product of the tile and the next block in all features of `head`, whose turn it must be; returns the
  // block's last chunk, which the next call overwrites.
  __device__ const bf16* multiply(float* sum, int head) {
    const int width = v_.width(head), chunks = Panel::chunks(width);
    const bf16* stage = nullptr;
#pragma unroll
    for (int x = 0; x < kHeld; ++x) sum[x] = 0;
    for (int c = 0; c < chunks; ++c) {
      await_copies();
      __syncthreads();  // the chunk has arrived, and the one before has no readers left
      stage = next_;
      fetch();
      Panel::multiply_transposed(sum, stage, stage + Panel::kElements, Panel::steps(width, (turn_ + c) % chunks));
    }
    return stage + Panel::kElements;
  }

 private:
  __device__ void fetch() {
    if (at_ < end_) {
      const int chunks = Panel::chunks(v_.width(head_)), chunk = (turn_ + chunk_) % chunks;
      next_ = reinterpret_cast<bf16*>(dynamic_shared()) + side_ * 2 * Panel::kElements;
      Panel::fetch(next_, query_head(v_, t_.b, head_), t_.side * kSide, chunk, v_.T);
      Panel::fetch(next_ + Panel::kElements, key_head(v_, t_.b, head_),
                   static_cast<std::int64_t>(t_.entries[at_] >> 1) * kSide, chunk, v_.T);
      side_ ^= 1;
      if (++chunk_ == chunks) {
        chunk_ = 0;
        if (++head_ == to_) head_ = from_, ++at_;
      }
    }
    end_copies();
  }

  const IndexTiles& v_;
  const IndexTile& t_;
  int at_, end_, from_, to_, head_, turn_, chunk_ = 0, side_ = 0;
  bf16* next_ = nullptr;
};

// score += weight ReLU(x) of the thread's two rows; NaN is passed on.
__device__ inline void add_scores(float* score, const float* x, const float (&weight)[2]) {
#pragma unroll
  for (int n = 0; n < kHeld; ++n) score[n] = fmaf(weight[n / 2 % 2], x[n] < 0 ? 0.f : x[n], score[n]);
}
// w_hi of the thread's two rows; 0 beyond the row.
__device__ inline void read_weights(float (&weight)[2], const IndexTiles& v, const IndexTile& t, int head) {
#pragma unroll
  for (int r = 0; r < 2; ++r) weight[r] = t.row[r] < v.T ? v.weights[(t.b * v.Hi + head - v.H) * v.T + t.row[r]] : 0.f;
}

// The passes, each over a slab. Every one has the results of those before it.
void index_log_sums(const IndexTiles& v, int parts, Stream stream);
void index_differences(const IndexTiles& v, int parts, Stream stream);
void index_query_gradients(const IndexTiles& v, int parts, Stream stream);
void index_key_gradients(const IndexTiles& v, int parts, Stream stream);

// ---- Key by key (index_loss_rows.cu); piece_sums (B, pieces, T, Di) fp32.
std::int64_t index_loss_pieces(const IndexLossArgs& a);
void index_loss_by_rows(const IndexLossArgs& a, Stream stream);

}  // namespace sieve::cuda
