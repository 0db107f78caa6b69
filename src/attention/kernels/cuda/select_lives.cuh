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
      double tau[kChunk + 1];   // [x + 1] after key x arrived; [0]: before all
      double sums[kChunk + 1];  // of a block: z less the centre of ranks below r, of earlier arrivals in the pool
      std::uint16_t alive[kChunk + 1];  // their number
      unsigned pushes[kChunk / 32];     // bits of arrivals that pushed somebody out of the members
      double z[kBlock], less[kBlock];   // of the arrivals that a turn looks at one by one: z and z - 1
      double start[2];                  // tau before a turn, or near it; turns take them by turns
      int width[2];                     // scores of the band there
      float rise[kBlock];               // what arrivals of the turn add to f there, summed up
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
    candidates_ = c.candidates[item_];
  }

  // Begins without and ends with a barrier.
  __device__ void read() {
    for (int r = thread(); r < n_; r += kSettleThreads) base_[r] = c_.base[slot_ * P_ + r];
    for (int p = thread(); p < kChunk; p += kSettleThreads)
      own_.upto[p] = own_.at_rank[p] = own_.pushed_k[p] = own_.pushed_pool[p] = kNever;
    __syncthreads();
    for (int r = thread(); r < candidates_; r += kSettleThreads) {
      own_.ranked[r] = c_.sorted[item_ * kChunk + r];
      own_.upto[c_.places[item_ * kChunk + r]] = static_cast<std::uint16_t>(r);
    }
    __syncthreads();
    size_ = 0;
    for (int base = 0; base < kChunk; base += kSettleThreads) list_own(base + thread());
    for (int x = thread(); x < size_; x += kSettleThreads) find_document(x);
    const std::int64_t end = c_.end_of(row_, start_) - start_;
    continuing_ = own_.upto[(end < kChunk ? end : kChunk) - 1];
    count_earlier();
    __syncthreads();
  }

  __device__ void find_lives() const {
    for (int x = thread(); x < size_; x += kSettleThreads) own_life(x);
    // Only the last `continuing_` of the first k, and of the pool, can leave.
    const int least = continuing_;
    const int k = k_ < n_ ? static_cast<int>(k_) : n_;
    for (int r = k - 1 - thread(); r >= 0 && k_ - r <= least; r -= kSettleThreads) {
      const int y = base_death(r, static_cast<int>(k_ - r));
      if (y == kNever) continue;
      own_.pushed_k[y] = static_cast<std::uint16_t>(kBaseMark | r);
      c_.a.to_BHT[at(base_key(r))] = static_cast<std::int32_t>(start_ + own_.place[y] + c_.a.delay);
    }
    if (!c_.a.thresholds) return;
    for (int r = n_ - 1 - thread(); r >= 0 && P_ - r <= least; r -= kSettleThreads) {
      const int y = base_death(r, P_ - r);
      if (y != kNever) c_.left_pool[at(base_key(r))] = from_begin(own_.place[y]);
    }
  }

 protected:
  __device__ static int thread() { return static_cast<int>(threadIdx.x); }
  __device__ std::int64_t at(std::int64_t j) const { return row_ * c_.a.T + j; }
  __device__ std::int32_t base_key(int r) const { return c_.base_keys[slot_ * P_ + r]; }
  __device__ std::int32_t from_begin(int place) const {
    return static_cast<std::int32_t>(start_ + place - c_.begin_of(row_, start_ + place));
  }
  // Place p of the chunk: into the list, if its key can enter. Candidates that cannot leave at once.
  __device__ void list_own(int p) {
    const int rank = own_.upto[p];
    const std::int64_t j = start_ + p;
    bool enters = rank != kNever, continues = false;
    if (enters) {
      continues = c_.begin_of(row_, j) < start_;
      enters = !continues || n_ < P_ || own_.ranked[rank] >= base_[P_ - 1];
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
      const double u = own_.ranked[rank];  // on a tie the later key, this one, is the better
      own_.lives.better[x] =
          static_cast<std::uint16_t>(continues ? first_in(base_, n_, [&](double b) { return b <= u; }) : 0);
    }
    __syncthreads();
  }

  __device__ void find_document(int x) const {
    const std::int64_t j = start_ + own_.place[x], begin = c_.begin_of(row_, j) - start_,
                       end = c_.end_of(row_, j) - start_;
    own_.first[x] = begin <= 0 ? 0 : own_.upto[begin - 1];
    own_.lives.last[x] = own_.upto[(end < kChunk ? end : kChunk) - 1];
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
  // When own key x leaves a set of n.
  __device__ int own_death(int x, std::int64_t n) const {
    const std::int64_t wanted = n - own_.lives.better[x];
    if (wanted <= 0) return x;
    if (wanted > kChunk) return kNever;
    const int y = arrival(own_.rank[x], static_cast<int>(wanted), own_.first[x], own_.lives.last[x]);
    return y < x ? x : y;
  }
  __device__ void own_life(int x) const {
    const int left_k = own_death(x, k_), left_pool = c_.a.thresholds ? own_death(x, P_) : kNever;
    own_.left_k[x] = static_cast<std::uint16_t>(left_k);
    own_.left_pool[x] = static_cast<std::uint16_t>(left_pool);
    if (left_k != kNever && left_k != x) own_.pushed_k[left_k] = static_cast<std::uint16_t>(x);
    if (left_pool != kNever && left_pool != x) own_.pushed_pool[left_pool] = static_cast<std::uint16_t>(x);
    const std::int64_t key = at(start_ + own_.place[x]);
    if (left_k != kNever) c_.a.to_BHT[key] = static_cast<std::int32_t>(start_ + own_.place[left_k] + c_.a.delay);
    if (left_pool != kNever) c_.left_pool[key] = from_begin(own_.place[left_pool]);
  }

  // The arrival of the `wanted`-th key above the base's r-th.
  __device__ int base_death(int r, int wanted) const {
    const double u = base_[r];
    const int bound = first_in(own_.ranked, candidates_, [&](double s) { return s < u; });
    return arrival(bound, wanted, 0, continuing_);
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
  Own& own_;
  double *base_, *sums_;  // P scores, u and then z; P + 1 prefix sums
  std::int64_t k_, row_, slot_, item_, start_;
  int P_, n_, candidates_, size_ = 0, continuing_ = 0;  // `continuing_` own keys belong to the base's document
};

}  // namespace sieve::cuda
