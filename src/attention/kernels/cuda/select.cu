// Selection for every prefix: members, thresholds and soft bands of kernels/select.h. By chunks of keys, all at once
// (select_chunks.h), where a block's shared memory holds the pool; else by a walk over every row in the order of time:
// the tile-wise form of kernels/threshold_walk.h, for which a block sorts and merges 64 scores into the retained list,
// then one of its threads follows tau through them, while another warp keeps the members. After either the bands, by
// bisection in the thresholds, one thread a key, and the counts |F_i| by a prefix sum.
#include <algorithm>
#include <cmath>

#include "attention/kernels/cuda/launch.cuh"
#include "attention/kernels/cuda/row_scan.cuh"
#include "attention/kernels/cuda/select_chunks.h"
#include "attention/kernels/cuda/walk.cuh"
#include "attention/kernels/select.h"
#include "tensor/kernels/cuda/block.cuh"
#include "tensor/kernels/cuda/scratch.h"

namespace sieve::cuda {
namespace {

constexpr std::int64_t kSlabBytes = std::int64_t{256} << 20;  // of bases
constexpr std::int64_t kFirstStep = 8;                        // chunks

// ends (B, T): the end of each position's document.
__global__ void find_ends(const std::int32_t* starts_BT, std::int32_t* ends_BT, std::int64_t B, std::int64_t T) {
  SIEVE_GRID_STRIDE(x, B * T) {
    const std::int32_t* starts = starts_BT + x / T * T;
    const std::int32_t begin = starts[x % T];
    std::int64_t low = x % T + 1, high = T;  // the first position that starts later
    while (low < high) {
      const std::int64_t middle = (low + high) / 2;
      if (starts[middle] > begin) high = middle;
      else low = middle + 1;
    }
    ends_BT[x] = static_cast<std::int32_t>(low);
  }
}

// u and z, lives of keys that nobody selects, and the number of NaN.
__global__ void order_keys(const Chunks c, double* u) {
  const SelectArgs& a = c.a;
  unsigned long long nan = 0;
  SIEVE_GRID_STRIDE(x, c.rows * a.T) {
    const std::int64_t j = x % a.T, begin = c.begin_of(x / a.T, j), end = c.end_of(x / a.T, j);
    const double s = a.dtype == DType::f32 ? static_cast<double>(static_cast<const float*>(a.scores_BHT)[x])
                                           : static_cast<const double*>(a.scores_BHT)[x];
    nan += s != s;
    u[x] = order_score(s, a.slope, j - begin);
    a.from_BHT[x] = a.to_BHT[x] = static_cast<std::int32_t>(a.delay < end - j ? j + a.delay : end);
    if (!a.thresholds) continue;
    a.z_BHT[x] = operator_score(u[x], a.temperature);
    a.tau_BHT[x] = -INFINITY;
    c.left_pool[x] = 0x7fffffff;
  }
  if (nan > 0 && a.nan_count != nullptr) {  // integers: the order of additions does not matter
    atomicAdd(reinterpret_cast<unsigned long long*>(a.nan_count), nan);
  }
}

// Where a block finds its row's lists.
struct WalkMemory {
  unsigned char* global = nullptr;  // null: dynamic shared memory
  std::size_t bytes = 0;            // of a row
  std::int64_t slots = 0, capacity = 0;
};

__global__ void __launch_bounds__(kWalkThreads)
    walk_rows(const Chunks c, const double* u_BHT, const WalkMemory memory, std::int64_t pool) {
  const SelectArgs& a = c.a;
  const std::int64_t row = blockIdx.x, offset = row * a.T;
  unsigned char* mine = memory.global == nullptr ? dynamic_shared() : memory.global + row * memory.bytes;
  Members members(mine, memory.slots, a.to_BHT + offset);
  Walk walk(mine + Members::bytes(memory.slots), memory.capacity, a.k, pool);
  for (std::int64_t begin = 0, end; begin < a.T; begin = end) {
    end = c.end_of(row, begin);
    const std::int64_t candidates = end - begin - (a.delay < end - begin ? a.delay : end - begin);
    const double* u = u_BHT + offset + begin;
    const bool thresholds = a.thresholds && candidates > a.k;
    members.clear();
    walk.clear();
    for (std::int64_t x = 0; x < candidates; x += kWalkTile) {
      const int n = static_cast<int>(candidates - x < kWalkTile ? candidates - x : kWalkTile);
      if (thresholds) walk.merge(u + x, a.z_BHT + offset + begin + x, n, static_cast<std::int32_t>(x));
      if (threadIdx.x / 32 == 1) members.offer(u + x, n, begin + x, a.delay, end);
      if (thresholds && threadIdx.x == 0) {
        walk.follow(n, static_cast<std::int32_t>(x), a.tau_BHT + offset + (end - candidates) + x,
                    c.left_pool + offset + begin);
      }
      __syncthreads();
    }
  }
}

// Makes tau non-decreasing from chunk to chunk: sums of different chunks may round apart. One warp a chunk.
__global__ void __launch_bounds__(kThreads) raise_thresholds(const Chunks c) {
  const std::int64_t item = static_cast<std::int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (item >= c.rows * c.chunks) return;  // whole warps leave
  const std::int64_t row = item / c.chunks, chunk = item % c.chunks, start = chunk * kChunk;
  const auto highest = [&](std::int64_t begin, std::int64_t end) {  // at the ends of the document's chunks
    double most = -INFINITY;
    for (std::int64_t x = begin / kChunk + lane; x < end; x += 32) {
      const double tau = c.last_tau[row * c.chunks + x];
      most = tau > most ? tau : most;
    }
    return warp_max(most);
  };
  const std::int64_t last = start + kChunk - 1 < c.a.T ? start + kChunk - 1 : c.a.T - 1,
                     last_begin = c.begin_of(row, last);
  const double settled = highest(last_begin, chunk + 1);
  if (lane == 0) c.settled_tau[item] = settled;
  const std::int64_t begin = c.begin_of(row, start);
  if (begin == start) return;
  const double before = highest(begin, chunk);
  const std::int64_t end = c.end_of(row, start) - c.a.delay, stop = end < start + kChunk ? end : start + kChunk;
  double* tau = c.a.tau_BHT + row * c.a.T + c.a.delay;
  for (std::int64_t j = start + lane;; j += 32) {
    const bool low = j < stop && tau[j] < before;
    if (low) tau[j] = before;
    if (__ballot_sync(0xffffffffu, low) == 0) break;
  }
}

// First index in [begin, end) whose value is above `bound`, or as large if `equal`; values do not fall.
__device__ std::int32_t first_above(const double* values, std::int32_t begin, std::int32_t end, double bound,
                                    bool equal) {
  while (begin < end) {
    const std::int32_t middle = begin + (end - begin) / 2;
    const double value = values[middle];
    if (value > bound || (equal && value == bound)) end = middle;
    else begin = middle + 1;
  }
  return begin;
}

// The same of the tau of queries. Chunk ends are looked at first: few, and neighbours in memory.
__device__ std::int32_t first_query(const Chunks& c, std::int64_t row, std::int32_t begin, std::int32_t end,
                                    double bound, bool equal) {
  if (c.settled_tau != nullptr && begin < end) {
    const auto delay = static_cast<std::int32_t>(c.a.delay);  // below `begin`
    const std::int32_t chunk = first_above(c.settled_tau + row * c.chunks, (begin - delay) / kChunk,
                                           (end - delay) / kChunk, bound, equal),
                       first = chunk * kChunk + delay;
    begin = first > begin ? first : begin;
    end = end - first > kChunk ? first + kChunk : end;
  }
  return first_above(c.a.tau_BHT + row * c.a.T, begin, end, bound, equal);
}

constexpr int kBandKeys = 4 * kThreads;  // of a block

// change (B, H, T): +1 where a key enters its band, -1 where it leaves. `blocks` blocks a row. Only keys that were ever
// in the pool are searched for, and those lie scattered: they are collected first.
__global__ void __launch_bounds__(kThreads) find_bands(const Chunks c, unsigned blocks, std::int32_t* change) {
  __shared__ std::int32_t keys[kBandKeys];
  __shared__ int count;
  const SelectArgs& a = c.a;
  const std::int64_t row = blockIdx.x / blocks, first_key = static_cast<std::int64_t>(blockIdx.x % blocks) * kBandKeys;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  for (int v = 0; v < kBandKeys; v += kThreads) {
    const std::int64_t j = first_key + v + threadIdx.x;
    bool pooled = false;
    if (j < a.T) {
      const std::int64_t x = row * a.T + j, begin = c.begin_of(row, j), end = c.end_of(row, j);
      const bool candidate = a.delay < end - j;
      pooled = candidate && c.left_pool[x] != j - begin;
      if (!pooled) a.band_from_BHT[x] = a.band_to_BHT[x] = static_cast<std::int32_t>(candidate ? j + a.delay : end);
    }
    const unsigned lanes = __ballot_sync(0xffffffffu, pooled);
    int to = 0;
    if (threadIdx.x % 32 == 0) to = atomicAdd(&count, __popc(lanes));  // in any order: each key is its own
    to = __shfl_sync(0xffffffffu, to, 0) + __popc(lanes & ((1u << threadIdx.x % 32) - 1));
    if (pooled) keys[to] = static_cast<std::int32_t>(j);
  }
  __syncthreads();
  for (int v = static_cast<int>(threadIdx.x); v < count; v += kThreads) {
    const std::int64_t j = keys[v], x = row * a.T + j, end = c.end_of(row, j);
    const std::int64_t leaves = c.left_pool[x] + c.begin_of(row, j) + a.delay, stop = leaves < end ? leaves : end;
    const auto [low, high] = band_of_score(a.z_BHT[x]);
    const std::int32_t first = first_query(c, row, static_cast<std::int32_t>(j + a.delay),
                                           static_cast<std::int32_t>(stop), low, false),
                       last = first_query(c, row, first, static_cast<std::int32_t>(stop), high, true);
    a.band_from_BHT[x] = first;
    a.band_to_BHT[x] = last;
    if (first == last) continue;
    atomicAdd(change + row * a.T + first, 1);  // integers
    if (last < a.T) atomicAdd(change + row * a.T + last, -1);
  }
}

// In place: prefix sums of every row. One block a row.
__global__ void __launch_bounds__(kScanThreads) count_bands(std::int32_t* band, std::int64_t T) {
  std::int32_t* row = band + blockIdx.x * T;
  scan_row<std::int32_t>(
      T, [&](std::int64_t i) { return row[i]; }, [&](std::int64_t i, std::int32_t sum) { row[i] = sum; });
}

void check_arguments(const SelectArgs& a) {
  require(a.dtype == DType::f32 || a.dtype == DType::f64, "sparsek", "scores want f32 or f64, got ", name_of(a.dtype));
  require(a.T < (std::int64_t{1} << 31) - 1 && a.k >= 1 && a.pool >= 0 && a.delay >= 0 && a.temperature > 0, "sparsek",
          "arguments out of range: T ", a.T, ", k ", a.k, ", pool ", a.pool, ", delay ", a.delay, ", temperature ",
          a.temperature);
}

// Row by row: pools that no block's shared memory holds.
void walk(const Chunks& c, std::int64_t pool, const Stream& stream) {
  const std::int64_t T = c.a.T;
  const Scratch u(static_cast<std::size_t>(c.rows * T) * sizeof(double), stream);
  start("selection: order", order_keys, blocks_for(c.rows * T), kThreads, 0, stream, c, u.as<double>());
  WalkMemory memory;
  memory.slots = std::min(c.a.k, T);
  memory.capacity = c.a.thresholds ? std::min(pool, T) + kWalkTile : 0;
  memory.bytes = Members::bytes(memory.slots) + Walk::bytes(memory.capacity);
  constexpr std::size_t kShared = std::size_t{96} << 10;  // two blocks of a row fit a multiprocessor
  const bool shared = memory.bytes <= kShared;
  const Scratch lists(shared ? 0 : memory.bytes * static_cast<std::size_t>(c.rows), stream);
  if (!shared) memory.global = lists.as<unsigned char>();
  start("selection: walk", walk_rows, c.rows, kWalkThreads, shared ? memory.bytes : 0, stream, c, u.as<double>(),
        memory, pool);
}

// Many chunks at once, as many as kSlabBytes of bases serve.
void settle(Chunks c, const Stream& stream) {
  const auto items = static_cast<std::size_t>(c.rows * c.chunks);
  const Scratch sorted(items * kChunk * sizeof(double), stream), places(items * kChunk * sizeof(std::uint16_t), stream),
      candidates(items * sizeof(std::int32_t), stream);
  c.sorted = sorted.as<double>(), c.places = places.as<std::uint16_t>(), c.candidates = candidates.as<std::int32_t>();
  const std::int64_t entry = sizeof(double) + sizeof(std::int32_t);
  c.slab = std::clamp<std::int64_t>(kSlabBytes / (c.rows * c.P * entry) - 1, 1, c.chunks);
  const auto slots = static_cast<std::size_t>(c.rows * (c.slab + 1)), size = static_cast<std::size_t>(c.P);
  const Scratch base(slots * size * sizeof(double), stream), base_keys(slots * size * sizeof(std::int32_t), stream),
      base_counts(slots * sizeof(std::int32_t), stream);
  c.base = base.as<double>(), c.base_keys = base_keys.as<std::int32_t>();
  c.base_counts = base_counts.as<std::int32_t>();
  // Steps that grow: few keys are better than the base of a long prefix, the others need not be sorted.
  const std::int64_t least = std::max(kFirstStep, 2 * (c.P + kChunk - 1) / kChunk);
  for (; c.first < c.chunks; c.first += c.count) {
    c.count = std::min({std::max(least, 3 * c.first), c.slab, c.chunks - c.first});
    sort_chunks(c, stream);
    grow_bases(c, stream);
    settle_chunks(c, stream);
  }
  if (!c.a.thresholds) return;
  constexpr int kWarps = kThreads / 32;
  start("selection: thresholds", raise_thresholds, (c.rows * c.chunks + kWarps - 1) / kWarps, kThreads, 0, stream, c);
}

}  // namespace

void run(const SelectArgs& a, Stream stream) {
  check_arguments(a);
  const std::int64_t rows = a.B * a.H, n = rows * a.T;
  if (a.nan_count != nullptr)
    check(cudaMemsetAsync(a.nan_count, 0, sizeof(std::int64_t), handle_of(stream)), "selection");
  if (n == 0) return;
  const std::int64_t wanted = pool_scores(a.pool, a.k), pool = wanted == 0 ? std::max(a.T, a.k) : wanted;
  Chunks c;
  c.a = a, c.rows = rows, c.chunks = (a.T + kChunk - 1) / kChunk;
  c.P = std::min(a.thresholds ? pool : a.k, a.T);
  const bool documents = a.document_starts_BT != nullptr,
             walks = c.P > kMostBase || base_bytes(c.P) > most_shared_bytes();
  const auto keys = static_cast<std::size_t>(n), tokens = static_cast<std::size_t>(a.B * a.T),
             items = static_cast<std::size_t>(rows * c.chunks);
  const Scratch ends(documents ? tokens * sizeof(std::int32_t) : 0, stream),
      left_pool(a.thresholds ? keys * sizeof(std::int32_t) : 0, stream),
      chunk_taus(a.thresholds && !walks ? 2 * items * sizeof(double) : 0, stream);
  if (documents) {
    c.ends_BT = ends.as<std::int32_t>();
    start("selection: documents", find_ends, blocks_for(a.B * a.T), kThreads, 0, stream, a.document_starts_BT,
          ends.as<std::int32_t>(), a.B, a.T);
  }
  c.left_pool = left_pool.as<std::int32_t>();
  if (a.thresholds && !walks) c.last_tau = chunk_taus.as<double>(), c.settled_tau = c.last_tau + items;
  if (walks) walk(c, pool, stream);
  else settle(c, stream);
  if (!a.thresholds) return;
  check(cudaMemsetAsync(a.band_BHT, 0, keys * sizeof(std::int32_t), handle_of(stream)), "selection");
  const std::int64_t blocks = (a.T + kBandKeys - 1) / kBandKeys;
  start("selection: bands", find_bands, rows * blocks, kThreads, 0, stream, c, static_cast<unsigned>(blocks),
        a.band_BHT);
  start("selection: counts", count_bands, rows, kScanThreads, 0, stream, a.band_BHT, a.T);
}

}  // namespace sieve::cuda
