// A block of threads finds the keys that begin in a part of a chunk's list; its warps take them one by one. What they
// add is read once.
#include "attention/kernels/cuda/hopper/sum_chunks.h"

namespace sieve::cuda::hopper {
namespace {

constexpr int kWarps = kThreads / 32;
constexpr int kSplits = 8;  // blocks a list: keys begin close together, and the first lists have most of them

// Rows of the key's chunks added to `sum` in their order, several in flight: lane l knows the row of the l-th chunk,
// `n` of them count.
template <int kParts>
__device__ inline void add_rows(const Engine& e, std::int64_t place, int n, int lane, float4 (&sum)[kParts]) {
  constexpr int kRows = 4;
  for (int first = 0; first < n; first += kRows) {
    float4 rows[kRows][kParts];
#pragma unroll
    for (int c = 0; c < kRows; ++c) {
      const std::int64_t row = __shfl_sync(0xffffffffu, place, (first + c) % 32);
#pragma unroll
      for (int p = 0; p < kParts; ++p) {
        rows[c][p] = first + c < n ? static_cast<const float4*>(e.partial)[(row * kParts + p) * 32 + lane]
                                   : make_float4(0, 0, 0, 0);
      }
    }
#pragma unroll
    for (int c = 0; c < kRows; ++c) {
#pragma unroll
      for (int p = 0; p < kParts; ++p) {
        const float4& x = rows[c][p];
        sum[p].x += x.x, sum[p].y += x.y, sum[p].z += x.z, sum[p].w += x.w;
      }
    }
  }
}

// All of one key, by a warp. Entry `home` of `partial` is the key's in its first chunk.
template <int kParts>
__device__ inline void sum_key(const Engine& e, std::int64_t head, std::int64_t list_row, const RowLife& life,
                               std::int64_t home, int lane) {
  const RowLists& lists = e.plan.chunks;
  const auto queries = static_cast<std::int32_t>(lists.queries);
  const std::int32_t begin = life.begin / queries, end = (life.end - 1) / queries + 1;
  const bool scores = e.column_part != nullptr, several = end > begin + 1;
  auto* row = static_cast<float4*>(e.partial) + home * kParts * 32 + lane;
  float4 sum[kParts] = {};
#pragma unroll
  for (int p = 0; p < kParts; ++p) {
    if (several) sum[p] = row[p * 32];
  }
  double column = scores ? e.column_part[home] : 0;
  for (std::int32_t base = begin + 1; base < end; base += 32) {
    std::int64_t place = 0;
    double mine = 0;
    if (const std::int32_t chunk = base + lane; chunk < end) {
      place =
          (head * lists.lists + chunk) * lists.capacity + place_in_list(e.plan, lists, e.T, list_row, chunk, life.key);
      if (scores) mine = e.column_part[place];
    }
    const int n = min(end - base, 32);
    add_rows<kParts>(e, place, n, lane, sum);
    for (int c = 0; scores && c < n; ++c) column += __shfl_sync(0xffffffffu, mine, c);
  }
#pragma unroll
  for (int p = 0; p < kParts; ++p) {
    if (several) row[p * 32] = sum[p];
  }
  if (scores && lane == 0) e.column_heads[head * e.T + life.key] = column;
}

// A key whose chunks are to be added up.
struct Beginner {
  RowLife life;
  std::int32_t entry;  // of its first chunk's list
};

// The block: those among the next entries of a list, one a thread, that begin in `chunk`; how many. Begins and ends
// with a barrier.
__device__ inline int find_beginners(const Engine& e, std::int64_t list_row, std::int64_t chunk, std::int64_t entry,
                                     std::int64_t count, Beginner* beginners) {
  __shared__ int counts[kWarps];
  const RowLists& lists = e.plan.chunks;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  RowLife life{0, 0, 0, 0};
  if (entry < count)
    life = life_of(e.plan, e.T, list_row, lists.keys[(list_row * lists.lists + chunk) * lists.capacity + entry]);
  const bool begins = life.begin < life.end && life.begin / static_cast<std::int32_t>(lists.queries) == chunk;
  const unsigned lanes = __ballot_sync(0xffffffffu, begins);
  __syncthreads();  // an earlier call's beginners are done
  if (lane == 0) counts[warp] = __popc(lanes);
  __syncthreads();
  int before = __popc(lanes & ((1u << lane) - 1)), all = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) before += counts[w];
    all += counts[w];
  }
  if (begins) beginners[before] = {life, static_cast<std::int32_t>(entry)};
  __syncthreads();
  return all;
}

// kSplits blocks a list of a head; first chunks first, since most keys begin there. A row has kParts x 32 x 4 numbers.
template <int kParts>
__global__ void __launch_bounds__(kThreads) sum_chunks(const __grid_constant__ Engine e) {
  __shared__ Beginner beginners[kThreads];
  const RowLists& lists = e.plan.chunks;
  // 32 bits: every thread divides.
  const auto heads = static_cast<unsigned>(e.B * e.Hkv), line = blockIdx.x / kSplits,
             kv_heads = static_cast<unsigned>(e.Hkv);
  const std::int64_t split = blockIdx.x % kSplits, head = line % heads, chunk = line / heads,
                     list_row = e.list_row(line % heads / kv_heads, line % heads % kv_heads),
                     count = count_of(lists, list_row * lists.lists + chunk);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  for (std::int64_t first = split; first < count; first += kThreads * kSplits) {
    const int n = find_beginners(e, list_row, chunk, first + threadIdx.x * kSplits, count, beginners);
    for (int x = warp; x < n; x += kWarps) {
      const std::int64_t home = (head * lists.lists + chunk) * lists.capacity + beginners[x].entry;
      sum_key<kParts>(e, head, list_row, beginners[x].life, home, lane);
    }
  }
}

}  // namespace

void sum_chunks(const Engine& e, Stream stream) {
  const std::int64_t blocks = e.B * e.Hkv * e.plan.chunks.lists * kSplits;
  if (e.D == 64) start("attention backward, chunks", sum_chunks<1>, blocks, kThreads, 0, stream, e);
  else start("attention backward, chunks", sum_chunks<2>, blocks, kThreads, 0, stream, e);
}

}  // namespace sieve::cuda::hopper
