// The best keys of every query for bf16 rows: logits of 256 keys and up to 16 queries at a time by mma.m16n8k16, a warp
// 16 keys; then each query's warp takes its logits into its list, while the next keys are on their way. Products are
// exact and summed in fp32, in another order than on the CPU.
#include "attention/kernels/cuda/choose_tile.cuh"
#include "attention/kernels/cuda/mma.cuh"

namespace sieve::cuda {
namespace {

constexpr int kChooseThreads = 512;
constexpr int kLogitStride = kPiece + 4;  // the 32 lanes of an accumulator's store meet all banks once
constexpr int kFeatures = 32;             // of a step: 16 bytes of a row a lane, four lanes a row
constexpr int kKept = 2;                  // steps whose keys are loaded ahead
static_assert(kChooseThreads / 32 * 16 == kPiece);

// A row of queries in shared memory: rows 64 bytes apart modulo 128, so that two of them meet all banks once.
__host__ __device__ inline int query_stride(std::int64_t D) {
  const int Dp = static_cast<int>((D + kFeatures - 1) / kFeatures) * kFeatures;
  return Dp % 64 == 0 ? Dp + 32 : Dp;
}

// What a lane holds of 16 keys and 32 features: features 8 t .. 8 t + 7 of keys g and g + 8, t = lane % 4, g = lane
// / 4. The instruction sums over features, so any order of them will do that the queries share: in its k-th half-step
// the lane's features stand where it wants 2 t, 2 t + 1 and 2 t + 8, 2 t + 9.
struct KeyStep {
  uint4 row[2];
};

__device__ inline uint4 load_eight(const bf16* row, int d, std::int64_t D, bool wide) {
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
  std::int64_t count, D;
  bool wide;
  __device__ HeadKeys(const ChooseArgs& a, const ChooseLaunch& how, const ChooseTile& e)
      : latest(static_cast<const bf16*>(how.candidates) + (e.b * a.Hk + e.h0 / (a.H / a.Hk)) * how.candidate_head +
               e.from_the_latest(0) * a.D),
        count(e.end - e.begin),
        D(a.D),
        wide(how.wide) {}
  __device__ KeyStep load(std::int64_t first, int step) const {
    KeyStep k;
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      const std::int64_t key = first + threadIdx.x / 32 * 16 + own_lane() / 4 + 8 * x;
      k.row[x] = load_eight(latest - (key < count ? key * D : 0), step * kFeatures + own_lane() % 4 * 8, D, wide);
    }
    return k;
  }
};

// logit[n] += 16 keys times queries 8 n .. 8 n + 7 over a step's features.
template <int kTiles>
__device__ inline void add_products(float (&logit)[kTiles][4], const KeyStep& k, const bf16* queries, int stride) {
  const std::uint32_t first[4] = {k.row[0].x, k.row[1].x, k.row[0].y, k.row[1].y},
                      second[4] = {k.row[0].z, k.row[1].z, k.row[0].w, k.row[1].w};
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    const uint4 q = *reinterpret_cast<const uint4*>(queries + (8 * n + own_lane() / 4) * stride + own_lane() % 4 * 8);
    multiply_add(logit[n], first, q.x, q.y);
    multiply_add(logit[n], second, q.z, q.w);
  }
}

// Products with one head of queries. kept: the first steps' keys.
template <int kTiles>
__device__ inline void head_logits(float (&logit)[kTiles][4], const HeadKeys& keys, std::int64_t at,
                                   const KeyStep (&kept)[kKept], const bf16* queries, int stride) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) logit[n][0] = logit[n][1] = logit[n][2] = logit[n][3] = 0;
  const int steps = static_cast<int>((keys.D + kFeatures - 1) / kFeatures);
#pragma unroll
  for (int s = 0; s < kKept; ++s)
    if (s < steps) add_products(logit, kept[s], queries + s * kFeatures, stride);
  for (int s = kKept; s < steps; ++s) add_products(logit, keys.load(at, s), queries + s * kFeatures, stride);
}

// Sum over heads of w ReLU(logit). weights: (heads, 8 kTiles).
template <int kTiles>
__device__ inline void together_logits(float (&logit)[kTiles][4], const HeadKeys& keys, std::int64_t at,
                                       const KeyStep (&kept)[kKept], const bf16* queries, int stride,
                                       const float* weights, int heads) {
  float total[kTiles][4] = {};
  for (int h = 0; h < heads; ++h) {
    head_logits(logit, keys, at, kept, queries + h * 8 * kTiles * stride, stride);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const float2 w = *reinterpret_cast<const float2*>(weights + (h * kTiles + n) * 8 + own_lane() % 4 * 2);
#pragma unroll
      for (int x = 0; x < 4; ++x) total[n][x] += (x % 2 == 0 ? w.x : w.y) * relu(logit[n][x]);
    }
  }
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int x = 0; x < 4; ++x) logit[n][x] = total[n][x];
  }
}

// (kQ, kLogitStride): an accumulator's element x is key g + 8 (x / 2) of the warp's, query 2 t + x % 2.
template <int kQ, int kTiles>
__device__ inline void store_logits(const float (&logit)[kTiles][4], unsigned* logits) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int x = 0; x < 4; ++x) {
      const int q = 8 * n + own_lane() % 4 * 2 + x % 2;
      const int key = static_cast<int>(threadIdx.x) / 32 * 16 + own_lane() / 4 + x / 2 * 8;
      if (kQ >= 8 || q < kQ) logits[q * kLogitStride + key] = ordered(logit[n][x]);
    }
  }
}

template <int kQ, bool kTogether>
__global__ void __launch_bounds__(kChooseThreads, 1) choose_by_products(const ChooseArgs a, const ChooseLaunch how) {
  constexpr int kTiles = kQ < 8 ? 1 : kQ / 8, kRows = 8 * kTiles;
  const int heads = kTogether ? static_cast<int>(a.H) : 1, stride = query_stride(a.D);
  auto* lists = reinterpret_cast<unsigned*>(dynamic_shared());                 // (kQ, 2, room)
  unsigned* logits = lists + 2 * kQ * how.room;                                // (2, kQ, kLogitStride)
  auto* queries = reinterpret_cast<bf16*>(logits + 2 * kQ * kLogitStride);     // (heads, kRows, stride)
  auto* weights = reinterpret_cast<float*>(queries + heads * kRows * stride);  // (heads, kRows)

  const ChooseTile e = tile_of<kQ>(a, how, kTogether);
  for (int x = threadIdx.x; x < heads * kRows * stride; x += kChooseThreads)
    queries[x] = bf16(query_element(a, how, e, x / stride / kRows, x / stride % kRows, x % stride));
  if constexpr (kTogether) load_weights(a, e, kRows, weights);
  Owner owner(a, how, e, lists);
  const HeadKeys keys(a, how, e);
  KeyStep kept[kKept];
  const auto load_ahead = [&](std::int64_t first) {
#pragma unroll
    for (int s = 0; s < kKept; ++s) kept[s] = keys.load(first, s);
  };
  if (keys.count > 0) load_ahead(0);
  __syncthreads();
  int turn = 0;
  for (std::int64_t first = 0; first < keys.count; first += kPiece, turn = kQ * kLogitStride - turn) {
    float logit[kTiles][4];
    if constexpr (kTogether) together_logits(logit, keys, first, kept, queries, stride, weights, heads);
    else head_logits(logit, keys, first, kept, queries, stride);
    store_logits<kQ>(logit, logits + turn);
    // One barrier a turn: whoever writes these logits again has passed the next one, before which all have read them.
    __syncthreads();
    if (first + kPiece < keys.count) load_ahead(first + kPiece);
    if (owner.owns(e)) owner.take(e, logits + turn, kLogitStride, first);
  }
  if (owner.owns(e)) owner.write(a, e);
}

template <int kQ>
bool start_if_it_fits(const ChooseArgs& a, ChooseLaunch how, std::int64_t candidates, const Stream& stream) {
  const std::int64_t heads = a.weights_BHN != nullptr ? a.H : 1, rows = kQ < 8 ? 8 : kQ;
  const std::int64_t fixed = 8 * kQ * kLogitStride + heads * rows * (2 * query_stride(a.D) + 4);
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
