// The best so far of one query, in shared memory and owned by a warp: it appends what may still be among them, and
// thins the list out when it is full.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace sieve::cuda {

inline constexpr int kPiece = 256;  // logits that a warp looks at together: two neighbours a lane, four times
inline constexpr int kInLane = 48;  // logits of a list that a lane holds in registers while a cut is searched
inline constexpr int kSlack = 64;   // how many more than needed may survive, where the list will be thinned out again
inline constexpr unsigned kEveryLane = 0xffffffffu;

__device__ inline int own_lane() { return static_cast<int>(threadIdx.x) % 32; }

// Larger floats become larger numbers, -0 what +0 is; NaN the largest, with room above it. No float becomes 0.
__device__ inline unsigned ordered(float x) {
  const unsigned bits = __float_as_uint(x + 0.f);  // -0 + 0 is +0
  const unsigned negative = static_cast<unsigned>(static_cast<int>(bits) >> 31);
  return x != x ? 0xff800001u : bits ^ (negative | 0x80000000u);
}
__device__ inline float unordered(unsigned x) { return __uint_as_float((x >> 31) != 0 ? x ^ 0x80000000u : ~x); }

// Candidates are counted from the latest back, so that of equal logits the first in the list are the best, and where
// near keys matter most the list soon lets few pass. `room` is a multiple of 4, and at least most +
// kPiece or as many as there are candidates: what arrives fits once the list has been thinned out.
struct List {
  unsigned* logit;     // (2, room): then the candidates
  int most, room;      // the list is to end with `most`; places
  int size = 0;        // places in use
  unsigned least = 1;  // what arrives and is smaller cannot be among the best
};

// 0 is no logit: behind the last one, up to a whole vector.
__device__ inline void pad(const List& list) {
  const int x = list.size + own_lane();
  if (x < (list.size + 3) / 4 * 4) list.logit[x] = 0;
  __syncwarp();
}

// The logits of a padded list during the search for a cut: in registers, what is beyond them in shared memory.
class HeldLogits {
 public:
  __device__ explicit HeldLogits(const List& list) : list_(list) {
#pragma unroll
    for (int v = 0; v < kInLane / 4; ++v) {
      const int x = 128 * v + 4 * own_lane();
      uint4 four{0, 0, 0, 0};
      if (x < list.size) four = *reinterpret_cast<const uint4*>(list.logit + x);
      held_[4 * v] = four.x, held_[4 * v + 1] = four.y, held_[4 * v + 2] = four.z, held_[4 * v + 3] = four.w;
    }
  }
  // How many reach a threshold, which is not 0: logits - threshold borrow nothing. As carries of 64-bit sums, on two
  // chains, they cost two instructions of different pipes each.
  __device__ int reach(unsigned threshold) const {
    unsigned n[2] = {0, 0};
    each([&](unsigned logit, int y) {
      n[y % 2] += static_cast<unsigned>((static_cast<std::uint64_t>(logit) + (0u - threshold)) >> 32);
    });
    return __reduce_add_sync(kEveryLane, static_cast<int>(n[0] + n[1]));
  }
  __device__ unsigned smallest() const {
    unsigned least = kEveryLane;  // of logits - 1, which no logit passes
    each([&](unsigned logit, int) { least = logit - 1 < least ? logit - 1 : least; });
    return __reduce_min_sync(kEveryLane, least) + 1;
  }
  __device__ unsigned largest() const {
    unsigned most = 0;
    each([&](unsigned logit, int) { most = logit > most ? logit : most; });
    return __reduce_max_sync(kEveryLane, most);
  }

 private:
  // f(logit, y) of all this lane has, or 0.
  template <class F>
  __device__ void each(F&& f) const {
#pragma unroll
    for (int g = 0; g < kInLane / 8; ++g) {
      if (256 * g >= list_.size) break;
#pragma unroll
      for (int y = 0; y < 8; ++y) f(held_[8 * g + y], y);
    }
    for (int x = 32 * kInLane + own_lane(); x < list_.size; x += 32) f(list_.logit[x], 0);
  }

  const List& list_;
  unsigned held_[kInLane];
};

struct Cut {
  unsigned threshold;
  int reach;  // that many reach it, at least `most`; more than most + slack only if many equal it
  int above;  // fewer than `most`; in that case those above it
};

// Between what all reach and what none does. Two of three trials are where a straight line through both counts would
// have the wanted one; the third halves the interval of numbers, so that no distribution takes more than 96.
__device__ inline Cut find_cut(const List& list, int slack) {
  const HeldLogits held(list);
  unsigned low = held.smallest(), high = held.largest() + 1;
  int reach_low = list.size, reach_high = 0;
  for (int step = 0; reach_low > list.most + slack && high - low > 1; step = step == 2 ? 0 : step + 1) {
    unsigned trial = low + (high - low) / 2;
    if (step != 2) {
      const float part =
          static_cast<float>(2 * (reach_low - list.most) - slack) / static_cast<float>(2 * (reach_low - reach_high));
      const float from = unordered(low);
      trial = ordered(from + (unordered(high) - from) * part);
      trial = trial <= low ? low + 1 : trial >= high ? high - 1 : trial;
    }
    const int n = held.reach(trial);
    if (n >= list.most) low = trial, reach_low = n;
    else high = trial, reach_high = n;
  }
  return {low, reach_low, reach_high};
}

// All but the first n of those that equal a threshold become 0, which is no logit.
__device__ inline void keep_first(List& list, unsigned threshold, int n) {
  for (int first = 0; first < list.size; first += 32) {
    const int x = first + own_lane();
    const bool equal = x < list.size && list.logit[x] == threshold;
    const unsigned lanes = __ballot_sync(kEveryLane, equal);
    if (equal && __popc(lanes & ((1u << own_lane()) - 1)) >= n) list.logit[x] = 0;
    n -= __popc(lanes);
  }
  __syncwarp();
}

// How many of 256 logits reach a threshold: byte y counts those of the y-th 64, in the lanes before this one, and in
// all.
struct Passing {
  unsigned before, all;
  __device__ int total() const {
    const unsigned pairs = (all & 0xff00ffu) + ((all >> 8) & 0xff00ffu);
    return static_cast<int>((pairs & 0xffffu) + (pairs >> 16));
  }
};
__device__ inline Passing count_passing(const uint2 (&logit)[4], unsigned least) {
  unsigned own = 0;
#pragma unroll
  for (int y = 0; y < 4; ++y) {
    own += logit[y].x >= least ? 1u << (8 * y) : 0;
    own += logit[y].y >= least ? 1u << (8 * y) : 0;
  }
  unsigned sum = own;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const unsigned other = __shfl_up_sync(kEveryLane, sum, offset);
    sum += own_lane() >= offset ? other : 0;
  }
  return {sum - own, __shfl_sync(kEveryLane, sum, 31)};
}

// Those that reach `least` go to the end of the list, in their order.
__device__ inline void push(List& list, unsigned least, const uint2 (&logit)[4], const uint2 (&candidate)[4],
                            const Passing& passing) {
  unsigned* end = list.logit + list.size;
#pragma unroll
  for (int y = 0; y < 4; ++y) {
    unsigned* to = end + ((passing.before >> (8 * y)) & 0xffu);
    if (logit[y].x >= least) to[0] = logit[y].x, to[list.room] = candidate[y].x, ++to;
    if (logit[y].y >= least) to[0] = logit[y].y, to[list.room] = candidate[y].y;
    end += (passing.all >> (8 * y)) & 0xffu;
  }
  list.size += passing.total();
}

// The `most` best of a longer list, in place, and up to `slack` more. Of equal ones the first stay.
__device__ inline void thin_out(List& list, int slack) {
  pad(list);
  const Cut cut = find_cut(list, slack);
  if (cut.reach > list.most + slack) keep_first(list, cut.threshold, list.most - cut.above);
  const int size = list.size;
  list.size = 0, list.least = cut.threshold + 1;  // who equals the threshold and arrives later has `most` before it
  for (int first = 0; first < size; first += kPiece) {
    uint2 logit[4];
    uint2 candidate[4];
#pragma unroll
    for (int y = 0; y < 4; ++y) {
      const int x = first + 64 * y + 2 * own_lane();
      logit[y] = {0, 0}, candidate[y] = {0, 0};
      if (x < size) {
        logit[y] = *reinterpret_cast<const uint2*>(list.logit + x);
        candidate[y] = *reinterpret_cast<const uint2*>(list.logit + list.room + x);
      }
    }
    __syncwarp();  // all lanes have read: what is written lies before the end of this piece
    push(list, cut.threshold, logit, candidate, count_passing(logit, cut.threshold));
    __syncwarp();
  }
}

// Logits [from, to) of a piece that begins with candidate `first`.
__device__ inline void append(List& list, const unsigned* logits, int from, int to, unsigned first) {
  uint2 logit[4], candidate[4];
#pragma unroll
  for (int y = 0; y < 4; ++y) {
    const unsigned x = 64 * y + 2 * own_lane();
    logit[y] = *reinterpret_cast<const uint2*>(logits + x);
    candidate[y] = {first + x, first + x + 1};
  }
  if (from > 0 || to < kPiece) {
#pragma unroll
    for (int y = 0; y < 4; ++y) {
      const int x = 64 * y + 2 * own_lane();
      if (x < from || x >= to) logit[y].x = 0;
      if (x + 1 < from || x + 1 >= to) logit[y].y = 0;
    }
  }
  Passing passing = count_passing(logit, list.least);
  if (list.size + passing.total() > list.room) {  // longer than `most`, then
    const int spare = list.room - list.most - kPiece;
    thin_out(list, spare < kSlack ? spare : kSlack);
    passing = count_passing(logit, list.least);
  }
  push(list, list.least, logit, candidate, passing);
  __syncwarp();
}

}  // namespace sieve::cuda
