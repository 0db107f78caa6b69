// The best keys or blocks of every query by plain arithmetic: keys in fp32, means of blocks. A block of threads takes a
// few queries and walks over what they choose from, a chunk at a time: logits of the chunk (one sum over the features
// in their order, as on the CPU), then every query's warp takes them into its list. Logits never leave shared memory,
// and its size does not depend on T. Keys in bf16: choose_tensor_cores.cu.
#include "attention/kernels/cuda/choose_tile.cuh"

namespace sieve::cuda {
namespace {

constexpr int kWide = 8, kNarrow = 2;  // queries of a block; few where their lists are long
constexpr int kChunk = 2 * kThreads;   // two candidates a thread
static_assert(kChunk == 2 * kPiece);

// Features d .. d + 7 of a row, 0 beyond D. `wide`: rows are aligned to 16 bytes and D is a multiple of 8.
__device__ inline void load_features(const float* row, std::int64_t d, std::int64_t D, bool wide, float* out) {
  if (wide) {
#pragma unroll
    for (int x = 0; x < 8; x += 4) *reinterpret_cast<float4*>(out + x) = *reinterpret_cast<const float4*>(row + d + x);
  } else {
#pragma unroll
    for (int x = 0; x < 8; ++x) out[x] = d + x < D ? row[d + x] : 0.f;
  }
}

// sum[q][x]: products of query q with two rows. queries: (kQ, Dp) in shared memory, 0 beyond D.
template <int kQ>
__device__ inline void products(const float* const (&rows)[2], const float* queries, std::int64_t D, int Dp, bool wide,
                                float (&sum)[kQ][2]) {
#pragma unroll
  for (int q = 0; q < kQ; ++q) sum[q][0] = sum[q][1] = 0;
  for (int d = 0; d < Dp; d += 8) {
    alignas(16) float k[2][8];
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

// Sum over heads of w ReLU(product). queries: (heads, kQ, Dp), weights: (heads, kQ).
template <int kQ>
__device__ inline void together_products(const float* const (&rows)[2], const float* queries, const float* weights,
                                         int heads, std::int64_t D, int Dp, bool wide, float (&sum)[kQ][2]) {
  float total[kQ][2] = {};
  for (int h = 0; h < heads; ++h) {
    products<kQ>(rows, queries + h * kQ * Dp, D, Dp, wide, sum);
#pragma unroll
    for (int q = 0; q < kQ; ++q) {
      const float w = weights[h * kQ + q];
      total[q][0] += w * relu(sum[q][0]), total[q][1] += w * relu(sum[q][1]);
    }
  }
#pragma unroll
  for (int q = 0; q < kQ; ++q) sum[q][0] = total[q][0], sum[q][1] = total[q][1];
}

template <int kQ, bool kTogether>
__global__ void __launch_bounds__(kThreads, 2) choose(const ChooseArgs a, const ChooseLaunch how) {
  const int Dp = static_cast<int>((a.D + 7) / 8 * 8), heads = kTogether ? static_cast<int>(a.H) : 1;
  auto* lists = reinterpret_cast<unsigned*>(dynamic_shared());     // (kQ, 2, room)
  unsigned* logits = lists + 2 * kQ * how.room;                    // (kQ, kChunk)
  auto* queries = reinterpret_cast<float*>(logits + kQ * kChunk);  // (heads, kQ, Dp)
  float* weights = queries + heads * kQ * Dp;                      // (heads, kQ)

  const ChooseTile e = tile_of<kQ>(a, how, kTogether);
  for (int x = threadIdx.x; x < heads * kQ * Dp; x += kThreads)
    queries[x] = query_element(a, how, e, x / Dp / kQ, x / Dp % kQ, x % Dp);
  if constexpr (kTogether) load_weights(a, e, kQ, weights);
  __syncthreads();

  const float* latest = static_cast<const float*>(how.candidates) +
                        (e.b * a.Hk + e.h0 / (a.H / a.Hk)) * how.candidate_head + e.from_the_latest(0) * a.D;
  const std::int64_t count = e.end - e.begin;
  Owner owner(a, how, e, lists);
  for (std::int64_t first = 0; first < count; first += kChunk) {
    const std::int64_t x0 = first + threadIdx.x, x1 = x0 + kThreads;
    if (first + threadIdx.x / 32 * 32 < count) {  // nobody reads the logits of other warps
      const float* const pair[2] = {latest - (x0 < count ? x0 * a.D : 0), latest - (x1 < count ? x1 * a.D : 0)};
      float sum[kQ][2];
      if constexpr (kTogether) together_products<kQ>(pair, queries, weights, heads, a.D, Dp, how.wide, sum);
      else products<kQ>(pair, queries, a.D, Dp, how.wide, sum);
#pragma unroll
      for (int q = 0; q < kQ; ++q) {
        logits[q * kChunk + threadIdx.x] = ordered(sum[q][0]);
        logits[q * kChunk + kThreads + threadIdx.x] = ordered(sum[q][1]);
      }
    }
    __syncthreads();
    if (owner.owns(e)) {
      owner.take(e, logits, kChunk, first);
      owner.take(e, logits + kPiece, kChunk, first + kPiece);
    }
    __syncthreads();  // before the next chunk's logits
  }
  if (owner.owns(e)) owner.write(a, e);
}

// The last key of the block whose mean stands in row `slot`: there is one at most; -1 if none.
__device__ inline std::int64_t last_key(const ChooseArgs& a, std::int64_t b, std::int64_t slot) {
  const std::int64_t first = slot * a.block, end = first + a.block < a.T ? first + a.block : a.T;
  if (a.document_starts_BT == nullptr) return end - first == a.block ? end - 1 : -1;
  const auto block = static_cast<std::int32_t>(a.block <= a.T ? a.block : a.T + 1);  // longer than any document
  for (std::int64_t e = first; e < end; ++e)
    if ((static_cast<std::int32_t>(e) + 1 - a.document_starts_BT[b * a.T + e]) % block == 0) return e;
  return -1;
}

// One thread a feature of every block.
template <class K>
__global__ void __launch_bounds__(kThreads) block_means(const ChooseArgs a) {
  const std::int64_t slots = (a.T + a.block - 1) / a.block;
  SIEVE_GRID_STRIDE(x, a.B * a.Hk * slots * a.D) {
    const std::int64_t d = x % a.D, slot = x / a.D % slots, head = x / a.D / slots;
    const std::int64_t end = last_key(a, head / a.Hk, slot);
    if (end < 0) continue;
    const K* key = static_cast<const K*>(a.k_BHTD) + head * a.k_stride + (end - a.block + 1) * a.D + d;
    double sum = 0;
    for (std::int64_t j = 0; j < a.block; ++j) sum += static_cast<double>(static_cast<float>(key[j * a.D]));
    a.means_BHSD[x] = static_cast<float>(sum / static_cast<double>(a.block));
  }
}

// Lists in at most `bytes` of shared memory; false if they do not fit.
template <int kQ>
bool start_if_it_fits(const ChooseArgs& a, ChooseLaunch how, std::int64_t candidates, std::int64_t bytes,
                      const Stream& stream) {
  const std::int64_t heads = a.weights_BHN != nullptr ? a.H : 1, Dp = (a.D + 7) / 8 * 8;
  const std::int64_t fixed = 4 * kQ * (kChunk + heads * (Dp + 1));
  how.room = room_of_list(bytes - fixed, kQ, how.most, candidates, kPiece + kSlack);
  if (how.room == 0) return false;
  const auto shared = static_cast<std::size_t>(fixed + 8 * kQ * how.room);
  const std::int64_t tiles = (a.N + kQ - 1) / kQ;
  if (a.weights_BHN != nullptr) start("choose", choose<kQ, true>, a.B * tiles, kThreads, shared, stream, a, how);
  else start("choose", choose<kQ, false>, a.B * a.H * tiles, kThreads, shared, stream, a, how);
  return true;
}

// Two blocks a multiprocessor where that leaves lists long enough; what a block asks for comes on top of 1 KiB.
bool choose_by_arithmetic(const ChooseArgs& a, const ChooseLaunch& how, std::int64_t candidates, const Stream& stream) {
  const std::int64_t most = most_shared_bytes();
  return start_if_it_fits<kWide>(a, how, candidates, most / 2 - 1024, stream) ||
         start_if_it_fits<kWide>(a, how, candidates, most, stream) ||
         start_if_it_fits<kNarrow>(a, how, candidates, most, stream);
}

}  // namespace

void run(const ChooseArgs& a, Stream stream) {
  if (a.B * a.N * a.size == 0) return;
  require(a.dtype != DType::f64, "choose", "has no fp64 kernel on a GPU");
  ChooseLaunch how{a.k_BHTD, a.k_stride, static_cast<int>(a.block > 0 ? a.size - 1 : a.size), 0, false, a.dtype};
  std::int64_t candidates = a.T;
  if (a.block > 0) {
    candidates = (a.T + a.block - 1) / a.block;
    const std::int64_t threads = a.B * a.Hk * candidates * a.D;
    if (a.dtype == DType::bf16) start("block means", block_means<bf16>, blocks_for(threads), kThreads, 0, stream, a);
    else start("block means", block_means<float>, blocks_for(threads), kThreads, 0, stream, a);
    how.candidates = a.means_BHSD, how.candidate_head = candidates * a.D;
  }
  const bool aligned = reinterpret_cast<std::uintptr_t>(how.candidates) % 16 == 0;
  how.wide = aligned && a.D % 8 == 0 && how.candidate_head % 8 == 0;
  const bool products = a.block == 0 && a.dtype == DType::bf16;
  if (products ? choose_by_tensor_cores(a, how, stream) : choose_by_arithmetic(a, how, candidates, stream)) return;
  fail(Exit::config, "attention", a.size, " chosen keys a query with ", a.H, " heads of ", a.D,
       " features do not fit a GPU's shared memory: take fewer, or device.type=cpu");
}

}  // namespace sieve::cuda
