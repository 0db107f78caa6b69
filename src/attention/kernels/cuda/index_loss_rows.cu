// The indexer's loss and its gradients, query by query and key by key, in fp32: for choices so small that tiles would
// be nearly empty. A block of threads walks over its piece of a row and adds what the index keys get to a sum of its
// own, so that no atomics are needed and the order of every sum is fixed.
#include <algorithm>

#include "attention/kernels/cuda/index_tiles.cuh"
#include "attention/kernels/cuda/launch.cuh"
#include "attention/kernels/pattern.h"
#include "tensor/kernels/cuda/block.cuh"

namespace sieve::cuda {
namespace {

// q in shared memory, both aligned to 16 bytes where n is a multiple of 4.
__device__ inline float dot(const float* row, const float* q, std::int64_t n) {
  float sum = 0;
  if (n % 4 == 0) {
    for (std::int64_t d = 0; d < n; d += 4) {
      const float4 x = *reinterpret_cast<const float4*>(row + d), y = *reinterpret_cast<const float4*>(q + d);
      sum = fmaf(x.x, y.x, fmaf(x.y, y.y, fmaf(x.z, y.z, fmaf(x.w, y.w, sum))));
    }
  } else {
    for (std::int64_t d = 0; d < n; ++d) sum = fmaf(row[d], q[d], sum);
  }
  return sum;
}

constexpr std::int64_t kStaticBytes = 2048;  // more than the reductions take beside it

struct Shared {
  float *index_q, *q, *weights, *score, *target, *pair, *part;
  std::int32_t* keys;
};

__host__ __device__ inline std::int64_t rounded(std::int64_t n) { return (n + 3) / 4 * 4; }
inline std::size_t shared_bytes(const IndexLossArgs& a) {
  return static_cast<std::size_t>(
      4 * (rounded(a.Hi * a.Di) + rounded(a.H * a.D) + rounded(a.Hi) + 4 * rounded(a.M) + kThreads));
}
__device__ Shared shared_of(const IndexLossArgs& a) {
  Shared s;
  s.index_q = reinterpret_cast<float*>(dynamic_shared());
  s.q = s.index_q + rounded(a.Hi * a.Di);
  s.weights = s.q + rounded(a.H * a.D);
  s.score = s.weights + rounded(a.Hi);
  s.target = s.score + rounded(a.M);
  s.pair = s.target + rounded(a.M);
  s.part = s.pair + rounded(a.M);
  s.keys = reinterpret_cast<std::int32_t*>(s.part + kThreads);
  return s;
}

__device__ inline const float* real(const void* x) { return static_cast<const float*>(x); }

// The query's rows and list; returns how many keys it chose. Ends with all threads together.
__device__ int load_query(const IndexLossArgs& a, const Shared& s, std::int64_t b, std::int64_t i) {
  int mine = 0;
  for (std::int64_t x = threadIdx.x; x < a.M; x += kThreads) {
    s.keys[x] = a.choice_BTM[(b * a.T + i) * a.M + x];
    mine += s.keys[x] != kNoChoice;
  }
  for (std::int64_t x = threadIdx.x; x < a.Hi * a.Di; x += kThreads)
    s.index_q[x] = real(a.index_q_BHTD)[((b * a.Hi + x / a.Di) * a.T + i) * a.Di + x % a.Di];
  for (std::int64_t x = threadIdx.x; x < a.H * a.D; x += kThreads)
    s.q[x] = real(a.q_BHTD)[((b * a.H + x / a.D) * a.T + i) * a.D + x % a.D];
  for (std::int64_t x = threadIdx.x; x < a.Hi; x += kThreads)
    s.weights[x] = real(a.weights_BHT)[(b * a.Hi + x) * a.T + i];
  return block_reduce(mine);
}

// score = I, target = p, of the keys that the calling thread owns (every kThreads-th).
__device__ void score_keys(const IndexLossArgs& a, const Shared& s, std::int64_t b, int n) {
  for (int j = threadIdx.x; j < n; j += kThreads) {
    const float* row = real(a.index_k_BTD) + (b * a.T + s.keys[j]) * a.Di;
    float index = 0;
    for (std::int64_t h = 0; h < a.Hi; ++h) {
      const float x = dot(row, s.index_q + h * a.Di, a.Di);
      index += s.weights[h] * (x < 0 ? 0.f : x);
    }
    s.score[j] = index, s.target[j] = 0;
  }
  for (std::int64_t h = 0; h < a.H; ++h) {
    const float* keys = real(a.k_BHTD) + (b * a.Hkv + h / (a.H / a.Hkv)) * a.T * a.D;
    float top = -INFINITY, sum = 0;
    for (int j = threadIdx.x; j < n; j += kThreads) {
      const float x = static_cast<float>(a.scale) * dot(keys + s.keys[j] * a.D, s.q + h * a.D, a.D);
      s.pair[j] = x, top = x > top ? x : top;
    }
    top = block_reduce<float, true>(top);
    for (int j = threadIdx.x; j < n; j += kThreads) sum += s.pair[j] = expf(s.pair[j] - top);
    sum = block_reduce(sum) * static_cast<float>(a.H);
    for (int j = threadIdx.x; j < n; j += kThreads) s.target[j] += s.pair[j] / sum;
  }
}

// The loss of the query; score becomes r - p.
__device__ double divergence(const Shared& s, int n) {
  float top = -INFINITY, sum = 0, loss = 0;
  for (int j = threadIdx.x; j < n; j += kThreads) top = s.score[j] > top ? s.score[j] : top;
  top = block_reduce<float, true>(top);
  for (int j = threadIdx.x; j < n; j += kThreads) sum += expf(s.score[j] - top);
  sum = block_reduce(sum);
  const float log_sum = top + logf(sum);
  for (int j = threadIdx.x; j < n; j += kThreads) {
    const float p = s.target[j], index = s.score[j];
    if (!(p <= 0)) loss += p * (logf(p) - (index - log_sum));  // NaN is passed on
    s.score[j] = expf(index - top) / sum - p;
  }
  return block_reduce(static_cast<double>(loss));
}

// Of index head h: dq, dweights, and what its keys get. Threads (group, d): keys group, group + groups, ...
__device__ void gradient(const IndexLossArgs& a, const Shared& s, std::int64_t b, std::int64_t i, std::int64_t h, int n,
                         float* sums) {
  const std::int64_t at = (b * a.Hi + h) * a.T + i;
  float weight = 0;
  for (int j = threadIdx.x; j < n; j += kThreads) {
    const float x = dot(real(a.index_k_BTD) + (b * a.T + s.keys[j]) * a.Di, s.index_q + h * a.Di, a.Di);
    weight += x > 0 ? s.score[j] * x : 0.f;
    s.pair[j] = x > 0 ? s.score[j] * s.weights[h] : 0.f;
  }
  weight = block_reduce(weight);  // all threads have written their pairs
  if (threadIdx.x == 0) static_cast<float*>(a.dweights_BHT)[at] = weight;
  const int width = static_cast<int>((a.Di + 31) / 32 * 32), groups = kThreads / width, group = threadIdx.x / width,
            d = threadIdx.x % width;
  float sum = 0;
  if (group < groups && d < a.Di) {
    const float q = s.index_q[h * a.Di + d];
    for (int j = group; j < n; j += groups) {
      const float factor = s.pair[j];
      if (factor == 0) continue;
      sum += factor * real(a.index_k_BTD)[(b * a.T + s.keys[j]) * a.Di + d];
      sums[s.keys[j] * a.Di + d] += factor * q;
    }
  }
  s.part[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x < a.Di) {
    for (int g = 1; g < groups; ++g) sum += s.part[g * width + d];
    static_cast<float*>(a.dq_BHTD)[at * a.Di + d] = sum;
  }
  __syncthreads();  // before the next head's pairs and parts
}

__global__ void __launch_bounds__(kThreads) index_loss(const IndexLossArgs a, std::int64_t pieces) {
  const Shared s = shared_of(a);
  const std::int64_t b = blockIdx.x / pieces, piece = blockIdx.x % pieces;
  float* sums = static_cast<float*>(a.workspace) + blockIdx.x * a.T * a.Di;
  for (std::int64_t i = a.T * piece / pieces; i < a.T * (piece + 1) / pieces; ++i) {
    const int n = load_query(a, s, b, i);
    score_keys(a, s, b, n);
    const double loss = n == 0 ? 0 : divergence(s, n);
    if (threadIdx.x == 0) a.loss_BT[b * a.T + i] = loss;
    for (std::int64_t h = 0; a.dq_BHTD != nullptr && h < a.Hi; ++h) gradient(a, s, b, i, h, n, sums);
    __syncthreads();  // before the next query's rows
  }
}

__global__ void __launch_bounds__(kThreads) add_pieces(const IndexLossArgs a, std::int64_t pieces) {
  const std::int64_t row = a.T * a.Di;
  const auto* sums = static_cast<const float*>(a.workspace);
  SIEVE_GRID_STRIDE(x, a.B * row) {
    float sum = 0;
    for (std::int64_t p = 0; p < pieces; ++p) sum += sums[(x / row * pieces + p) * row + x % row];
    static_cast<float*>(a.dk_BTD)[x] = sum;
  }
}

}  // namespace

// About a block of threads a multiprocessor. Not the number of these: pieces are part of the last bits.
std::int64_t index_loss_pieces(const IndexLossArgs& a) {
  return std::clamp<std::int64_t>(128 / std::max<std::int64_t>(1, a.B), 1, std::max<std::int64_t>(1, a.T));
}

void index_loss_by_rows(const IndexLossArgs& a, Stream stream) {
  require(a.dtype == DType::f32, "index_loss", "a GPU computes it in fp32 where few keys are chosen");
  const std::size_t shared = shared_bytes(a);
  if (static_cast<std::int64_t>(shared) > most_shared_bytes() - kStaticBytes || a.Di > kThreads)
    fail(Exit::config, "attention", a.M, " chosen keys a query of ", a.T, " and an index_dim of ", a.Di,
         " are not what a GPU's kernel of the indexer's loss takes: choose more keys, take a smaller index_dim, or "
         "device.type=cpu");
  const std::int64_t pieces = index_loss_pieces(a);
  if (a.dq_BHTD != nullptr) {
    check(cudaMemsetAsync(a.workspace, 0, static_cast<std::size_t>(a.B * pieces * a.T * a.Di) * sizeof(float),
                          handle_of(stream)),
          "index loss");
  }
  start("index loss", index_loss, a.B * pieces, kThreads, shared, stream, a, pieces);
  if (a.dq_BHTD != nullptr)
    start("index keys' gradient", add_pieces, blocks_for(a.B * a.T * a.Di), kThreads, 0, stream, a, pieces);
}

}  // namespace sieve::cuda
