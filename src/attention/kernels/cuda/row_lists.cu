// The row lists of a plan, all of them at once. First every block of 256 keys keeps those that somebody ever sees, with
// the last query that sees any of them. Then one block of threads a chunk of queries collects the chunk's keys out of
// the blocks that can hold some, and out of them its warps write the chunk's list and those of its tiles.
#include <algorithm>

#include "attention/kernels/cuda/launch.cuh"
#include "attention/kernels/cuda/row_lists.cuh"
#include "tensor/kernels/cuda/block.cuh"
#include "tensor/kernels/cuda/scratch.h"

namespace sieve::cuda {
namespace {

static_assert(sizeof(RowLife) == 16);
constexpr int kWarps = kThreads / 32;
constexpr std::size_t kStageInShared = std::size_t{72} << 10;  // three blocks a multiprocessor
constexpr std::int64_t kBlocksWithStages = 512;                // where stages lie in global memory

// The keys of (B, Hs, T) that somebody sees, compacted block by block of kThreads keys.
struct SeenKeys {
  RowLife* lives = nullptr;        // (rows, blocks, kThreads), ascending
  std::int32_t* counts = nullptr;  // (rows, blocks)
  std::int32_t* ends = nullptr;    // (rows, blocks): one past the last query that sees any
  std::int64_t blocks = 0;
};

// Exclusive prefix sum of `count` over the block; *total is their sum. Begins with a barrier.
__device__ int offset_of(int count, int* total) {
  __shared__ int sums[kWarps];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  int up = count;
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, up, step);
    if (lane >= step) up += other;
  }
  __syncthreads();  // `sums` may still be read by an earlier call
  if (lane == 31) sums[warp] = up;
  __syncthreads();
  int before = 0, all = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) before += sums[w];
    all += sums[w];
  }
  *total = all;
  return before + up - count;
}

__global__ void __launch_bounds__(kThreads) compact_keys(const DevicePlan plan, std::int64_t T, const SeenKeys seen) {
  const auto blocks = static_cast<unsigned>(seen.blocks);  // every thread divides: 32 bits
  const std::int64_t row = blockIdx.x / blocks, block = blockIdx.x % blocks, key = block * kThreads + threadIdx.x;
  RowLife life{0, 0, 0, 0};
  if (key < T) life = life_of(plan, T, row, static_cast<std::int32_t>(key));
  const bool alive = life.begin < life.end;
  int total = 0;
  const int at = offset_of(alive ? 1 : 0, &total);
  if (alive) seen.lives[static_cast<std::int64_t>(blockIdx.x) * kThreads + at] = life;
  const std::int32_t end = block_reduce<std::int32_t, true>(alive ? life.end : 0);
  if (threadIdx.x == 0) seen.counts[blockIdx.x] = total, seen.ends[blockIdx.x] = end;
}

// The whole block: copies what the queries see to the stage, ascending; returns how many. Ends with a barrier.
__device__ int collect(const SeenKeys& seen, std::int64_t row, const Interval& queries, RowLife* stage,
                       std::int64_t capacity) {
  __shared__ int open[kThreads], offsets[kThreads];  // blocks that can hold some, and where theirs go
  const auto thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const std::int64_t blocks = (queries.end + kThreads - 1) / kThreads;  // no query sees a later key
  int filled = 0;
  for (std::int64_t base = 0; base < blocks; base += kThreads) {
    const std::int64_t mine = row * seen.blocks + base + thread;
    const bool can = base + thread < blocks && seen.counts[mine] > 0 && seen.ends[mine] > queries.begin;
    int n = 0;
    const int place = offset_of(can ? 1 : 0, &n);
    if (can) open[place] = thread;
    if (thread < n) offsets[thread] = 0;
    __syncthreads();
    for (int write = 0; write < 2; ++write) {
      for (int x = warp; x < n; x += kWarps) {
        const std::int64_t block = row * seen.blocks + base + open[x];
        const int count = seen.counts[block];
        int at = write ? offsets[x] : 0;
        for (int first = 0; first < count; first += 32) {
          RowLife life{0, 0, 0, 0};
          if (first + lane < count) life = seen.lives[block * kThreads + first + lane];
          const bool wanted = life.run_in(queries) >= 0;
          const unsigned lanes = __ballot_sync(0xffffffffu, wanted);
          const int to = at + __popc(lanes & ((1u << lane) - 1));
          if (write && wanted && to < capacity) stage[to] = life;
          at += __popc(lanes);
        }
        if (!write && lane == 0) offsets[x] = at;
      }
      __syncthreads();
      if (write) break;
      int total = 0;
      const int count = thread < n ? offsets[thread] : 0, offset = filled + offset_of(count, &total);
      if (thread < n) offsets[thread] = offset;
      filled += total;
      __syncthreads();
    }
  }
  return filled < capacity ? filled : static_cast<int>(capacity);
}

// One warp: the list of `queries` out of the n keys of the stage.
__device__ void write_list(const RowLists& lists, std::int64_t at, const Interval& queries, const RowLife* stage,
                           int n) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  std::int32_t* out = lists.keys + at * lists.capacity;
  int next[kRowRuns] = {0, 0, 0};
  for (int write = 0; write < 2; ++write) {
    for (int first = 0; first < n; first += 32) {
      RowLife life{0, 0, 0, 0};
      if (first + lane < n) life = stage[first + lane];
      const int run = life.run_in(queries);
#pragma unroll
      for (int r = 0; r < kRowRuns; ++r) {
        const unsigned lanes = __ballot_sync(0xffffffffu, run == r);
        const int to = next[r] + __popc(lanes & ((1u << lane) - 1));
        if (write && run == r && to < lists.capacity) out[to] = life.key;
        next[r] += __popc(lanes);
      }
    }
    if (write) break;
    next[1] += next[0], next[2] += next[1];
    if (lane < kRowRuns) lists.ends[at * kRowRuns + lane] = lane == 0 ? next[0] : (lane == 1 ? next[1] : next[2]);
    next[2] = next[1], next[1] = next[0], next[0] = 0;
  }
}

// Blocks take chunks in turns. `memory` null: the stage lies in shared memory; else each block has its own.
__global__ void __launch_bounds__(kThreads)
    fill_lists(const DevicePlan plan, std::int64_t T, std::int64_t rows, const SeenKeys seen, RowLife* memory) {
  const RowLists &chunks = plan.chunks, &tiles = plan.tiles;
  RowLife* stage =
      memory == nullptr ? reinterpret_cast<RowLife*>(dynamic_shared()) : memory + blockIdx.x * chunks.capacity;
  const std::int64_t each = chunks.queries / tiles.queries;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  for (std::int64_t item = blockIdx.x; item < rows * chunks.lists; item += gridDim.x) {
    const std::int64_t chunk = item % chunks.lists, row = item / chunks.lists;
    const Interval queries = spans::tile_queries(chunk, chunks.queries, T);
    const int n = collect(seen, row, queries, stage, chunks.capacity);
    if (warp == 0) write_list(chunks, item, queries, stage, n);
    for (std::int64_t x = (warp + kWarps - 1) % kWarps; x < each; x += kWarps) {  // warp 0 comes last
      const std::int64_t tile = chunk * each + x;
      if (tile < tiles.lists)
        write_list(tiles, row * tiles.lists + tile, spans::tile_queries(tile, tiles.queries, T), stage, n);
    }
    __syncthreads();  // the stage is free
  }
}

}  // namespace

void run(const RowListArgs& a, Stream stream) {
  const DevicePlan& p = a.plan;
  require(p.from_BHT != nullptr && p.tiles.queries > 0 && p.chunks.queries % p.tiles.queries == 0, "attention",
          "row lists of ", p.tiles.queries, " and ", p.chunks.queries, " queries");
  const std::int64_t rows = a.B * p.heads;
  if (rows * a.T == 0) return;
  SeenKeys seen;
  seen.blocks = (a.T + kThreads - 1) / kThreads;
  const auto blocks = static_cast<std::size_t>(rows * seen.blocks);
  const Scratch lives(blocks * kThreads * sizeof(RowLife), stream), counts(2 * blocks * sizeof(std::int32_t), stream);
  seen.lives = lives.as<RowLife>();
  seen.counts = counts.as<std::int32_t>(), seen.ends = seen.counts + blocks;
  start("row lists: keys", compact_keys, rows * seen.blocks, kThreads, 0, stream, p, a.T, seen);

  const std::size_t stage = static_cast<std::size_t>(p.chunks.capacity) * sizeof(RowLife);
  const bool shared = stage <= kStageInShared;
  const std::int64_t items = rows * p.chunks.lists, grid = shared ? items : std::min(items, kBlocksWithStages);
  const Scratch stages(shared ? 0 : stage * static_cast<std::size_t>(grid), stream);
  start("row lists", fill_lists, grid, kThreads, shared ? stage : 0, stream, p, a.T, rows, seen,
        shared ? nullptr : stages.as<RowLife>());
}

}  // namespace sieve::cuda
