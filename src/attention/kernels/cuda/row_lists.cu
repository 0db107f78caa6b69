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
constexpr std::int64_t kStageBytes = std::int64_t{512} << 20;  // of all of them, unless one alone needs more

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

// Blocks of keys that can hold some that a chunk sees, and where their keys lie if all of them follow each other.
struct OpenBlocks {
  int block[kThreads], start[kThreads];
  int sums[2][kWarps];
};

// The whole block: copies what the queries see to the stage, ascending; returns how many. Ends with a barrier.
__device__ int collect(const SeenKeys& seen, std::int64_t row, const Interval& queries, RowLife* stage, int capacity) {
  constexpr int kEach = 4;  // keys that a thread looks at together
  __shared__ OpenBlocks open;
  const auto thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int blocks = (queries.end + kThreads - 1) / kThreads;  // no query sees a later key
  const RowLife* lives = seen.lives + row * seen.blocks * kThreads;
  int filled = 0, turn = 0;
  for (int base = 0; base < blocks; base += kThreads) {
    const std::int64_t mine = row * seen.blocks + base + thread;
    int count = base + thread < blocks ? seen.counts[mine] : 0, n = 0, keys = 0;
    if (count > 0 && seen.ends[mine] <= queries.begin) count = 0;
    const int place = offset_of(count > 0 ? 1 : 0, &n), start = offset_of(count, &keys);
    if (count > 0) open.block[place] = base + thread, open.start[place] = start;
    __syncthreads();
    for (int first = 0; first < keys; first += kThreads * kEach, turn ^= 1) {
      const int from = first + warp * 32 * kEach;
      int x = 0;  // the block of the warp's first key, then of the lane's
      for (int step = kThreads / 2; step > 0; step /= 2) {
        if (x + step < n && open.start[x + step] <= from) x += step;
      }
      RowLife life[kEach];
#pragma unroll
      for (int v = 0; v < kEach; ++v) {
        const int key = from + v * 32 + lane;
        life[v] = {0, 0, 0, 0};
        if (key >= keys) continue;
        while (x + 1 < n && open.start[x + 1] <= key) ++x;
        life[v] = lives[static_cast<std::int64_t>(open.block[x]) * kThreads + (key - open.start[x])];
      }
      unsigned wanted[kEach];
      int found = 0;
#pragma unroll
      for (int v = 0; v < kEach; ++v) {
        wanted[v] = __ballot_sync(0xffffffffu, life[v].run_in(queries) >= 0);
        found += __popc(wanted[v]);
      }
      if (lane == 0) open.sums[turn][warp] = found;
      __syncthreads();  // a sum is written again two turns later, behind the next turn's barrier
      int to = filled;
      for (int w = 0; w < kWarps; ++w) {
        if (w < warp) to += open.sums[turn][w];
        filled += open.sums[turn][w];
      }
#pragma unroll
      for (int v = 0; v < kEach; ++v) {
        const int at = to + __popc(wanted[v] & ((1u << lane) - 1));
        if ((wanted[v] >> lane & 1) != 0 && at < capacity) stage[at] = life[v];
        to += __popc(wanted[v]);
      }
    }
  }
  __syncthreads();
  return filled < capacity ? filled : capacity;
}

// One warp: the list of `queries` out of the n keys of the stage.
__device__ void write_list(const RowLists& lists, std::int64_t at, const Interval& queries, const RowLife* stage,
                           int n) {
  const int lane = static_cast<int>(threadIdx.x) % 32, capacity = static_cast<int>(lists.capacity);
  std::int32_t* out = lists.keys + at * lists.capacity;
  int steady = 0, whole = 0, partial = 0;
#pragma unroll 2
  for (int x = lane; x < n; x += 32) {
    const int run = stage[x].run_in(queries);
    steady += run == kSteadyRows, whole += run == kWholeRows, partial += run == kPartialRows;
  }
  steady = warp_sum(steady), whole = warp_sum(whole), partial = warp_sum(partial);
  if (lane < kRowRuns)
    lists.ends[at * kRowRuns + lane] = lane == 0 ? steady : steady + whole + (lane == 1 ? 0 : partial);
  static_assert(kSteadyRows == 0 && kWholeRows == 1 && kPartialRows == 2);
  int next_steady = 0, next_whole = steady, next_partial = steady + whole;
  const unsigned before = (1u << lane) - 1;
#pragma unroll 2
  for (int first = 0; first < n; first += 32) {
    const int x = first + lane;
    const RowLife life = stage[x < n ? x : first];
    const int run = x < n ? life.run_in(queries) : -1;
    const unsigned steadies = __ballot_sync(0xffffffffu, run == kSteadyRows),
                   wholes = __ballot_sync(0xffffffffu, run == kWholeRows),
                   partials = __ballot_sync(0xffffffffu, run == kPartialRows),
                   mine = run == kSteadyRows ? steadies : (run == kWholeRows ? wholes : partials);
    const int next = run == kSteadyRows ? next_steady : (run == kWholeRows ? next_whole : next_partial),
              to = next + __popc(mine & before);
    if (run >= 0 && to < capacity) out[to] = life.key;
    next_steady += __popc(steadies), next_whole += __popc(wholes), next_partial += __popc(partials);
  }
}

// Blocks take chunks in turns. `memory` null: the stage lies in shared memory; else each block has its own.
__global__ void __launch_bounds__(kThreads, 6)
    fill_lists(const DevicePlan plan, std::int64_t T, std::int64_t rows, const SeenKeys seen, RowLife* memory) {
  const RowLists &chunks = plan.chunks, &tiles = plan.tiles;
  RowLife* stage =
      memory == nullptr ? reinterpret_cast<RowLife*>(dynamic_shared()) : memory + blockIdx.x * chunks.capacity;
  const std::int64_t each = chunks.queries / tiles.queries;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  for (std::int64_t item = blockIdx.x; item < rows * chunks.lists; item += gridDim.x) {
    const std::int64_t chunk = item % chunks.lists, row = item / chunks.lists;
    const Interval queries = spans::tile_queries(chunk, chunks.queries, T);
    const int n = collect(seen, row, queries, stage, static_cast<int>(chunks.capacity));
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
  const std::int64_t items = rows * p.chunks.lists,
                     stages_held =
                         std::clamp<std::int64_t>(kStageBytes / static_cast<std::int64_t>(stage), 1, kBlocksWithStages),
                     grid = shared ? items : std::min(items, stages_held);
  const Scratch stages(shared ? 0 : stage * static_cast<std::size_t>(grid), stream);
  start("row lists", fill_lists, grid, kThreads, shared ? stage : 0, stream, p, a.T, rows, seen,
        shared ? nullptr : stages.as<RowLife>());
}

}  // namespace sieve::cuda
