// What the kernels that choose the best keys share: a block of threads takes a few queries of a list's head and walks
// over what they choose from.
#pragma once

#include "attention/kernels/choose.h"
#include "attention/kernels/cuda/choose_list.cuh"
#include "attention/kernels/cuda/launch.cuh"
#include "attention/kernels/pattern.h"
#include "tensor/kernels/cuda/block.cuh"

namespace sieve::cuda {

struct ChooseLaunch {
  const void* candidates;       // (B, Hk) heads of rows
  std::int64_t candidate_head;  // elements from one head to the next
  int most, room;               // of a list
  bool wide;                    // rows are aligned to 16 bytes and D is a multiple of 8
  DType queries;
};

// Candidates [begin, end) of position i: keys, or the means of whole blocks, of which that whose last key is e stands
// in row e / block; a document that starts at s has the rows from ceil(s / block) on.
struct Range {
  std::int64_t begin, end;
};
__device__ inline Range range_of(const ChooseArgs& a, std::int64_t b, std::int64_t i) {
  const std::int64_t start = a.document_starts_BT != nullptr ? a.document_starts_BT[b * a.T + i] : 0;
  if (a.block == 0) return {start, i + 1};
  const std::int64_t first = (start + a.block - 1) / a.block;
  return {first, first + (i - start) / a.block};
}

// Queries [n0, n0 + count) of batch b; lists of head h0, or of all heads together (then h0 is 0).
struct ChooseTile {
  std::int64_t b, h0, n0, i0, lists;
  int count;
  std::int64_t begin, end;  // candidates of any of them
  // Lists count from the latest back: what they call candidate x is this one, x < end - begin.
  __device__ std::int64_t from_the_latest(std::int64_t x) const { return end - 1 - x; }
};
template <int kQ>
__device__ inline ChooseTile tile_of(const ChooseArgs& a, const ChooseLaunch& how, bool together) {
  ChooseTile e;
  const std::int64_t tiles = (a.N + kQ - 1) / kQ, item = blockIdx.x / tiles;
  e.lists = together ? 1 : a.H, e.b = item / e.lists, e.h0 = item % e.lists;
  e.n0 = (tiles - 1 - blockIdx.x % tiles) * kQ, e.i0 = a.T - a.N + e.n0;  // the longest first
  e.count = static_cast<int>(a.N - e.n0 < kQ ? a.N - e.n0 : kQ);
  e.begin = range_of(a, e.b, e.i0).begin;
  e.end = how.most == 0 ? e.begin : range_of(a, e.b, e.i0 + e.count - 1).end;
  return e;
}

// Element d of query q of head h0 + h; 0 beyond the features and the queries.
__device__ inline float query_element(const ChooseArgs& a, const ChooseLaunch& how, const ChooseTile& e, int h, int q,
                                      int d) {
  if (d >= a.D || q >= e.count) return 0;
  const std::int64_t at = ((e.b * a.H + e.h0 + h) * a.N + e.n0 + q) * a.D + d;
  return how.queries == DType::bf16 ? static_cast<float>(static_cast<const bf16*>(a.q_BHND)[at])
                                    : static_cast<const float*>(a.q_BHND)[at];
}

// (heads, rows); 0 beyond the queries.
__device__ inline void load_weights(const ChooseArgs& a, const ChooseTile& e, int rows, float* weights) {
  for (int x = threadIdx.x; x < a.H * rows; x += blockDim.x) {
    const int q = x % rows, h = x / rows;
    weights[x] = q < e.count ? static_cast<const float*>(a.weights_BHN)[(e.b * a.H + h) * a.N + e.n0 + q] : 0.f;
  }
}

__device__ inline float relu(float x) { return x < 0 ? 0.f : x; }  // NaN stays

// A warp's query: warp w owns query w of the tile, if there is one.
class Owner {
 public:
  // lists: (kQ, 2, room)
  __device__ Owner(const ChooseArgs& a, const ChooseLaunch& how, const ChooseTile& e, unsigned* lists)
      : query_(static_cast<int>(threadIdx.x) / 32),
        range_(owns(e) ? range_of(a, e.b, e.i0 + query_) : Range{0, 0}),
        list_{lists + 2 * query_ * how.room, how.most, how.room} {}
  __device__ bool owns(const ChooseTile& e) const { return query_ < e.count; }

  // 256 logits from candidate `first` of the lists on; row q of `logits` is `stride` behind row q - 1.
  __device__ void take(const ChooseTile& e, const unsigned* logits, int stride, std::int64_t first) {
    const std::int64_t from = e.end - range_.end - first, to = e.end - range_.begin - first;
    if (from >= kPiece || to <= 0) return;
    append(list_, logits + query_ * stride, from > 0 ? static_cast<int>(from) : 0,
           to < kPiece ? static_cast<int>(to) : kPiece, static_cast<unsigned>(first));
  }

  __device__ void write(const ChooseArgs& a, const ChooseTile& e) {
    if (list_.size > list_.most) thin_out(list_, 0);
    const auto zero = static_cast<std::int32_t>(a.block > 0 ? range_.begin : 0);
    std::int32_t* out = a.choice_BHNM + ((e.b * e.lists + e.h0) * a.N + e.n0 + query_) * a.size;
    for (std::int64_t x = own_lane(); x < a.size; x += 32) {
      std::int32_t value = kNoChoice;
      if (x < list_.size)
        value = static_cast<std::int32_t>(e.from_the_latest(list_.logit[list_.room + list_.size - 1 - x])) - zero;
      else if (a.block > 0 && x == list_.size) value = static_cast<std::int32_t>(range_.end) - zero;
      out[x] = value;
    }
  }

 private:
  int query_;
  Range range_;
  List list_;
};

// Places of a list in `bytes` of shared memory for all kQ of them: what is wanted, if it fits, at least what is needed
// for a list to take a piece once thinned out; 0 if that does not fit. No list needs more than there are candidates.
inline int room_of_list(std::int64_t bytes, int kQ, std::int64_t most, std::int64_t candidates, std::int64_t spare) {
  const auto up = [](std::int64_t n) { return (n + 3) / 4 * 4; };
  const std::int64_t all = up(candidates), fits = bytes / (8 * kQ) / 4 * 4;
  const std::int64_t wanted = std::min(all, up(most + 2 * kPiece)), needed = std::min(all, up(most + spare));
  return fits < needed ? 0 : static_cast<int>(std::max<std::int64_t>(4, std::min(fits, wanted)));
}

// The kernel with tensor cores, for bf16; false if lists of a.size do not fit.
bool choose_by_tensor_cores(const ChooseArgs& a, ChooseLaunch how, const Stream& stream);

}  // namespace sieve::cuda
