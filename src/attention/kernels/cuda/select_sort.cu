// Sorted chunks of candidates (select_chunks.h).
#include <cmath>

#include "attention/kernels/cuda/launch.cuh"
#include "attention/kernels/cuda/select_chunks.h"
#include "tensor/kernels/cuda/block.cuh"

namespace sieve::cuda {
namespace {

// Orders like u; 0 is below every score. -0 equals +0.
__device__ unsigned long long image_of(double u) {
  const long long bits = __double_as_longlong(u + 0.0);
  return static_cast<unsigned long long>(bits) ^ (bits < 0 ? ~0ull : 1ull << 63);
}

// What key j says for itself; true if it is a candidate that the base before the step does not exclude.
__device__ bool say(const Chunks& c, std::int64_t row, std::int64_t j, double& u, bool& nan) {
  const SelectArgs& a = c.a;
  const std::int64_t x = row * a.T + j, begin = c.begin_of(row, j), end = c.end_of(row, j), slot = row * (c.slab + 1);
  const double s = a.dtype == DType::f32 ? static_cast<double>(static_cast<const float*>(a.scores_BHT)[x])
                                         : static_cast<const double*>(a.scores_BHT)[x];
  nan = s != s;
  u = order_score(s, a.slope, j - begin);
  const bool candidate = a.delay<end - j, bounded = c.first> 0 && c.base_counts[slot + c.slab] == c.P;
  const bool enters = candidate && !(bounded && begin < c.first * kChunk && u < c.base[(slot + c.slab + 1) * c.P - 1]);
  a.from_BHT[x] = static_cast<std::int32_t>(candidate ? j + a.delay : end);
  a.to_BHT[x] = static_cast<std::int32_t>(candidate && !enters ? j + a.delay : end);
  if (a.thresholds) {
    a.z_BHT[x] = operator_score(u, a.temperature);
    c.left_pool[x] = enters ? 0x7fffffff : static_cast<std::int32_t>(j - begin);
    if (j - begin < a.delay) a.tau_BHT[x] = -INFINITY;
  }
  return enters;
}

// One thread a key. Warps sort 32 candidates each, then runs are merged in pairs: a key's place is its place in its own
// run and the number of keys of the other run before it. On a tie the later key is the better one.
__global__ void __launch_bounds__(kChunk, 4) order_and_sort(const Chunks c) {
  alignas(16) __shared__ unsigned long long images[2][kChunk];
  __shared__ std::uint16_t places[2][kChunk];
  __shared__ double scores[kChunk];
  __shared__ int counts[kChunk / 32];
  const auto thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const auto count = static_cast<unsigned>(c.count);  // every thread divides: 32 bits
  const std::int64_t row = blockIdx.x / count, chunk = c.first + blockIdx.x % count, j = chunk * kChunk + thread,
                     item = row * c.chunks + chunk;
  double u = 0;
  bool nan = false;
  const bool candidate = j < c.a.T && say(c, row, j, u, nan);
  scores[thread] = u;
  const unsigned lanes = __ballot_sync(0xffffffffu, candidate);
  if (lane == 0) counts[thread / 32] = __popc(lanes);
  images[0][thread] = 0;
  const int nans = __syncthreads_count(nan);
  int m = 0, to = __popc(lanes & ((1u << lane) - 1));
  for (int w = 0; w < kChunk / 32; ++w) {
    if (w < thread / 32) to += counts[w];
    m += counts[w];
  }
  if (candidate) images[0][to] = image_of(u), places[0][to] = static_cast<std::uint16_t>(thread);
  int sorted = 32;  // threads at work
  while (sorted < m) sorted *= 2;
  __syncthreads();
  if (thread < sorted) {  // whole warps
    const unsigned long long mine = images[0][thread];
    const std::uint16_t place = places[0][thread];
    int rank = 0;
    const auto* pairs = reinterpret_cast<const ulonglong2*>(images[0] + thread - lane);
    for (int q = 0; q < 32; q += 2) {
      const ulonglong2 two = pairs[q / 2];
      rank += two.x > mine || (two.x == mine && q > lane);
      rank += two.y > mine || (two.y == mine && q + 1 > lane);
    }
    __syncwarp();
    images[0][thread - lane + rank] = mine;
    places[0][thread - lane + rank] = place;
  }
  int from = 0;
  for (int run = 32; run < sorted; run *= 2, from ^= 1) {
    __syncthreads();
    if (thread >= sorted) continue;
    const unsigned long long image = images[from][thread];
    const std::uint16_t place = places[from][thread];
    const int inside = thread % run, pair = thread - thread % (2 * run);
    const bool right = thread % (2 * run) >= run;
    const unsigned long long* others = images[from] + (right ? pair : pair + run);
    int low = 0, high = run;  // those of the other run that come first; keys of the right run are later
    while (low < high) {
      const int middle = (low + high) / 2;
      if (others[middle] > image || (!right && others[middle] == image)) low = middle + 1;
      else high = middle;
    }
    images[from ^ 1][pair + inside + low] = image;
    places[from ^ 1][pair + inside + low] = place;
  }
  __syncthreads();
  bool tail = false;
  if (thread < m) {
    const std::uint16_t place = places[from][thread];
    c.sorted[item * kChunk + thread] = scores[place];
    c.places[item * kChunk + thread] = place;
    if (c.a.document_starts_BT != nullptr) {
      const std::int64_t start = chunk * kChunk, end = start + kChunk < c.a.T ? start + kChunk : c.a.T;
      tail = start + place >= c.begin_of(row, end - 1);
    }
  }
  if (c.a.document_starts_BT != nullptr) {
    const unsigned tails = __ballot_sync(0xffffffffu, tail);
    if (lane == 0) counts[thread / 32] = __popc(tails);
    __syncthreads();
    int at = __popc(tails & ((1u << lane) - 1)), all = 0;
    for (int w = 0; w < kChunk / 32; ++w) {
      if (w < thread / 32) at += counts[w];
      all += counts[w];
    }
    if (tail) {
      const std::uint16_t place = places[from][thread];
      c.tail_sorted[item * kChunk + at] = scores[place];
      c.tail_places[item * kChunk + at] = place;
    }
    if (thread == 0) c.tails[item] = all;
  }
  if (thread > 0) return;
  c.candidates[item] = m;
  if (nans > 0 && c.a.nan_count != nullptr)  // integers: the order of additions does not matter
    atomicAdd(reinterpret_cast<unsigned long long*>(c.a.nan_count), static_cast<unsigned long long>(nans));
}

}  // namespace

void sort_chunks(const Chunks& c, const Stream& stream) {
  start("selection: sorted chunks", order_and_sort, c.rows * c.count, kChunk, 0, stream, c);
}

}  // namespace sieve::cuda
