// Selection for every prefix: members, thresholds and soft bands of kernels/select.h. Four kernels: what every key can
// say for itself; the walk over a row, in the order of time; the bands by bisection in the thresholds, one thread a
// key; the counts |F_i| by a prefix sum. The walk is the tile-wise form of kernels/threshold_walk.h: a block sorts and
// merges 64 scores into the retained list, then one of its threads follows tau through them, while another warp keeps
// the members. Arithmetic and order are those of the CPU, but for sums over the band that are taken afresh once a tile.
#include <algorithm>
#include <cmath>

#include "attention/kernels/cuda/launch.cuh"
#include "attention/kernels/cuda/walk.cuh"
#include "attention/kernels/select.h"
#include "tensor/kernels/cuda/block.cuh"
#include "tensor/kernels/cuda/scratch.h"

namespace sieve::cuda {
namespace {

// End of the document that holds position `begin` (its start).
__device__ std::int64_t document_end(const std::int32_t* starts, std::int64_t begin, std::int64_t T) {
  if (starts == nullptr) return T;
  std::int64_t low = begin + 1, high = T;  // the first position that starts later
  while (low < high) {
    const std::int64_t middle = (low + high) / 2;
    if (starts[middle] > begin) high = middle;
    else low = middle + 1;
  }
  return low;
}
__device__ const std::int32_t* starts_of(const SelectArgs& a, std::int64_t row) {
  return a.document_starts_BT == nullptr ? nullptr : a.document_starts_BT + row / a.H * a.T;
}

// u and z, lives of keys that nobody selects, and the number of NaN.
__global__ void order_keys(const SelectArgs a, double* u, std::int32_t* left_pool) {
  unsigned long long nan = 0;
  SIEVE_GRID_STRIDE(x, a.B * a.H * a.T) {
    const std::int64_t j = x % a.T;
    const double s = a.dtype == DType::f32 ? static_cast<double>(static_cast<const float*>(a.scores_BHT)[x])
                                           : static_cast<const double*>(a.scores_BHT)[x];
    nan += s != s;
    const std::int32_t* starts = starts_of(a, x / a.T);
    const std::int64_t begin = starts == nullptr ? 0 : starts[j], end = document_end(starts, begin, a.T);
    u[x] = order_score(s, a.slope, j - begin);
    a.from_BHT[x] = a.to_BHT[x] = static_cast<std::int32_t>(a.delay < end - j ? j + a.delay : end);
    if (!a.thresholds) continue;
    a.z_BHT[x] = operator_score(u[x], a.temperature);
    a.tau_BHT[x] = -INFINITY;
    left_pool[x] = 0x7fffffff;
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
    walk_rows(const SelectArgs a, const double* u_BHT, std::int32_t* left_pool_BHT, const WalkMemory memory,
              std::int64_t pool) {
  const std::int64_t row = blockIdx.x, offset = row * a.T;
  const std::int32_t* starts = starts_of(a, row);
  unsigned char* mine = memory.global == nullptr ? dynamic_shared() : memory.global + row * memory.bytes;
  Members members(mine, memory.slots, a.to_BHT + offset);
  Walk walk(mine + Members::bytes(memory.slots), memory.capacity, a.k, pool);
  for (std::int64_t begin = 0, end; begin < a.T; begin = end) {
    end = document_end(starts, begin, a.T);
    const std::int64_t candidates = end - begin - (a.delay < end - begin ? a.delay : end - begin);
    const double* u = u_BHT + offset + begin;
    const bool thresholds = a.thresholds && candidates > a.k;
    members.clear();
    walk.clear();
    for (std::int64_t c = 0; c < candidates; c += kWalkTile) {
      const int n = static_cast<int>(candidates - c < kWalkTile ? candidates - c : kWalkTile);
      if (thresholds) walk.merge(u + c, a.z_BHT + offset + begin + c, n, static_cast<std::int32_t>(c));
      if (threadIdx.x / 32 == 1) members.offer(u + c, n, begin + c, a.delay, end);
      if (thresholds && threadIdx.x == 0) {
        walk.follow(n, static_cast<std::int32_t>(c), a.tau_BHT + offset + (end - candidates) + c,
                    left_pool_BHT + offset + begin);
      }
      __syncthreads();
    }
  }
}

// First index in [begin, end) for which pred holds; pred is false, then true.
template <class Pred>
__device__ std::int64_t first_where(std::int64_t begin, std::int64_t end, const Pred& pred) {
  while (begin < end) {
    const std::int64_t middle = begin + (end - begin) / 2;
    if (pred(middle)) end = middle;
    else begin = middle + 1;
  }
  return begin;
}

// change (B, H, T): +1 where a key enters its band, -1 where it leaves.
__global__ void find_bands(const SelectArgs a, const std::int32_t* left_pool, std::int32_t* change) {
  SIEVE_GRID_STRIDE(x, a.B * a.H * a.T) {
    const std::int64_t j = x % a.T, row = x / a.T;
    const std::int32_t* starts = starts_of(a, row);
    const std::int64_t begin = starts == nullptr ? 0 : starts[j], end = document_end(starts, begin, a.T);
    if (a.delay >= end - j) {  // never a candidate
      a.band_from_BHT[x] = a.band_to_BHT[x] = static_cast<std::int32_t>(end);
      continue;
    }
    const double* tau = a.tau_BHT + row * a.T;
    const double z = a.z_BHT[x];
    const std::int64_t left = left_pool[x] + begin + a.delay, stop = left < end ? left : end;
    const std::int64_t first = first_where(j + a.delay, stop, [&](std::int64_t i) { return z - 1 < tau[i]; });
    const std::int64_t last = first_where(first, stop, [&](std::int64_t i) { return z <= tau[i]; });
    a.band_from_BHT[x] = static_cast<std::int32_t>(first);
    a.band_to_BHT[x] = static_cast<std::int32_t>(last);
    if (first == last) continue;
    atomicAdd(change + row * a.T + first, 1);  // integers
    if (last < a.T) atomicAdd(change + row * a.T + last, -1);
  }
}

// In place: prefix sums of every row. One warp a row.
__global__ void count_bands(std::int32_t* band, std::int64_t rows, std::int64_t T) {
  const std::int64_t row = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (row >= rows) return;  // whole warps leave
  std::int32_t carry = 0;
  for (std::int64_t base = 0; base < T; base += 32) {
    std::int32_t v = base + lane < T ? band[row * T + base + lane] : 0;
    for (int step = 1; step < 32; step *= 2) {
      const std::int32_t other = __shfl_up_sync(0xffffffffu, v, step);
      if (lane >= step) v += other;
    }
    v += carry;
    if (base + lane < T) band[row * T + base + lane] = v;
    carry = __shfl_sync(0xffffffffu, v, 31);
  }
}

void check_arguments(const SelectArgs& a) {
  require(a.dtype == DType::f32 || a.dtype == DType::f64, "sparsek", "scores want f32 or f64, got ", name_of(a.dtype));
  require(a.T < (std::int64_t{1} << 31) - 1 && a.k >= 1 && a.pool >= 0 && a.delay >= 0 && a.temperature > 0, "sparsek",
          "arguments out of range: T ", a.T, ", k ", a.k, ", pool ", a.pool, ", delay ", a.delay, ", temperature ",
          a.temperature);
}

}  // namespace

void run(const SelectArgs& a, Stream stream) {
  check_arguments(a);
  const std::int64_t rows = a.B * a.H, n = rows * a.T;
  if (a.nan_count != nullptr)
    check(cudaMemsetAsync(a.nan_count, 0, sizeof(std::int64_t), handle_of(stream)), "selection");
  if (n == 0) return;
  const auto bytes = static_cast<std::size_t>(n);
  const Scratch u(bytes * sizeof(double), stream);
  const Scratch left_pool(a.thresholds ? bytes * sizeof(std::int32_t) : 0, stream);
  start("selection: order", order_keys, blocks_for(n), kThreads, 0, stream, a, u.as<double>(),
        left_pool.as<std::int32_t>());

  const std::int64_t wanted = pool_scores(a.pool, a.k), pool = wanted == 0 ? std::max(a.T, a.k) : wanted;
  WalkMemory memory;
  memory.slots = std::min(a.k, a.T);
  memory.capacity = a.thresholds ? std::min(pool, a.T) + kWalkTile : 0;
  memory.bytes = Members::bytes(memory.slots) + Walk::bytes(memory.capacity);
  constexpr std::size_t kShared = std::size_t{96} << 10;  // two blocks of a row fit a multiprocessor
  const bool shared = memory.bytes <= kShared;
  const Scratch lists(shared ? 0 : memory.bytes * static_cast<std::size_t>(rows), stream);
  if (!shared) memory.global = lists.as<unsigned char>();
  start("selection: walk", walk_rows, rows, kWalkThreads, shared ? memory.bytes : 0, stream, a, u.as<double>(),
        left_pool.as<std::int32_t>(), memory, pool);
  if (!a.thresholds) return;
  check(cudaMemsetAsync(a.band_BHT, 0, bytes * sizeof(std::int32_t), handle_of(stream)), "selection");
  start("selection: bands", find_bands, blocks_for(n), kThreads, 0, stream, a, left_pool.as<std::int32_t>(),
        a.band_BHT);
  start("selection: counts", count_bands, (rows * 32 + kThreads - 1) / kThreads, kThreads, 0, stream, a.band_BHT, rows,
        a.T);
}

}  // namespace sieve::cuda
