// A chunk of candidates with its base in shared memory (select_chunks.h), and when keys leave the members and the pool:
// a key with b better ones in the base leaves a set of n when the (n - b)-th better key of the chunk arrives. No key
// waits for an earlier one.
#pragma once

#include <cmath>
#include <cstdint>

#include "attention/kernels/cuda/launch.cuh"
#include "attention/kernels/cuda/select_chunks.h"

namespace sieve::cuda {

inline constexpr int kSettleThreads = 256;
inline constexpr int kNever = 0xffff;
inline constexpr int kBlock = 64;  // arrivals that are looked at one by one; earlier ones through tables
inline constexpr int kBlocks = kChunk / kBlock;
inline constexpr int kBaseMark = 0x8000;  // of a base's place among the pushed
inline constexpr int kRuns = 32;          // of a chunk's queries, at most
inline constexpr int kLeastRun = 8;       // queries

// f just above t at a query, and the places that follow t (select_sweep.cuh).
struct Run {
  double t, sum, rest, centre;  // the sum of the band's scores less the centre, and what roundings added to it
  int saturated, fractional;
  int widest;                      // band that the sum held since it was last taken afresh
  int base_above, base_saturated;  // so many scores of the base lie above t, so many above t + 1
  int own_above, own_saturated;    // of the chunk's candidates, whether in the pool or not
  int pool;                        // scores of the base in the pool
  int document, query;             // query < 0: none of the run sees a threshold, or of later documents only
};

// The chunk's keys that can enter the base, in the order of arrival: x = 0 .. size - 1.
struct Own {
  double ranked[kChunk];                            // the chunk's candidates, best first: u, then z
  std::uint16_t at_rank[kChunk];                    // arrival of a rank
  alignas(16) std::uint16_t rank[kChunk];           // in the chunk, 0 the best
  std::uint16_t place[kChunk];                      // in the chunk
  std::uint16_t first[kChunk];                      // arrival of its document
  std::uint16_t left_k[kChunk], left_pool[kChunk];  // the arrival that pushed it out; its own: it never entered
  std::uint16_t pushed_k[kChunk];     // whom an arrival pushed out of the members: an own key, or a base's | kBaseMark
  std::uint16_t pushed_pool[kChunk];  // the own key that it pushed out of the pool
  std::uint16_t upto[kChunk];         // of a place: how many arrived up to it
  int counts[kSettleThreads / 32];
  double parts[kSettleThreads / 32];
  union {  // four blocks fit a multiprocessor
    struct {
      std::uint16_t earlier[kBlocks - 1][kChunk + 1];  // arrivals before block b + 1 with ranks below r
      std::uint16_t better[kChunk];                    // scores of the base above it
      std::uint16_t last[kChunk];                      // one past the last arrival of its document
    } lives;
    struct {
      double tau[kChunk + 1];        // of the query after so many arrivals; before its turn what it is never below
      Run runs[kRuns];               // where their sweeps start
      double start;                  // tau before all arrivals, or near it
      unsigned pushes[kChunk / 32];  // bits of arrivals that pushed somebody out of the members
    } taus;
  };
};

// values[0 .. n) falls. First index where pred, false and then true, holds.
template <class Pred>
__device__ int first_in(const double* values, int n, const Pred& pred) {
  int low = 0;
  while (low < n) {
    const int middle = (low + n) / 2;
    if (pred(values[middle])) n = middle;
    else low = middle + 1;
  }
  return low;
}

// Of falling values: how many lie more than `by` above t, known to be low .. high.
__device__ inline int count_above(const double* values, int low, int high, double t, double by) {
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (values[middle - 1] - by > t) low = middle;
    else high = middle - 1;
  }
  return low;
}

class ChunkLives {
 public:
  __device__ ChunkLives(const Chunks& c, Own& own, double* memory)
      : c_(c), own_(own), base_(memory), sums_(memory + c.P), k_(c.a.k), P_(static_cast<int>(c.P)) {
    const auto count = static_cast<unsigned>(c.count);
    row_ = blockIdx.x / count;
    const std::int64_t x = blockIdx.x % count;
    slot_ = row_ * (c.slab + 1) + x;
    item_ = row_ * c.chunks + c.first + x;
    start_ = (c.first + x) * kChunk;
    n_ = c.base_counts[slot_];
    starts_ = c.starts_of(row_);
    ends_ = c.ends_BT == nullptr ? nullptr : c.ends_BT + (starts_ - c.a.document_starts_BT);
    candidates_ = c.candidates[item_];
  }

  // Begins without and ends with a barrier.
  __device__ void read() {
    constexpr int kEach = kChunk / kSettleThreads;
    double scores[kEach];
    std::uint16_t places[kEach];
#pragma unroll
    for (int v = 0; v < kEach; ++v) {  // all that comes from memory is asked for before anything waits
      const int r = v * kSettleThreads + thread();
      if (r >= candidates_) continue;
      scores[v] = c_.sorted[item_ * kChunk + r];
      places[v] = c_.places[item_ * kChunk + r];
    }
#pragma unroll 4
    for (int r = thread(); r < n_; r += kSettleThreads) base_[r] = c_.base[slot_ * P_ + r];
    for (int p = thread(); p < kChunk; p += kSettleThreads)
      own_.upto[p] = own_.at_rank[p] = own_.pushed_k[p] = own_.pushed_pool[p] = kNever;
    __syncthreads();
#pragma unroll
    for (int v = 0; v < kEach; ++v) {
      const int r = v * kSettleThreads + thread();
      if (r < candidates_) own_.ranked[r] = scores[v], own_.upto[places[v]] = static_cast<std::uint16_t>(r);
    }
    __syncthreads();
    size_ = 0;
#pragma unroll 1
    for (int base = 0; base < kChunk; base += kSettleThreads) list_own(base + thread());
#pragma unroll 1
    for (int x = thread(); x < size_; x += kSettleThreads) find_document(x);
    const std::int64_t end = end_of(start_) - start_;
    continuing_ = own_.upto[(end < kChunk ? end : kChunk) - 1];
    count_earlier();
    __syncthreads();
  }

  // Own keys and keys of the base, and members and the pool, side by side in whole warps.
  __device__ void find_lives() const {
    const auto warps = [](int n) { return (n + 31) & ~31; };
    // Only the last `continuing_` of the first k, and of the pool, can leave.
    const auto leaving = [&](std::int64_t set) {
      const std::int64_t worst = set < n_ ? set : n_, kept = set - continuing_;
      return static_cast<int>(kept < 0 ? worst : (kept < worst ? worst - kept : 0));
    };
    const bool pool = c_.a.thresholds;
    const int own = warps(size_), members = leaving(k_), pooled = pool ? leaving(P_) : 0,
              to_pool = pool ? 2 * own : own, to_members = to_pool + warps(pooled), all = to_members + members;
#pragma unroll 1
    for (int item = thread(); item < all; item += kSettleThreads) {
      const bool is_own = item < to_pool, member = is_own ? item < own : item >= to_members;
      const int x = is_own   ? (member ? item : item - own)
                    : member ? (k_ < n_ ? static_cast<int>(k_) : n_) - 1 - (item - to_members)
                             : n_ - 1 - (item - to_pool);
      if (is_own ? x < size_ : item - to_pool < pooled || member) find_life(x, is_own, member);
    }
  }

 protected:
  __device__ static int thread() { return static_cast<int>(threadIdx.x); }
  __device__ std::int64_t at(std::int64_t j) const { return row_ * c_.a.T + j; }
  __device__ std::int64_t begin_of(std::int64_t j) const { return starts_ == nullptr ? 0 : starts_[j]; }
  __device__ std::int64_t end_of(std::int64_t j) const { return ends_ == nullptr ? c_.a.T : ends_[j]; }
  __device__ std::int32_t base_key(int r) const { return c_.base_keys[slot_ * P_ + r]; }
  __device__ std::int32_t from_begin(int place) const {
    return static_cast<std::int32_t>(start_ + place - begin_of(start_ + place));
  }
  // Place p of the chunk: into the list, if its key can enter. Candidates that cannot leave at once.
  __device__ void list_own(int p) {
    const int rank = own_.upto[p];
    const std::int64_t j = start_ + p;
    bool enters = rank != kNever;
    if (enters) {
      enters = begin_of(j) >= start_ || n_ < P_ || own_.ranked[rank] >= base_[P_ - 1];
      if (!enters) {
        c_.a.to_BHT[at(j)] = static_cast<std::int32_t>(j + c_.a.delay);
        if (c_.a.thresholds) c_.left_pool[at(j)] = from_begin(p);
      }
    }
    const unsigned lanes = __ballot_sync(0xffffffffu, enters);
    if (thread() % 32 == 0) own_.counts[thread() / 32] = __popc(lanes);
    __syncthreads();
    int x = size_ + __popc(lanes & ((1u << thread() % 32) - 1));
    for (int w = 0; w < kSettleThreads / 32; ++w) {
      if (w < thread() / 32) x += own_.counts[w];
      size_ += own_.counts[w];
    }
    own_.upto[p] = static_cast<std::uint16_t>(x + enters);
    if (enters) {
      own_.rank[x] = static_cast<std::uint16_t>(rank);
      own_.at_rank[rank] = static_cast<std::uint16_t>(x);
      own_.place[x] = static_cast<std::uint16_t>(p);
    }
    __syncthreads();
  }

  __device__ void find_document(int x) const {
    const std::int64_t j = start_ + own_.place[x], begin = begin_of(j) - start_, end = end_of(j) - start_;
    own_.first[x] = begin <= 0 ? 0 : own_.upto[begin - 1];
    own_.lives.last[x] = own_.upto[(end < kChunk ? end : kChunk) - 1];
    const double u = own_.ranked[own_.rank[x]];  // on a tie the later key, this one, is the better
    own_.lives.better[x] =
        static_cast<std::uint16_t>(begin < 0 ? first_in(base_, n_, [&](double b) { return b <= u; }) : 0);
  }

  // One warp a block.
  __device__ void count_earlier() const {
    const int lane = thread() % 32, block = thread() / 32 + 1;
    if (block * kBlock >= size_ || block >= kBlocks) return;
    int count = 0;
    for (int r = lane; r < kChunk; r += 32) {
      const unsigned lanes = __ballot_sync(0xffffffffu, own_.at_rank[r] < block * kBlock);
      own_.lives.earlier[block - 1][r] = static_cast<std::uint16_t>(count + __popc(lanes & ((1u << lane) - 1)));
      count += __popc(lanes);
    }
    if (lane == 0) own_.lives.earlier[block - 1][kChunk] = static_cast<std::uint16_t>(count);
  }
  // Which of eight arrivals from y on, a multiple of 8, have ranks below `bound`.
  __device__ unsigned ranks_below(int y, int bound) const {
    const uint4 eight = *reinterpret_cast<const uint4*>(own_.rank + y);
    const unsigned pairs[] = {eight.x, eight.y, eight.z, eight.w}, limit = static_cast<unsigned>(bound);
    unsigned bits = 0;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      bits |= static_cast<unsigned>((pairs[r] & 0xffff) < limit) << (2 * r);
      bits |= static_cast<unsigned>((pairs[r] >> 16) < limit) << (2 * r + 1);
    }
    return bits;
  }
  // How many.
  __device__ int count_below(int y, int bound) const {
    const uint4 eight = *reinterpret_cast<const uint4*>(own_.rank + y);
    const unsigned limit = 0x80008000u + 0x10001u * static_cast<unsigned>(bound - 1);  // a half's top bit stays: below
    constexpr unsigned kTop = 0x80008000u;
    return __popc((limit - eight.x & kTop) | (limit - eight.y & kTop) >> 1 | (limit - eight.z & kTop) >> 2 |
                  (limit - eight.w & kTop) >> 3);
  }
  // The arrival of the `wanted`-th key of a rank below `bound`, out of [first, last).
  __device__ int arrival(int bound, int wanted, int first, int last) const {
    int y = first;
    if (first == 0) {
      int seen = 0;
      for (int block = 1; block * kBlock < last && own_.lives.earlier[block - 1][bound] < wanted; ++block)
        seen = own_.lives.earlier[block - 1][bound], y = block * kBlock;
      wanted -= seen;
    }
    for (int group = y & ~7; group < last; group += 8) {
      const bool full = group >= y && last - group >= 8;
      if (full) {
        const int count = count_below(group, bound);
        if (count < wanted) {
          wanted -= count;
          continue;
        }
      }
      unsigned bits = ranks_below(group, bound);
      if (group < y) bits &= ~0u << (y - group);
      if (last - group < 8) bits &= (1u << (last - group)) - 1;
      const int count = __popc(bits);
      if (count < wanted) {
        wanted -= count;
        continue;
      }
      for (; wanted > 1; --wanted) bits &= bits - 1;
      return group + __ffs(static_cast<int>(bits)) - 1;
    }
    return kNever;
  }
  // When own key x, or x of the base, leaves the members or the pool, and whom its pusher pushed.
  __device__ void find_life(int x, bool own, bool member) const {
    const std::int64_t wanted = (member ? k_ : P_) - (own ? own_.lives.better[x] : x);
    std::int64_t key = start_;
    int bound = 0, first = 0, last = continuing_;
    if (own) {
      key += own_.place[x];
      bound = own_.rank[x], first = own_.first[x], last = own_.lives.last[x];
    } else {
      key = base_key(x);
      const double u = base_[x];
      bound = first_in(own_.ranked, candidates_, [&](double s) { return s < u; });
    }
    int y = wanted <= 0 ? x : kNever;
    if (wanted > 0 && wanted <= kChunk) y = arrival(bound, static_cast<int>(wanted), first, last);
    if (own && y < x) y = x;
    if (own) (member ? own_.left_k : own_.left_pool)[x] = static_cast<std::uint16_t>(y);
    if (y == kNever) return;
    if (own && y != x) (member ? own_.pushed_k : own_.pushed_pool)[y] = static_cast<std::uint16_t>(x);
    if (!own && member) own_.pushed_k[y] = static_cast<std::uint16_t>(kBaseMark | x);
    if (member) c_.a.to_BHT[at(key)] = static_cast<std::int32_t>(start_ + own_.place[y] + c_.a.delay);
    else c_.left_pool[at(key)] = from_begin(own_.place[y]);
  }

  // The first arrival from y on, below `end`, that pushed out a member; `end`: none.
  __device__ int next_push(int y, int end) const {
    while (y < end) {
      const unsigned bits = own_.taus.pushes[y / 32] >> y % 32;
      if (bits != 0) {
        y += __ffs(static_cast<int>(bits)) - 1;
        return y < end ? y : end;
      }
      y = (y / 32 + 1) * 32;
    }
    return end;
  }

  const Chunks& c_;
  const std::int32_t *starts_, *ends_;  // of the row's documents; null: one
  Own& own_;
  double *base_, *sums_;  // P scores, u and then z; P + 1 prefix sums
  std::int64_t k_, row_, slot_, item_, start_;
  int P_, n_, candidates_, size_ = 0, continuing_ = 0;  // `continuing_` own keys belong to the base's document
};

}  // namespace sieve::cuda
