// One warp a key; what it adds is read once, at the speed of memory.
#include "attention/kernels/cuda/hopper/sum_chunks.h"

namespace sieve::cuda::hopper {
namespace {

constexpr int kEntries = 16;  // of a list, that a warp looks at

// Rows c, c + 1, .. of the key's chunks added to `sum`: lane l knows the row of the l-th chunk, `n` of them count.
template <int kParts>
__device__ inline void add_rows(const Engine& e, std::int64_t place, int n, int lane, float4 (&sum)[kParts]) {
#pragma unroll(4 / kParts)
  for (int c = 0; c < n; ++c) {
    const std::int64_t row = __shfl_sync(0xffffffffu, place, c);
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      const float4 x = static_cast<const float4*>(e.partial)[(row * kParts + p) * 32 + lane];
      sum[p].x += x.x, sum[p].y += x.y, sum[p].z += x.z, sum[p].w += x.w;
    }
  }
}

// All of one key, by a warp. Entry `home` of `partial` is the key's in its first chunk.
template <int kParts>
__device__ inline void sum_key(const Engine& e, std::int64_t head, std::int64_t list_row, const RowLife& life,
                               std::int64_t home, int lane) {
  const RowLists& lists = e.plan.chunks;
  const std::int64_t begin = life.begin / lists.queries, end = (life.end - 1) / lists.queries + 1;
  const bool scores = e.column_part != nullptr, several = end > begin + 1;
  auto* row = static_cast<float4*>(e.partial) + home * kParts * 32 + lane;
  float4 sum[kParts] = {};
#pragma unroll
  for (int p = 0; p < kParts; ++p) {
    if (several) sum[p] = row[p * 32];
  }
  double column = scores ? e.column_part[home] : 0;
  for (std::int64_t base = begin + 1; base < end; base += 32) {
    std::int64_t place = 0;
    double mine = 0;
    if (const std::int64_t chunk = base + lane; chunk < end) {
      place =
          (head * lists.lists + chunk) * lists.capacity + place_in_list(e.plan, lists, e.T, list_row, chunk, life.key);
      if (scores) mine = e.column_part[place];
    }
    const int n = static_cast<int>(end - base < 32 ? end - base : 32);
    add_rows<kParts>(e, place, n, lane, sum);
    for (int c = 0; scores && c < n; ++c) column += __shfl_sync(0xffffffffu, mine, c);
  }
#pragma unroll
  for (int p = 0; p < kParts; ++p) {
    if (several) row[p * 32] = sum[p];
  }
  if (scores && lane == 0) e.column_heads[head * e.T + life.key] = column;
}

// A warp per kEntries entries of a list: those whose key begins there are its business. A row has kParts x 32 x 4
// numbers.
template <int kParts>
__global__ void __launch_bounds__(kThreads) sum_chunks(const Engine e, std::int64_t groups) {
  const RowLists& lists = e.plan.chunks;
  const std::int64_t warp = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32,
                     first = warp % groups * kEntries, line = warp / groups, chunk = line % lists.lists,
                     head = line / lists.lists;
  if (head >= e.B * e.Hkv) return;  // whole warps leave, here and below
  const std::int64_t list_row = e.list_row(head / e.Hkv, head % e.Hkv), list = list_row * lists.lists + chunk,
                     count = count_of(lists, list);
  if (first >= count) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  RowLife life{0, 0, 0, 0};
  if (lane < kEntries && first + lane < count)
    life = life_of(e.plan, e.T, list_row, lists.keys[list * lists.capacity + first + lane]);
  const bool begins = life.begin < life.end && life.begin / lists.queries == chunk;
  for (unsigned left = __ballot_sync(0xffffffffu, begins); left != 0; left &= left - 1) {
    const int source = __ffs(static_cast<int>(left)) - 1;
    const RowLife key{__shfl_sync(0xffffffffu, life.key, source), __shfl_sync(0xffffffffu, life.begin, source),
                      __shfl_sync(0xffffffffu, life.end, source), 0};
    sum_key<kParts>(e, head, list_row, key, line * lists.capacity + first + source, lane);
  }
}

}  // namespace

void sum_chunks(const Engine& e, Stream stream) {
  const RowLists& lists = e.plan.chunks;
  const std::int64_t groups = (lists.capacity + kEntries - 1) / kEntries, warps = e.B * e.Hkv * lists.lists * groups,
                     blocks = (warps + kThreads / 32 - 1) / (kThreads / 32);
  if (e.D == 64) start("attention backward, chunks", sum_chunks<1>, blocks, kThreads, 0, stream, e, groups);
  else start("attention backward, chunks", sum_chunks<2>, blocks, kThreads, 0, stream, e, groups);
}

}  // namespace sieve::cuda::hopper
