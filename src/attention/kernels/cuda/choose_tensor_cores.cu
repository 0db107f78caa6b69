// The best keys of every query for bf16 rows: logits of 256 keys and up to 16 queries at a time by mma.m16n8k16, a warp
// 16 keys; then each query's warp takes its logits into its list, while the next keys are on their way. Products are
// exact and summed in fp32, in another order than on the CPU.
#include "attention/kernels/cuda/choose_tile.cuh"
#include "attention/kernels/cuda/mma.cuh"

namespace sieve::cuda {
namespace {

constexpr int kChooseThreads = 512;
constexpr int kLogitStride = kPiece + 8;  // half a warp's accumulators, 8 bytes each, meet all banks once
constexpr int kFeatures = 32;             // of a step: 16 bytes of a row a lane, four lanes a row
constexpr int kKept = 2;                  // steps whose keys are loaded ahead
constexpr int kStepWords = 256;           // of 16 queries and a step's features
static_assert(kChooseThreads / 32 * 16 == kPiece);

__host__ __device__ inline int steps_of(std::int64_t D) { return static_cast<int>((D + kFeatures - 1) / kFeatures); }

// Keys of a step that a lane holds: features 8 t .. 8 t + 7 of keys g and g + 8 of the warp's 16, where t = lane % 4
// and g = lane / 4. The instruction sums over features, so any order of them will do that the queries share: its first
// half of a step takes four of these eight where it wants 2 t, 2 t + 1, 2 t + 8 and 2 t + 9, its second half the other
// four.
struct KeyStep {
  uint4 row[2];
};

// Queries as the lanes want them, (heads, steps, 2 halves, 32 lanes, 4 words): word r of a lane has two features of
// query g + 8 (r % 2). 0 beyond the features and the queries.
__device__ inline void load_queries(const ChooseArgs& a, const ChooseLaunch& how, const ChooseTile& e, int heads,
                                    std::uint32_t* queries) {
  const int steps = steps_of(a.D);
  for (int x = threadIdx.x; x < heads * steps * kStepWords; x += kChooseThreads) {
    const int word = x % 4, lane = x / 4 % 32, half = x / 128 % 2, step = x / kStepWords % steps;
    const int h = x / kStepWords / steps, q = lane / 4 + 8 * (word % 2);
    const int d = step * kFeatures + lane % 4 * 8 + 4 * half + 2 * (word / 2);
    const std::uint32_t low = bf16(query_element(a, how, e, h, q, d)).bits;
    const std::uint32_t high = bf16(query_element(a, how, e, h, q, d + 1)).bits;
    queries[x] = low | high << 16;
  }
}

__device__ inline uint4 load_eight(const bf16* row, int d, int D, bool wide) {
  if (wide) return d < D ? *reinterpret_cast<const uint4*>(row + d) : uint4{0, 0, 0, 0};
  unsigned words[4];
#pragma unroll
  for (int x = 0; x < 4; ++x) {
    const unsigned low = d + 2 * x < D ? row[d + 2 * x].bits : 0,
                   high = d + 2 * x + 1 < D ? row[d + 2 * x + 1].bits : 0;
    words[x] = low | high << 16;
  }
  return {words[0], words[1], words[2], words[3]};
}

// Keys of a head, from the tile's latest back. A warp has 16 of the 256 from `first` on; those beyond the last stand
// for the latest, whose logits nobody reads there.
struct HeadKeys {
  const bf16* latest;
  int count, D;
  bool wide;
  __device__ HeadKeys(const ChooseArgs& a, const ChooseLaunch& how, const ChooseTile& e)
      : latest(static_cast<const bf16*>(how.candidates) + (e.b * a.Hk + e.h0 / (a.H / a.Hk)) * how.candidate_head +
               e.from_the_latest(0) * a.D),
        count(static_cast<int>(e.end - e.begin)),
        D(static_cast<int>(a.D)),
        wide(how.wide) {}
  __device__ KeyStep load(int first, int step) const {
    KeyStep k;
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      const int key = first + static_cast<int>(threadIdx.x) / 32 * 16 + own_lane() / 4 + 8 * x;
      const bf16* row = latest - static_cast<std::int64_t>(key < count ? key : 0) * D;
      k.row[x] = load_eight(row, step * kFeatures + own_lane() % 4 * 8, D, wide);
    }
    return k;
  }
};

// Logits of a lane: [n][x] is query g + 8 (x / 2), key 8 n + 2 t + x % 2 of the warp's.
using Logits = float[2][4];

__device__ inline void add_products(Logits& logit, const KeyStep& k, const std::uint32_t* queries) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint4 q = *reinterpret_cast<const uint4*>(queries + half * 128 + own_lane() * 4);
    const std::uint32_t rows[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
    for (int n = 0; n < 2; ++n)
      multiply_add(logit[n], rows, half == 0 ? k.row[n].x : k.row[n].z, half == 0 ? k.row[n].y : k.row[n].w);
  }
}

// Products with one head of queries. kept: the first steps' keys.
__device__ inline void head_logits(Logits& logit, const HeadKeys& keys, int first, const KeyStep (&kept)[kKept],
                                   const std::uint32_t* queries) {
#pragma unroll
  for (int n = 0; n < 2; ++n) logit[n][0] = logit[n][1] = logit[n][2] = logit[n][3] = 0;
  const int steps = steps_of(keys.D);
#pragma unroll
  for (int s = 0; s < kKept; ++s)
    if (s < steps) add_products(logit, kept[s], queries + s * kStepWords);
  for (int s = kKept; s < steps; ++s) add_products(logit, keys.load(first, s), queries + s * kStepWords);
}

// Sum over heads of w ReLU(logit). weights: (heads, 16).
__device__ inline void together_logits(Logits& logit, const HeadKeys& keys, int first, const KeyStep (&kept)[kKept],
                                       const std::uint32_t* queries, const float* weights, int heads) {
  Logits total = {};
  for (int h = 0; h < heads; ++h) {
    head_logits(logit, keys, first, kept, queries + h * steps_of(keys.D) * kStepWords);
    const float w[2] = {weights[h * 16 + own_lane() / 4], weights[h * 16 + own_lane() / 4 + 8]};
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int x = 0; x < 4; ++x) total[n][x] += w[x / 2] * relu(logit[n][x]);
    }
  }
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int x = 0; x < 4; ++x) logit[n][x] = total[n][x];
  }
}

// logits: (kQ, kLogitStride)
template <int kQ>
__device__ inline void store_logits(const Logits& logit, unsigned* logits) {
  const int key = static_cast<int>(threadIdx.x) / 32 * 16 + own_lane() % 4 * 2, g = own_lane() / 4;
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const uint2 pair{ordered(logit[n][2 * part]), ordered(logit[n][2 * part + 1])};
      const int q = g + 8 * part;
      if (q < kQ) *reinterpret_cast<uint2*>(logits + q * kLogitStride + key + 8 * n) = pair;
    }
  }
}

template <int kQ, bool kTogether>
__global__ void __launch_bounds__(kChooseThreads, 1) choose_by_products(const ChooseArgs a, const ChooseLaunch how) {
  const int heads = kTogether ? static_cast<int>(a.H) : 1;
  auto* lists = reinterpret_cast<unsigned*>(dynamic_shared());  // (kQ, 2, room)
  unsigned* logits = lists + 2 * kQ * how.room;                 // (2, kQ, kLogitStride)
  std::uint32_t* queries = logits + 2 * kQ * kLogitStride;
  auto* weights = reinterpret_cast<float*>(queries + heads * steps_of(a.D) * kStepWords);

  const ChooseTile e = tile_of<kQ>(a, how, kTogether);
  load_queries(a, how, e, heads, queries);
  if constexpr (kTogether) load_weights(a, e, 16, weights);
  Owner owner(a, how, e, lists);
  const HeadKeys keys(a, how, e);
  KeyStep kept[kKept];
  const auto load_ahead = [&](int first) {
#pragma unroll
    for (int s = 0; s < kKept; ++s) kept[s] = keys.load(first, s);
  };
  if (keys.count > 0) load_ahead(0);
  __syncthreads();
  int turn = 0;
  for (int first = 0; first < keys.count; first += kPiece, turn = kQ * kLogitStride - turn) {
    Logits logit;
    if constexpr (kTogether) together_logits(logit, keys, first, kept, queries, weights, heads);
    else head_logits(logit, keys, first, kept, queries);
    store_logits<kQ>(logit, logits + turn);
    // One barrier a turn: whoever writes these logits again has passed the next one, before which all have read them.
    __syncthreads();
    if (keys.count - first > kPiece) load_ahead(first + kPiece);
    if (owner.owns(e)) owner.take(e, logits + turn, kLogitStride, first);
  }
  if (owner.owns(e)) owner.write(a, e);
}

template <int kQ>
bool start_if_it_fits(const ChooseArgs& a, ChooseLaunch how, std::int64_t candidates, const Stream& stream) {
  const std::int64_t heads = a.weights_BHN != nullptr ? a.H : 1;
  const std::int64_t fixed = 8 * kQ * kLogitStride + 4 * heads * (steps_of(a.D) * kStepWords + 16);
  how.room = room_of_list(most_shared_bytes() - fixed, kQ, how.most, candidates, kPiece);
  if (how.room == 0) return false;
  const auto shared = static_cast<std::size_t>(fixed + 8 * kQ * how.room);
  const std::int64_t tiles = (a.N + kQ - 1) / kQ;
  if (a.weights_BHN != nullptr)
    start("choose", choose_by_products<kQ, true>, a.B * tiles, kChooseThreads, shared, stream, a, how);
  else start("choose", choose_by_products<kQ, false>, a.B * a.H * tiles, kChooseThreads, shared, stream, a, how);
  return true;
}

}  // namespace

bool choose_by_tensor_cores(const ChooseArgs& a, ChooseLaunch how, const Stream& stream) {
  return start_if_it_fits<16>(a, how, a.T, stream) || start_if_it_fits<8>(a, how, a.T, stream) ||
         start_if_it_fits<2>(a, how, a.T, stream);
}

}  // namespace sieve::cuda
