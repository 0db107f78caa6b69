// What the passes of attention over compressed keys share. Letters as in kernels/nsa.h.
#pragma once

#include "attention/kernels/cuda/launch.cuh"
#include "attention/kernels/cuda/nsa_grid.cuh"
#include "attention/kernels/cuda/pattern_tile.cuh"
#include "attention/kernels/nsa.h"

namespace sieve::cuda {

struct CompressedJob {
  GridView grid;
  std::int64_t B = 0, N = 0, H = 0, Hkv = 0, D = 0;
  double scale = 1;
  DType dtype = DType::f32;  // of all but statistics, delta, dk and dv, which are of the compute dtype
  const void *q = nullptr, *k = nullptr, *v = nullptr, *dout = nullptr;
  void *out = nullptr, *statistics = nullptr, *delta = nullptr;  // (B, H, N) the last two
  void *dq = nullptr, *dk = nullptr, *dv = nullptr;
  int pieces = 1;                        // of the queries, each with a dk and a dv of its own: (pieces, B, Hkv, M, D)
  int block = 0, blocks = 0, width = 0;  // width: places for a query's importances
  std::int32_t* choice = nullptr;

  SIEVE_HD std::int64_t group() const { return H / Hkv; }
  SIEVE_HD std::int64_t tiles(int rows) const { return (N + rows - 1) / rows; }
  // Compressed keys that query n sees; none beyond the last.
  __device__ Interval seen(std::int64_t b, std::int64_t n) const {
    return n < N ? grid.seen(b, static_cast<int>(grid.T - N + n)) : Interval{0, 0};
  }
  // Position of query n in its document.
  __device__ int position(std::int64_t b, std::int64_t n) const {
    const auto t = static_cast<int>(grid.T - N + n);
    return t - grid.start(b, t);
  }
  __device__ std::int64_t head_row(std::int64_t b, std::int64_t h) const { return (b * H + h) * N; }
  // First elements of a query's head and of a compressed key.
  __device__ std::int64_t query(std::int64_t b, std::int64_t n, std::int64_t h) const {
    return ((b * N + n) * H + h) * D;
  }
  __device__ std::int64_t key(std::int64_t b, std::int64_t kv, std::int64_t m) const {
    return ((b * Hkv + kv) * grid.M + m) * D;
  }
  // As the tensor cores' kernels read them, for the rows of queries and those of keys.
  __device__ HeadRows queries(const void* x, std::int64_t b, std::int64_t h) const {
    return {Rows{x, H * D, 0, DType::bf16}, b, N, h, D};
  }
  __device__ HeadRows keys(const void* x, std::int64_t b, std::int64_t kv) const {
    return {Rows{x, D, 0, DType::bf16}, b * Hkv + kv, grid.M, 0, D};
  }
};

// A tile of `rows` queries that a block works on, for one of `heads`; the last, whose lists are longest, first.
struct CompressedTile {
  std::int64_t tile, h, b, n0;
  Interval keys;  // that some query sees

  __device__ CompressedTile(const CompressedJob& e, std::int64_t heads, int rows) {
    const std::int64_t tiles = e.tiles(rows);
    tile = tiles - 1 - blockIdx.x % tiles, h = blockIdx.x / tiles % heads, b = blockIdx.x / tiles / heads;
    n0 = tile * rows;
    const std::int64_t last = n0 + rows < e.N ? n0 + rows : e.N;
    keys = {e.seen(b, n0).begin, e.seen(b, last - 1).end};
  }
  // Query of row r, -1 beyond the last.
  __device__ int own(const CompressedJob& e, int r) const { return n0 + r < e.N ? static_cast<int>(n0 + r) : -1; }
  __device__ int chunks() const { return (keys.size() + kSide - 1) / kSide; }
};

// ---- Host side. By tensor cores (bf16, head sizes 64 and 128), and a warp a row for the rest.
void compressed_forward(const CompressedJob& e, Stream stream);
bool compressed_choice(const CompressedJob& e, Stream stream);  // false: does not fit shared memory
void compressed_backward_queries(const CompressedJob& e, Stream stream);
void compressed_backward_keys(const CompressedJob& e, Stream stream);
std::size_t compressed_shared_bytes(std::int64_t D, bool backward);

void compressed_rows_forward(const CompressedJob& e, Stream stream);
void compressed_rows_choice(const CompressedJob& e, Stream stream);
void compressed_rows_backward_queries(const CompressedJob& e, Stream stream);
void compressed_rows_backward_keys(const CompressedJob& e, Stream stream);

}  // namespace sieve::cuda
