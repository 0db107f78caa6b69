// What dI = r - p gives the index queries, the weights and the index keys. Each has one owner: no atomics.
#include "attention/kernels/cuda/index_tiles.cuh"

namespace sieve::cuda {
namespace {

// Rows of the batch of which the slab has tiles.
SIEVE_HD inline std::int64_t rows_of(const PatternLists& lists) {
  return (lists.first + lists.units - 1) / lists.sides - lists.first / lists.sides + 1;
}

// dI w of the pairs whose product is above 0.
__device__ inline float passed_on(float difference, float product, float weight) {
  return product > 0 && difference != 0 ? difference * weight : 0.f;
}

// One block per (tile, index head, chunk of its features).
template <int kParts>
__global__ void __launch_bounds__(kTileThreads, 3) query_gradients(const IndexTiles v) {
  using Panel = IndexPanel<kParts>;
  const int chunks = Panel::chunks(v.index_q.width);
  const IndexTile t(v, v.Hi * chunks);
  const int own = t.sharer % chunks, index = t.sharer / chunks, head = static_cast<int>(v.H) + index;
  IndexWalk<kParts> walk(v, t, 0, t.count, head, head + 1, own + 1);  // the own chunk comes last
  float x[kHeld], difference[kHeld], sums[Panel::kSums], weight[2], dweight[2] = {0, 0};
  read_weights(weight, v, t, head);
#pragma unroll
  for (int n = 0; n < Panel::kSums; ++n) sums[n] = 0;
  for (int n = 0; n < t.count; ++n) {
    const float* from = v.difference(t.unit, t.entries[n] >> 1);
#pragma unroll
    for (int e = 0; e < kHeld; e += 2) {
      const float2 pair = *reinterpret_cast<const float2*>(from + row_of(e) * kSide + column_of(e));
      difference[e] = pair.x, difference[e + 1] = pair.y;
    }
    const bf16* keys = walk.multiply(x, head);
#pragma unroll
    for (int e = 0; e < kHeld; ++e) {
      dweight[e / 2 % 2] += passed_on(difference[e], x[e], x[e]);
      x[e] = passed_on(difference[e], x[e], weight[e / 2 % 2]);
    }
    Panel::add_product(sums, x, keys, Panel::steps(v.index_q.width, own));
  }
  const std::int64_t row_of_head = (t.b * v.Hi + index) * v.T;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float sum = row_sum(dweight[r]);
    if (threadIdx.x % 4 == 0 && own == 0 && t.row[r] < v.T) v.dweights[row_of_head + t.row[r]] = sum;
  }
#pragma unroll
  for (int n = 0; n < Panel::kSums; ++n) {
    const std::int64_t i = t.row[n / 2 % 2], d = own * Panel::kChunk + column_of(n);
    if (i < v.T && d < v.Di) v.dq[(row_of_head + i) * v.Di + d] = sums[n];
  }
}

// The tiles of the slab that see some key of a block, from the last to the first.
struct KeyBlockTiles {
  std::int64_t b, block, last, first;

  // Of the slab.
  __device__ std::int64_t unit_of(const IndexTiles& v, std::int64_t tile) const {
    return b * v.lists.sides + v.lists.sides - 1 - tile - v.lists.first;
  }
  // The next below `tile`; -1: none.
  __device__ std::int64_t below(const IndexTiles& v, std::int64_t tile) const {
    while (--tile >= first) {
      if (v.seen[unit_of(v, tile) * v.lists.sides + block] != 0) return tile;
    }
    return -1;
  }
};

// The products of a block of keys with its tiles' queries, index head by index head, the next on its way while one is
// in work. Chunks as in IndexWalk.
template <int kParts>
class KeyWalk {
 public:
  using Panel = IndexPanel<kParts>;
  static constexpr std::size_t kShared = Panel::kShared + 2 * kSide * sizeof(float);
  struct Stage {
    const bf16* queries;   // the last chunk
    const float* weights;  // w_hi of the tile's queries
  };

  __device__ KeyWalk(const IndexTiles& v, const KeyBlockTiles& tiles, int turn)
      : v_(v), tiles_(tiles), tile_(tiles.below(v, tiles.last + 1)), turn_(turn) {
    fetch();
  }
  __device__ Stage multiply(float* sum) {
    const int width = v_.index_q.width, chunks = Panel::chunks(width);
    Stage stage{};
#pragma unroll
    for (int x = 0; x < kHeld; ++x) sum[x] = 0;
    for (int c = 0; c < chunks; ++c) {
      await_copies();
      __syncthreads();  // the chunk has arrived, and the one before has no readers left
      const bf16* keys = memory(side_ ^ 1);
      stage = {keys + Panel::kElements, notes(side_ ^ 1)};
      fetch();
      Panel::multiply_transposed(sum, keys, stage.queries, Panel::steps(width, (turn_ + c) % chunks));
    }
    return stage;
  }

 private:
  __device__ static bf16* memory(int side) {
    return reinterpret_cast<bf16*>(dynamic_shared()) + side * 2 * Panel::kElements;
  }
  __device__ static float* notes(int side) {
    return reinterpret_cast<float*>(dynamic_shared() + Panel::kShared) + side * kSide;
  }
  __device__ void fetch() {
    if (tile_ >= 0) {
      const int chunks = Panel::chunks(v_.index_q.width), chunk = (turn_ + chunk_) % chunks;
      bf16* to = memory(side_);
      Panel::fetch(to, IndexHead(v_.index_k, tiles_.b, 0, v_.T), tiles_.block * kSide, chunk, v_.T);
      Panel::fetch(to + Panel::kElements, IndexHead(v_.index_q, tiles_.b, head_, v_.T), tile_ * kSide, chunk, v_.T);
      if (threadIdx.x < kSide) {
        const std::int64_t i = tile_ * kSide + threadIdx.x;
        copy_4(notes(side_) + threadIdx.x, v_.weights + (tiles_.b * v_.Hi + head_) * v_.T + (i < v_.T ? i : 0),
               i < v_.T);
      }
      if (++chunk_ == chunks) {
        chunk_ = 0;
        if (++head_ == v_.Hi) head_ = 0, tile_ = tiles_.below(v_, tile_);
      }
    }
    side_ ^= 1;
    end_copies();
  }

  const IndexTiles& v_;
  const KeyBlockTiles& tiles_;
  std::int64_t tile_;
  int turn_, head_ = 0, chunk_ = 0, side_ = 0;
};

// One block per (64 keys, row of the slab, chunk of their features), those with the most tiles first: about as many run
// at once as there are. A row that an earlier slab began goes on from what that left.
template <int kParts>
__global__ void __launch_bounds__(kTileThreads, 3) key_gradients(const IndexTiles v) {
  using Panel = IndexPanel<kParts>;
  const std::int64_t n = v.lists.sides;
  const int chunks = Panel::chunks(v.index_q.width), own = static_cast<int>(blockIdx.x % chunks);
  const std::int64_t rows = rows_of(v.lists), block = blockIdx.x / chunks / rows,
                     b = v.lists.first / n + blockIdx.x / chunks % rows, begin = v.lists.first - b * n,
                     end = begin + v.lists.units;  // the slab's places in this row
  const bool begins = begin <= 0;
  const KeyBlockTiles tiles{b, block, begins ? n - 1 : n - 1 - begin,
                            end < n ? (n - end > block ? n - end : block) : block};
  if (!begins && tiles.last < tiles.first) return;  // nothing to add
  const auto place = [&](int x) {
    const std::int64_t j = block * kSide + row_of(x), d = own * Panel::kChunk + column_of(x);
    return j < v.T && d < v.Di ? v.dk + (b * v.T + j) * v.Di + d : nullptr;
  };
  float x[kHeld], difference[kHeld], sums[Panel::kSums];
#pragma unroll
  for (int e = 0; e < Panel::kSums; ++e) {
    const float* before = place(e);
    sums[e] = begins || before == nullptr ? 0.f : *before;
  }
  KeyWalk<kParts> walk(v, tiles, own + 1);  // the own chunk comes last
  for (std::int64_t tile = tiles.below(v, tiles.last + 1); tile >= 0; tile = tiles.below(v, tile)) {
    const float* from = v.difference(tiles.unit_of(v, tile), block);
#pragma unroll
    for (int e = 0; e < kHeld; ++e) difference[e] = from[column_of(e) * kSide + row_of(e)];
    for (std::int64_t head = 0; head < v.Hi; ++head) {
      const auto stage = walk.multiply(x);
#pragma unroll
      for (int e = 0; e < kHeld; ++e) x[e] = passed_on(difference[e], x[e], stage.weights[column_of(e)]);
      Panel::add_product(sums, x, stage.queries, Panel::steps(v.index_q.width, own));
    }
  }
#pragma unroll
  for (int e = 0; e < Panel::kSums; ++e) {
    if (float* to = place(e); to != nullptr) *to = sums[e];
  }
}

}  // namespace

void index_query_gradients(const IndexTiles& v, int parts, Stream stream) {
  const std::int64_t each = parts == 1 ? IndexPanel<1>::kChunk : IndexPanel<3>::kChunk;
  start("index queries' gradient", parts == 1 ? query_gradients<1> : query_gradients<3>,
        v.lists.units * v.Hi * ((v.index_q.width + each - 1) / each), kTileThreads,
        parts == 1 ? IndexPanel<1>::kShared : IndexPanel<3>::kShared, stream, v);
}

void index_key_gradients(const IndexTiles& v, int parts, Stream stream) {
  const std::int64_t each = parts == 1 ? IndexPanel<1>::kChunk : IndexPanel<3>::kChunk;
  start("index keys' gradient", parts == 1 ? key_gradients<1> : key_gradients<3>,
        rows_of(v.lists) * v.lists.sides * ((v.index_q.width + each - 1) / each), kTileThreads,
        parts == 1 ? KeyWalk<1>::kShared : KeyWalk<3>::kShared, stream, v);
}

}  // namespace sieve::cuda
