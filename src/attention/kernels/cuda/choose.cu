// The best keys or blocks of every query. A block of threads takes a few queries and walks over what they choose from,
// a chunk at a time: logits of the chunk (one sum over the features in their order, as on the CPU), then every query's
// warp appends those that may still be among its best to its list, and thins the list out when it is full. Logits
// never leave shared memory, and its size does not depend on T.
#include "attention/kernels/choose.h"
#include "attention/kernels/cuda/launch.cuh"
#include "attention/kernels/pattern.h"
#include "tensor/kernels/cuda/block.cuh"

namespace sieve::cuda {
namespace {

constexpr int kWide = 8, kNarrow = 2;  // queries of a block; few where their lists are long
constexpr int kChunk = 2 * kThreads;   // two candidates a thread
constexpr unsigned kAll = 0xffffffffu;

__device__ inline unsigned lanes_below() { return (1u << (threadIdx.x % 32)) - 1; }

// Larger floats become larger numbers; NaN the largest. No float becomes 0.
__device__ inline unsigned ordered(float x) {
  if (x != x) return kAll;
  const unsigned bits = __float_as_uint(x);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

__device__ inline int warp_count(int n) { return __reduce_add_sync(kAll, n); }

// One query's list in shared memory; its warp owns it. Candidates ascend.
struct List {
  unsigned* logit;
  std::int32_t* candidate;
  int size;
  unsigned least;  // what is smaller cannot be among the best
};

// The `most` best of a longer list, in place: the bits of the threshold from the highest on, until exactly that many
// reach it. Of equal ones the earliest go.
__device__ void thin_out(List& list, int most) {
  const int lane = threadIdx.x % 32;
  unsigned threshold = 0;
  int reach = list.size;
  for (int bit = 31; bit >= 0 && reach != most; --bit) {
    const unsigned trial = threshold | (1u << bit);
    int n = 0;
    for (int x = lane; x < list.size; x += 32) n += list.logit[x] >= trial;
    n = warp_count(n);
    if (n >= most) threshold = trial, reach = n;
  }
  const int drop = reach - most;  // of those that equal the threshold, which has all its bits if this is not 0
  int kept = 0, equals = 0;
  for (int first = 0; first < list.size; first += 32) {
    const int x = first + lane;
    const bool in = x < list.size;
    const unsigned logit = in ? list.logit[x] : 0;
    const std::int32_t candidate = in ? list.candidate[x] : 0;
    __syncwarp();  // all lanes have read: places written below lie at or before theirs
    const bool equal = in && logit == threshold;
    const unsigned equal_lanes = __ballot_sync(kAll, equal);
    const bool take = in && (logit > threshold || (equal && equals + __popc(equal_lanes & lanes_below()) >= drop));
    const unsigned taken = __ballot_sync(kAll, take);
    if (take) {
      const int to = kept + __popc(taken & lanes_below());
      list.logit[to] = logit, list.candidate[to] = candidate;
    }
    kept += __popc(taken), equals += __popc(equal_lanes);
    __syncwarp();
  }
  list.size = kept, list.least = threshold;
}

// Logits [from, to) of a chunk whose first candidate is `first`.
__device__ void append(List& list, const unsigned* logits, int from, int to, std::int32_t first, int most, int room) {
  const int lane = threadIdx.x % 32;
  int passing = 0;
  for (int x = from + lane; x < to; x += 32) passing += logits[x] >= list.least;
  if (list.size + warp_count(passing) > room) thin_out(list, most);  // longer than `most`: a chunk has room beyond it
  for (int begin = from; begin < to; begin += 32) {
    const int x = begin + lane;
    const unsigned logit = x < to ? logits[x] : 0;
    const bool take = x < to && logit >= list.least;
    const unsigned taken = __ballot_sync(kAll, take);
    if (take) {
      const int at = list.size + __popc(taken & lanes_below());
      list.logit[at] = logit, list.candidate[at] = first + x;
    }
    list.size += __popc(taken);
  }
  __syncwarp();
}

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

// Features d .. d + 7 of a row, 0 beyond D. `wide`: rows are aligned to 16 bytes and D is a multiple of 8.
template <class K>
__device__ inline void load_features(const K* row, std::int64_t d, std::int64_t D, bool wide, float* out) {
  if (wide) {
    constexpr int kEach = 16 / sizeof(K);
#pragma unroll
    for (int part = 0; part < 8 / kEach; ++part) {
      const uint4 words = *reinterpret_cast<const uint4*>(row + d + part * kEach);
      K values[kEach];
      memcpy(values, &words, sizeof words);
#pragma unroll
      for (int x = 0; x < kEach; ++x) out[part * kEach + x] = static_cast<float>(values[x]);
    }
  } else {
#pragma unroll
    for (int x = 0; x < 8; ++x) out[x] = d + x < D ? static_cast<float>(row[d + x]) : 0.f;
  }
}

// sum[q][x]: products of query q with two rows. queries: (kQ, Dp) in shared memory, 0 beyond D.
template <class K, int kQ>
__device__ inline void products(const K* const (&rows)[2], const float* queries, std::int64_t D, int Dp, bool wide,
                                float (&sum)[kQ][2]) {
#pragma unroll
  for (int q = 0; q < kQ; ++q) sum[q][0] = sum[q][1] = 0;
  for (int d = 0; d < Dp; d += 8) {
    float k[2][8];
    load_features(rows[0], d, D, wide, k[0]);
    load_features(rows[1], d, D, wide, k[1]);
#pragma unroll
    for (int q = 0; q < kQ; ++q) {
#pragma unroll
      for (int x = 0; x < 8; x += 4) {
        const float4 v = *reinterpret_cast<const float4*>(queries + q * Dp + d + x);
        const float part[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int y = 0; y < 4; ++y) {
          sum[q][0] = fmaf(part[y], k[0][x + y], sum[q][0]);
          sum[q][1] = fmaf(part[y], k[1][x + y], sum[q][1]);
        }
      }
    }
  }
}

struct Launch {
  const void* candidates;       // (B, Hk) heads of rows
  std::int64_t candidate_head;  // elements from one head to the next
  int most, room;               // places for candidates, of a list
  bool wide;
  DType queries;
};

template <class K, int kQ, bool kTogether>
__global__ void __launch_bounds__(kThreads, 2) choose(const ChooseArgs a, const Launch how) {
  const int Dp = static_cast<int>((a.D + 7) / 8 * 8), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int heads = kTogether ? static_cast<int>(a.H) : 1;
  auto* queries = reinterpret_cast<float*>(dynamic_shared());                            // (heads, kQ, Dp)
  float* weights = queries + heads * kQ * Dp;                                            // (heads, kQ)
  auto* logits = reinterpret_cast<unsigned*>(weights + heads * kQ);                      // (kQ, kChunk)
  unsigned* list_logits = logits + kQ * kChunk;                                          // (kQ, room)
  auto* list_candidates = reinterpret_cast<std::int32_t*>(list_logits + kQ * how.room);  // (kQ, room)

  const std::int64_t tiles = (a.N + kQ - 1) / kQ, lists = kTogether ? 1 : a.H;
  const std::int64_t n0 = (tiles - 1 - blockIdx.x % tiles) * kQ, item = blockIdx.x / tiles;  // the longest first
  const std::int64_t b = item / lists, h0 = item % lists, i0 = a.T - a.N + n0;
  const int count = static_cast<int>(a.N - n0 < kQ ? a.N - n0 : kQ);
  for (int x = threadIdx.x; x < heads * kQ * Dp; x += kThreads) {
    const int d = x % Dp, q = x / Dp % kQ, h = x / Dp / kQ;
    const std::int64_t at = ((b * a.H + h0 + h) * a.N + n0 + q) * a.D + d;
    float value = 0;
    if (d < a.D && q < count)
      value = how.queries == DType::bf16 ? static_cast<float>(static_cast<const bf16*>(a.q_BHND)[at])
                                         : static_cast<const float*>(a.q_BHND)[at];
    queries[x] = value;
  }
  for (int x = threadIdx.x; kTogether && x < heads * kQ; x += kThreads) {
    const int q = x % kQ, h = x / kQ;
    weights[x] = q < count ? static_cast<const float*>(a.weights_BHN)[(b * a.H + h) * a.N + n0 + q] : 0.f;
  }
  __syncthreads();

  const K* rows = static_cast<const K*>(how.candidates) + (b * a.Hk + h0 / (a.H / a.Hk)) * how.candidate_head;
  const std::int64_t base = range_of(a, b, i0).begin, limit = how.most == 0 ? base : range_of(a, b, i0 + count - 1).end;
  const bool owns = warp < count;
  const Range mine = owns ? range_of(a, b, i0 + warp) : Range{0, 0};
  List list{list_logits + warp * how.room, list_candidates + warp * how.room, 0, 0};
  for (std::int64_t first = base; first < limit; first += kChunk) {
    const K* const pair[2] = {
        rows + (first + threadIdx.x < limit ? first + threadIdx.x : base) * a.D,
        rows + (first + kThreads + threadIdx.x < limit ? first + kThreads + threadIdx.x : base) * a.D};
    float sum[kQ][2];
    if constexpr (kTogether) {
      float total[kQ][2] = {};
      for (int h = 0; h < heads; ++h) {
        products<K, kQ>(pair, queries + h * kQ * Dp, a.D, Dp, how.wide, sum);
#pragma unroll
        for (int q = 0; q < kQ; ++q) {
          const float w = weights[h * kQ + q];
          total[q][0] += w * (sum[q][0] < 0 ? 0.f : sum[q][0]), total[q][1] += w * (sum[q][1] < 0 ? 0.f : sum[q][1]);
        }
      }
#pragma unroll
      for (int q = 0; q < kQ; ++q) sum[q][0] = total[q][0], sum[q][1] = total[q][1];
    } else {
      products<K, kQ>(pair, queries, a.D, Dp, how.wide, sum);
    }
#pragma unroll
    for (int q = 0; q < kQ; ++q) {
      logits[q * kChunk + threadIdx.x] = ordered(sum[q][0]);
      logits[q * kChunk + kThreads + threadIdx.x] = ordered(sum[q][1]);
    }
    __syncthreads();
    if (owns) {
      const std::int64_t from = (mine.begin > first ? mine.begin : first) - first,
                         to = (mine.end < first + kChunk ? mine.end : first + kChunk) - first;
      if (from < to)
        append(list, logits + warp * kChunk, static_cast<int>(from), static_cast<int>(to),
               static_cast<std::int32_t>(first), how.most, how.room);
    }
    __syncthreads();  // before the next chunk's logits
  }
  if (!owns) return;
  if (list.size > how.most) thin_out(list, how.most);
  const auto zero = static_cast<std::int32_t>(a.block > 0 ? mine.begin : 0);
  std::int32_t* out = a.choice_BHNM + ((b * lists + h0) * a.N + n0 + warp) * a.size;
  for (std::int64_t x = lane; x < a.size; x += 32) {
    std::int32_t value = kNoChoice;
    if (x < list.size) value = list.candidate[x] - zero;
    else if (a.block > 0 && x == list.size) value = static_cast<std::int32_t>(mine.end) - zero;
    out[x] = value;
  }
}

// One thread a feature of every position; those that end a block add it up.
template <class K>
__global__ void __launch_bounds__(kThreads) block_means(const ChooseArgs a) {
  const std::int64_t slots = (a.T + a.block - 1) / a.block;
  SIEVE_GRID_STRIDE(x, a.B * a.Hk * a.T * a.D) {
    const std::int64_t d = x % a.D, end = x / a.D % a.T, head = x / a.D / a.T, b = head / a.Hk;
    const std::int64_t start = a.document_starts_BT != nullptr ? a.document_starts_BT[b * a.T + end] : 0;
    if ((end - start + 1) % a.block != 0) continue;
    const K* key = static_cast<const K*>(a.k_BHTD) + head * a.k_stride + (end - a.block + 1) * a.D + d;
    double sum = 0;
    for (std::int64_t j = 0; j < a.block; ++j) sum += static_cast<double>(static_cast<float>(key[j * a.D]));
    a.means_BHSD[(head * slots + end / a.block) * a.D + d] = static_cast<float>(sum / static_cast<double>(a.block));
  }
}

template <int kQ>
std::size_t shared_bytes(const ChooseArgs& a, std::int64_t room) {
  const std::int64_t heads = a.weights_BHN != nullptr ? a.H : 1, Dp = (a.D + 7) / 8 * 8;
  return static_cast<std::size_t>(4 * (heads * kQ * (Dp + 1) + kQ * kChunk + 2 * kQ * room));
}

template <class K, int kQ>
void start_choose(const ChooseArgs& a, const Launch& how, const Stream& stream) {
  const std::size_t shared = shared_bytes<kQ>(a, how.room);
  const std::int64_t tiles = (a.N + kQ - 1) / kQ;
  if (a.weights_BHN != nullptr) start("choose", choose<K, kQ, true>, a.B * tiles, kThreads, shared, stream, a, how);
  else start("choose", choose<K, kQ, false>, a.B * a.H * tiles, kThreads, shared, stream, a, how);
}

template <class K>
void choose_among(const ChooseArgs& a, Launch how, const Stream& stream) {
  const bool aligned = reinterpret_cast<std::uintptr_t>(how.candidates) % 16 == 0;
  how.wide = aligned && a.D % 8 == 0 && how.candidate_head % 8 == 0;
  const auto most = static_cast<std::size_t>(most_shared_bytes());
  if (shared_bytes<kWide>(a, how.room) <= most) return start_choose<K, kWide>(a, how, stream);
  if (shared_bytes<kNarrow>(a, how.room) <= most) return start_choose<K, kNarrow>(a, how, stream);
  fail(Exit::config, "attention", a.size, " chosen keys a query with ", a.H, " heads of ", a.D,
       " features do not fit a GPU's shared memory: take fewer, or device.type=cpu");
}

}  // namespace

void run(const ChooseArgs& a, Stream stream) {
  if (a.B * a.N * a.size == 0) return;
  require(a.dtype != DType::f64, "choose", "has no fp64 kernel on a GPU");
  const std::int64_t most = a.block > 0 ? a.size - 1 : a.size, slots = a.block > 0 ? (a.T + a.block - 1) / a.block : 0;
  Launch how{a.k_BHTD, a.k_stride, static_cast<int>(most), static_cast<int>(most + kChunk), false, a.dtype};
  if (a.block == 0) {
    if (a.dtype == DType::bf16) choose_among<bf16>(a, how, stream);
    else choose_among<float>(a, how, stream);
    return;
  }
  const std::int64_t threads = a.B * a.Hk * a.T * a.D;
  if (a.dtype == DType::bf16) start("block means", block_means<bf16>, blocks_for(threads), kThreads, 0, stream, a);
  else start("block means", block_means<float>, blocks_for(threads), kThreads, 0, stream, a);
  how.candidates = a.means_BHSD, how.candidate_head = slots * a.D;
  choose_among<float>(a, how, stream);
}

}  // namespace sieve::cuda
