// The rows that the queries of a tile gather: keys whose life meets the tile, compacted in ascending order. First lists
// for chunks of kRowListQueries queries out of all keys, then those of tiles out of the chunks' lists.
#include "attention/kernels/cuda/launch.cuh"
#include "attention/kernels/softmax.h"
#include "attention/spans.h"
#include "tensor/kernels/cuda/block.cuh"

namespace sieve::cuda {
namespace {

constexpr int kEach = 4;  // consecutive keys of a thread

// Exclusive prefix sum of `count` over the block; *total is their sum.
__device__ int offset_of(int count, int* total) {
  __shared__ int sums[32];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32,
            warps = static_cast<int>(blockDim.x) / 32;
  int up = count;
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, up, step);
    if (lane >= step) up += other;
  }
  __syncthreads();  // `sums` may still be read by an earlier call
  if (lane == 31) sums[warp] = up;
  __syncthreads();
  int before = 0, all = 0;
  for (int w = 0; w < warps; ++w) {
    if (w < warp) before += sums[w];
    all += sums[w];
  }
  *total = all;
  return before + up - count;
}

// One block per (row of (B, Hs), list). `source` null: out of all keys; else out of the list of `source` that holds
// this list's queries.
__global__ void fill_lists(const DevicePlan plan, std::int64_t T, const RowLists to, const RowLists source,
                           bool from_source) {
  const std::int64_t list = blockIdx.x % to.lists, row = blockIdx.x / to.lists;
  const Interval queries = spans::tile_queries(list, to.queries, T);
  const std::int32_t *from = plan.from_BHT + row * T, *until = plan.to_BHT + row * T;
  const std::int64_t parent = from_source ? row * source.lists + list * to.queries / source.queries : 0;
  const std::int32_t* keys = from_source ? source.keys + parent * source.capacity : nullptr;
  const std::int64_t n = from_source ? source.counts[parent] : queries.end;
  std::int32_t* out = to.keys + (row * to.lists + list) * to.capacity;
  std::int64_t filled = 0;
  for (std::int64_t base = 0; base < n; base += kThreads * kEach) {
    std::int32_t mine[kEach];
    int count = 0;
    for (int x = 0; x < kEach; ++x) {
      const std::int64_t at = base + threadIdx.x * kEach + x;
      if (at >= n) break;
      const std::int32_t j = keys != nullptr ? keys[at] : static_cast<std::int32_t>(at);
      const Interval seen = spans::selected_queries(j, {from[j], until[j]}, plan.window);
      if (!spans::intersect(seen, queries).empty()) mine[count++] = j;
    }
    int total = 0;
    std::int64_t at = filled + offset_of(count, &total);
    for (int x = 0; x < count; ++x, ++at) {
      if (at < to.capacity) out[at] = mine[x];
    }
    filled += total;
  }
  if (threadIdx.x == 0) to.counts[row * to.lists + list] = static_cast<std::int32_t>(filled);
}

}  // namespace

void run(const RowListArgs& a, Stream stream) {
  const DevicePlan& p = a.plan;
  require(p.from_BHT != nullptr && p.chunks.queries % p.tiles.queries == 0, "attention", "row lists of ",
          p.tiles.queries, " and ", p.chunks.queries, " queries");
  const std::int64_t rows = a.B * p.heads;
  start("row lists of chunks", fill_lists, rows * p.chunks.lists, kThreads, 0, stream, p, a.T, p.chunks, p.chunks,
        false);
  start("row lists of tiles", fill_lists, rows * p.tiles.lists, kThreads, 0, stream, p, a.T, p.tiles, p.chunks, true);
}

}  // namespace sieve::cuda
