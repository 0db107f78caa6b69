// Selection of one step: a block a (layer, row, score head). The least member is known, so whether the candidate enters
// takes one comparison; the new least is one pass over k, and the threshold moves from breakpoint to breakpoint as in
// IncrementalSparseK, each move one pass over the pool. A score enters and leaves the band once, so two moves a step
// are the mean. What is looked through again and again comes into shared memory first, all of it on its way at once:
// the passes then cost no way to memory.
#include <cstring>
#include <limits>

#include "attention/kernels/cuda/decode_step.cuh"
#include "attention/kernels/cuda/launch.cuh"
#include "tensor/kernels/cuda/block.cuh"
#include "tensor/kernels/cuda/dependent.cuh"

namespace sieve::cuda {
namespace {

constexpr int kWarps = kThreads / 32;
constexpr std::int64_t kStaged = 40 * 1024;  // bytes of shared memory
constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <class V>
__device__ V shuffle_xor(const V& v, int mask) {
  static_assert(sizeof(V) % sizeof(unsigned) == 0);
  unsigned words[sizeof(V) / sizeof(unsigned)];
  memcpy(words, &v, sizeof(V));
#pragma unroll
  for (unsigned& word : words) word = __shfl_xor_sync(0xffffffffu, word, mask);
  V out;
  memcpy(&out, words, sizeof(V));
  return out;
}

// The join of all threads' values, the same bits for all of them: join is commutative and the tree is fixed.
template <class V>
__device__ V block_join(V v) {
  __shared__ V part[kWarps];
  for (int offset = 16; offset > 0; offset >>= 1) v = v.joined(shuffle_xor(v, offset));
  __syncthreads();  // `part` may still be read by an earlier call
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
  __syncthreads();
  V all = part[0];
  for (int w = 1; w < kWarps; ++w) all = all.joined(part[w]);
  return all;
}

// The least of some members in the fixed order.
struct Least {
  double u;
  std::int64_t key, slot;
  __device__ Least joined(const Least& o) const { return o.u < u || (o.u == u && o.key < key) ? o : *this; }
};

// Where a new score of the pool goes.
struct Place {
  double z;                  // least score above tau
  std::int64_t index, free;  // where it is, and the first place that nothing above tau holds
  __device__ Place joined(const Place& o) const {
    const bool other = o.z < z || (o.z == z && o.index < index);
    return {other ? o.z : z, other ? o.index : index, o.free < free ? o.free : free};
  }
};

// The linear piece of f to the right of tau: scores that stay saturated just above it, and those in the band.
struct Piece {
  double sum, least_saturated, least_band;  // sum over the band of z - tau
  std::int32_t saturated, band;
  __device__ Piece joined(const Piece& o) const {
    return {sum + o.sum, o.least_saturated < least_saturated ? o.least_saturated : least_saturated,
            o.least_band < least_band ? o.least_band : least_band, saturated + o.saturated, band + o.band};
  }
};

__device__ Piece piece_at(const double* pool, std::int64_t C, double tau) {
  Piece mine{0, kInfinity, kInfinity, 0, 0};
  for (std::int64_t i = threadIdx.x; i < C; i += kThreads) {
    const double z = pool[i];
    if (z - 1 > tau) {
      ++mine.saturated;
      mine.least_saturated = min(mine.least_saturated, z);
    } else if (z > tau) {
      ++mine.band;
      mine.sum += z - tau;
      mine.least_band = min(mine.least_band, z);
    }
  }
  return block_join(mine);
}

// What a step looks through: copies in shared memory where there is room, else the state itself.
struct Staged {
  double* u;
  std::int64_t* key;
  double* pool;
};

// n values of 8 bytes beside the thread.
__device__ inline void stage(void* to, const void* from, std::int64_t n) {
  for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) {
    const auto place = static_cast<std::uint32_t>(__cvta_generic_to_shared(static_cast<std::uint64_t*>(to) + i));
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(place),
                 "l"(static_cast<const std::uint64_t*>(from) + i)
                 : "memory");
  }
}
// The caller waits for the copies, and synchronises.
__device__ inline Staged staged(const DecodeSelection& s, std::int64_t row) {
  Staged out{s.u + row * s.k, s.key + row * s.k, s.pool + row * s.C};
  const std::int64_t C = s.thresholds ? s.C : 0;
  if ((2 * s.k + C) * 8 > kStaged) return out;
  auto* memory = reinterpret_cast<double*>(dynamic_shared());
  const Staged held{memory, reinterpret_cast<std::int64_t*>(memory + s.k), memory + 2 * s.k};
  stage(held.u, out.u, s.k), stage(held.key, out.key, s.k), stage(held.pool, out.pool, C);
  return held;
}

// z joins the pool (the least leaves a full one); the new threshold, sup{t : f(t) >= k}. All threads return the same.
__device__ double threshold(const DecodeSelection& s, double* pool, std::int64_t row, double tau, double z) {
  if (z <= tau) return tau;
  constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::max();
  Place mine{kInfinity, kNone, kNone};
  for (std::int64_t i = threadIdx.x; i < s.C; i += kThreads) {
    const double held = pool[i];
    if (held <= tau) {
      if (i < mine.free) mine.free = i;
    } else if (held < mine.z) {
      mine.z = held, mine.index = i;
    }
  }
  const Place place = block_join(mine);
  if (place.free == kNone && z <= place.z) return tau;  // the pool is full of larger ones
  const std::int64_t at = place.free != kNone ? place.free : place.index;
  if (threadIdx.x == 0) s.pool[row * s.C + at] = pool[at] = z;
  __syncthreads();
  for (;;) {
    const Piece p = piece_at(pool, s.C, tau);
    if (p.saturated + p.band < s.k) break;    // fewer than k scores: -inf
    if (p.band == 0 && p.saturated <= s.k) {  // a plateau of f: its upper end
      tau = max(tau, p.least_saturated - 1);
      break;
    }
    const double next = min(p.least_saturated - 1, p.least_band);
    const double t = p.saturated >= s.k ? kInfinity : tau + (p.sum + static_cast<double>(p.saturated - s.k)) / p.band;
    tau = max(tau, min(t, next));
    if (t <= next) break;
  }
  if (threadIdx.x == 0) s.tau[row] = tau;
  return tau;
}

__device__ void find_least(const DecodeSelection& s, const Staged& of, std::int64_t row, std::int64_t filled) {
  Least mine{kInfinity, std::numeric_limits<std::int64_t>::max(), 0};
  for (std::int64_t i = threadIdx.x; i < filled; i += kThreads) mine = mine.joined({of.u[i], of.key[i], i});
  const Least least = block_join(mine);
  if (threadIdx.x == 0) s.least[row] = static_cast<std::int32_t>(least.slot);
}

__global__ void __launch_bounds__(kThreads) select_step(const DecodeSelectArgs a) {
  let_next_start();
  wait_for_earlier();
  const DecodeSelection s = a.layers[blockIdx.y];
  const std::int64_t row = blockIdx.x, p = *a.position, key = s.at_once ? p : p - s.window;
  if (row >= s.rows) return;
  if (key < 0) {
    if (threadIdx.x == 0) s.incoming[row] = -1;
    return;
  }
  const Staged of = staged(s, row);
  const double u = s.ring[row * s.ring_size + key % s.ring_size], old_tau = s.thresholds ? s.tau[row] : -kInfinity;
  const std::int32_t least = s.least[row];
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();
  const std::int32_t slot = key < s.k ? static_cast<std::int32_t>(key) : (u < of.u[least] ? -1 : least);
  __syncthreads();  // all have read what changes now
  if (threadIdx.x == 0) {
    s.incoming[row] = slot;
    if (slot >= 0) s.u[row * s.k + slot] = of.u[slot] = u, s.key[row * s.k + slot] = of.key[slot] = key;
  }
  __syncthreads();
  const std::int64_t filled = key < s.k ? key + 1 : s.k;
  if (slot >= 0) find_least(s, of, row, filled);
  double tau = s.thresholds ? threshold(s, of.pool, row, old_tau, operator_score(u, s.temperature)) : -kInfinity;
  if (key < s.k) tau = -kInfinity;  // at most k candidates: all are members
  for (std::int64_t i = threadIdx.x; i < s.k; i += kThreads) {
    float m = -1;
    if (i < filled && p - of.key[i] >= s.window)
      m = static_cast<float>(min(max(operator_score(of.u[i], s.temperature) - tau, 0.0), 1.0));
    s.seen[row * s.k + i] = s.thresholds || m < 0 ? m : 1.f;
  }
}

__global__ void push_scores(const DecodePushArgs a) {
  let_next_start();
  wait_for_earlier();
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row < a.B * a.scores.Hs) push_score(a.scores, row / a.scores.Hs, row % a.scores.Hs, a.s_BH[row]);
}

}  // namespace

void run(const DecodeSelectArgs& a, Stream stream) {
  require(a.most_rows < (std::int64_t{1} << 31) && a.count < 65536, "decode selection", a.most_rows, " rows of ",
          a.count, " layers exceed a launch");
  const dim3 grid(static_cast<unsigned>(a.most_rows), static_cast<unsigned>(a.count));
  start_dependent("decode selection", select_step, grid, kThreads, kStaged, a.follows, stream, a);
}

void run(const DecodePushArgs& a, Stream stream) {
  start_dependent("decode scores", push_scores, blocks_for(a.B * a.scores.Hs), kThreads, 0, a.follows, stream, a);
}

}  // namespace sieve::cuda
