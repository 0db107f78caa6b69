// Sorted chunks of candidates, and the best scores before each of them (select_chunks.h).
#include <cmath>

#include "attention/kernels/cuda/launch.cuh"
#include "attention/kernels/cuda/select_chunks.h"
#include "tensor/kernels/cuda/block.cuh"

namespace sieve::cuda {
namespace {

// A row's block: wide where rows are fewer than multiprocessors, else such that several fit one.
constexpr int kWideGrow = 1024, kNarrowGrow = 512;
constexpr std::int64_t kFewRows = 128;
static_assert(kNarrowGrow >= kChunk);

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

// Adds what the warps before the thread's have, and what all have.
__device__ __forceinline__ void add_warps(const int (&counts)[kChunk / 32], int& before, int& all) {
  for (int w = 0; w < kChunk / 32; ++w) {
    if (w < static_cast<int>(threadIdx.x) / 32) before += counts[w];
    all += counts[w];
  }
}

// Each warp the 32 candidates at its threads.
__device__ __forceinline__ void sort_warp(unsigned long long* images, std::uint16_t* places) {
  const auto thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const unsigned long long mine = images[thread];
  const std::uint16_t place = places[thread];
  int rank = 0;
  for (int q = 0; q < 32; ++q) {
    const unsigned long long other = __shfl_sync(0xffffffffu, mine, q);
    rank += other > mine || (other == mine && q > lane);
  }
  __syncwarp();
  images[thread - lane + rank] = mine;
  places[thread - lane + rank] = place;
}

// How many of the other run come before an image; keys of the right run are later.
__device__ __forceinline__ int those_before(const unsigned long long* others, int run, unsigned long long image,
                                            bool right) {
  int low = 0, high = run;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (others[middle] > image || (!right && others[middle] == image)) low = middle + 1;
    else high = middle;
  }
  return low;
}

// One thread a key. Warps sort 32 candidates each, then runs are merged in pairs: a key's place is its place in its own
// run and the number of keys of the other run before it. On a tie the later key is the better one.
__global__ void __launch_bounds__(kChunk) order_and_sort(const Chunks c) {
  __shared__ unsigned long long images[2][kChunk];
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
  add_warps(counts, to, m);
  if (candidate) images[0][to] = image_of(u), places[0][to] = static_cast<std::uint16_t>(thread);
  int sorted = 32;  // threads at work
  while (sorted < m) sorted *= 2;
  __syncthreads();
  if (thread < sorted) { sort_warp(images[0], places[0]); }
  int from = 0;
  for (int run = 32; run < sorted; run *= 2, from ^= 1) {
    __syncthreads();
    if (thread >= sorted) continue;
    const unsigned long long image = images[from][thread];
    const std::uint16_t place = places[from][thread];
    const int inside = thread % run, pair = thread - thread % (2 * run);
    const bool right = thread % (2 * run) >= run;
    const unsigned long long* others = images[from] + (right ? pair : pair + run);
    const int first = those_before(others, run, image, right);
    images[from ^ 1][pair + inside + first] = image;
    places[from ^ 1][pair + inside + first] = place;
  }
  __syncthreads();
  if (thread < m) {
    const std::uint16_t place = places[from][thread];
    c.sorted[item * kChunk + thread] = scores[place];
    c.places[item * kChunk + thread] = place;
  }
  if (thread > 0) return;
  c.candidates[item] = m;
  if (nans > 0 && c.a.nan_count != nullptr)  // integers: the order of additions does not matter
    atomicAdd(reinterpret_cast<unsigned long long*>(c.a.nan_count), static_cast<unsigned long long>(nans));
}

// A base in shared memory, best first.
struct Base {
  double* u;
  std::int32_t* keys;
};
// One of the row's bases in memory.
__device__ __forceinline__ Base in_memory(const Chunks& c, std::int64_t slot, int P) {
  return {c.base + slot * P, c.base_keys + slot * P};
}
template <int kGrowThreads>
__device__ __forceinline__ void copy(const Base& to, const Base& from, int n) {
  for (int r = static_cast<int>(threadIdx.x); r < n; r += kGrowThreads) {
    to.u[r] = from.u[r];
    to.keys[r] = from.keys[r];
  }
}
// Two bases and the candidates of a chunk in shared memory.
__device__ __forceinline__ void lay_out(Base (&bases)[2], Base& fresh, int P) {
  bases[0].u = reinterpret_cast<double*>(dynamic_shared());
  bases[1].u = bases[0].u + P, fresh.u = bases[1].u + P;
  bases[0].keys = reinterpret_cast<std::int32_t*>(fresh.u + kChunk);
  bases[1].keys = bases[0].keys + P, fresh.keys = bases[1].keys + P;
}
// The best P of the base and the m candidates, which are later keys. Three searches go side by side: of two scores of
// the base among the candidates, and of a candidate in the base. Ends with a barrier.
template <int kGrowThreads>
__device__ int merge(const Base& old, int n, const Base& fresh, int m, const Base& out, int P) {
  const auto thread = static_cast<int>(threadIdx.x);
  for (int base = 0; base < n || base < m; base += 2 * kGrowThreads) {
    const int x = base + thread, y = x + kGrowThreads;
    const double u = x < n ? old.u[x] : 0, v = y < n ? old.u[y] : 0, w = x < m ? fresh.u[x] : 0;
    const int searched = x < m ? n : 0, most = searched > m ? searched : m;
    int before_u = 0, before_v = 0, before_w = 0;
    for (int step = most > 0 ? 1 << (31 - __clz(most)) : 0; step > 0; step /= 2) {
      const int a = before_u + step, b = before_v + step, c = before_w + step;
      if (a <= m && fresh.u[a - 1] >= u) before_u = a;
      if (b <= m && fresh.u[b - 1] >= v) before_v = b;
      if (c <= searched && old.u[c - 1] > w) before_w = c;
    }
    if (x < n && x + before_u < P) out.u[x + before_u] = u, out.keys[x + before_u] = old.keys[x];
    if (y < n && y + before_v < P) out.u[y + before_v] = v, out.keys[y + before_v] = old.keys[y];
    if (x < m && x + before_w < P) out.u[x + before_w] = w, out.keys[x + before_w] = fresh.keys[x];
  }
  __syncthreads();
  return n + m < P ? n + m : P;
}

// One block a row, chunk after chunk: only candidates that enter the base are merged.
template <int kGrowThreads>
__global__ void __launch_bounds__(kGrowThreads, kWideGrow / kGrowThreads) grow(const Chunks c) {
  const auto thread = static_cast<int>(threadIdx.x);
  const std::int64_t row = blockIdx.x;
  const int P = static_cast<int>(c.P);
  Base bases[2], fresh;
  lay_out(bases, fresh, P);
  const std::int64_t slots = row * (c.slab + 1);
  int n = 0, at = 0;
  if (c.first > 0) {
    n = c.base_counts[slots + c.slab];
    copy<kGrowThreads>(bases[0], in_memory(c, slots + c.slab, P), n);
  }
  double next_u = 0;  // what the thread holds of the next chunk
  int next_place = 0, next_candidates = 0;
  std::int64_t next_begin = 0;
  const auto prefetch = [&](std::int64_t chunk) {
    if (chunk >= c.first + c.count) return;
    const std::int64_t item = row * c.chunks + chunk;
    next_candidates = c.candidates[item];
    if (thread < kChunk) next_u = c.sorted[item * kChunk + thread], next_place = c.places[item * kChunk + thread];
    const std::int64_t after = (chunk + 1) * kChunk;
    next_begin = after < c.a.T ? c.begin_of(row, after) : 0;
  };
  prefetch(c.first);
  __syncthreads();
  for (std::int64_t x = 0; x < c.count; ++x) {
    const std::int64_t slot = slots + x, start = (c.first + x) * kChunk, begin = next_begin;
    const Base& now = bases[at];
    for (int r = thread; r < n; r += kGrowThreads) {
      c.base[slot * P + r] = now.u[r];
      c.base_keys[slot * P + r] = now.keys[r];
    }
    if (thread == 0) c.base_counts[slot] = n;
    const double u = next_u;
    const std::int64_t key = start + next_place;
    // Only the document that goes on in the next chunk matters from here on.
    if (begin >= start) n = 0;
    const bool enters = thread < next_candidates && key >= begin && (n < P || u >= now.u[P - 1]);
    prefetch(c.first + x + 1);
    const unsigned lanes = __ballot_sync(0xffffffffu, enters);
    __shared__ int counts[kChunk / 32];
    if (thread % 32 == 0 && thread < kChunk) counts[thread / 32] = __popc(lanes);
    __syncthreads();
    int m = 0, before = 0;
    add_warps(counts, before, m);
    if (enters) {
      const int to = before + __popc(lanes & ((1u << thread % 32) - 1));
      fresh.u[to] = u, fresh.keys[to] = static_cast<std::int32_t>(key);
    }
    __syncthreads();
    if (m == 0) continue;
    n = merge<kGrowThreads>(now, n, fresh, m, bases[at ^ 1], P);
    at ^= 1;
  }
  if (c.first + c.count == c.chunks) return;  // no slab follows
  copy<kGrowThreads>(in_memory(c, slots + c.slab, P), bases[at], n);
  if (thread == 0) c.base_counts[slots + c.slab] = n;
}

}  // namespace

void sort_chunks(const Chunks& c, const Stream& stream) {
  start("selection: sorted chunks", order_and_sort, c.rows * c.count, kChunk, 0, stream, c);
}

void grow_bases(const Chunks& c, const Stream& stream) {
  const auto bytes = static_cast<std::size_t>(base_bytes(c.P));
  const bool few = c.rows <= kFewRows;
  start("selection: bases", few ? grow<kWideGrow> : grow<kNarrowGrow>, c.rows, few ? kWideGrow : kNarrowGrow, bytes,
        stream, c);
}

}  // namespace sieve::cuda
