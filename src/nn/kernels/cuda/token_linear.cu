// Products of a few rows with a large matrix: what they cost is reading the matrix. A warp (or a team of them, where
// rows are long) takes an output feature; its first weights are on their way before the kernel waits for its input.
// Every block makes the input anew, which costs less than a launch of its own.
#include <algorithm>

#include "attention/kernels/cuda/decode_step.cuh"
#include "attention/kernels/cuda/launch.cuh"
#include "nn/kernels/cuda/token_activations.cuh"
#include "nn/kernels/token.h"
#include "tensor/kernels/cuda/dependent.cuh"
#include "tensor/kernels/cuda/pack.cuh"

namespace sieve::cuda {
namespace {

constexpr int kWarps = kThreads / 32;
constexpr int kAhead = 4;                        // packs of a lane that are loaded before they are needed
constexpr std::int64_t kMaxRows = 8;             // sequences
constexpr std::int64_t kMaxShared = 160 * 1024;  // bytes, where the device has them

// The norm's gain and shift, in shared memory before the input is there; the caller synchronises.
template <class T>
__device__ void read_gains(const TokenLinearArgs& a, T* gains) {
  constexpr int N = kPack<T>;
  if (a.gain_K == nullptr) return;
  for (int i = static_cast<int>(threadIdx.x) * N; i < a.K; i += kThreads * N) {
    store_pack<N>(gains + i, load_constant<N>(static_cast<const T*>(a.gain_K) + i));
    if (a.shift_K != nullptr) store_pack<N>(gains + a.K + i, load_constant<N>(static_cast<const T*>(a.shift_K) + i));
  }
}

// A warp norms row b of x into `out`: mean, then the deviation about it, as the norm kernels do.
template <class T>
__device__ void norm_row(const TokenLinearArgs& a, int b, const T* gains, T* out) {
  constexpr int N = kPack<T>;
  const int lane = static_cast<int>(threadIdx.x) % 32, K = static_cast<int>(a.K);
  const T* x = static_cast<const T*>(a.x_BK) + b * a.K;
  const bool centred = a.input == TokenInput::layer_norm;
  float sum = 0, squares = 0;
  for (int base = lane * N; base < K; base += kAhead * 32 * N) {
    Pack<T, N> v[kAhead];
#pragma unroll
    for (int s = 0; s < kAhead; ++s) v[s] = base + s * 32 * N < K ? load_pack<N>(x + base + s * 32 * N) : Pack<T, N>{};
#pragma unroll
    for (int s = 0; s < kAhead; ++s) {
      if (base + s * 32 * N < K) store_pack<N>(out + base + s * 32 * N, v[s]);  // a lane reads back its own only
#pragma unroll
      for (int k = 0; k < N; ++k) sum += to_compute(v[s].at[k]);
    }
  }
  const float mean = centred ? warp_sum(sum) / static_cast<float>(K) : 0.f;
  for (int i = lane * N; i < K; i += 32 * N) {
    const Pack<T, N> v = load_pack<N>(out + i);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const float c = to_compute(v.at[k]) - mean;
      squares += c * c;
    }
  }
  const float rstd = 1.f / sqrtf(warp_sum(squares) / static_cast<float>(K) + static_cast<float>(a.eps));
  for (int i = lane * N; i < K; i += 32 * N) {
    Pack<T, N> v = load_pack<N>(out + i), shift{};
    const Pack<T, N> gain = load_pack<N>(gains + i);
    if (a.shift_K != nullptr) shift = load_pack<N>(gains + K + i);
#pragma unroll
    for (int k = 0; k < N; ++k)
      v.at[k] = to_element<T>((to_compute(v.at[k]) - mean) * rstd * to_compute(gain.at[k]) + to_compute(shift.at[k]));
    store_pack<N>(out + i, v);
  }
}

// op(x) of all sequences into shared memory (B, K); the caller synchronises.
template <class T, bool kJoins>
__device__ void read_input(const TokenLinearArgs& a, const T* gains, T* in) {
  constexpr int N = kPack<T>;
  const int B = static_cast<int>(a.B), K = static_cast<int>(a.K), thread = static_cast<int>(threadIdx.x);
  const T* x = static_cast<const T*>(a.x_BK);
  if constexpr (kJoins) {
    const int D = static_cast<int>(a.parts.D);
    for (int i = thread * kMerged; i < B * K; i += kThreads * kMerged) {
      const Pack<float, kMerged> joined = merged(a.parts, i / D, i % D);
#pragma unroll
      for (int k = 0; k < kMerged; ++k) in[i + k] = to_element<T>(joined.at[k]);
    }
  } else if (a.input == TokenInput::layer_norm || a.input == TokenInput::rms_norm) {
    for (int b = thread / 32; b < B; b += kWarps) norm_row<T>(a, b, gains, in + b * K);
  } else if (a.input == TokenInput::plain) {
    for (int i = thread * N; i < B * K; i += kThreads * N) store_pack<N>(in + i, load_pack<N>(x + i));
  } else if (a.input == TokenInput::swiglu) {
    for (int i = thread * N; i < B * K; i += kThreads * N) {
      const T* row = x + i / K * 2 * K + i % K;
      const Pack<T, N> gate = load_pack<N>(row), up = load_pack<N>(row + K);
      Pack<T, N> out;
#pragma unroll
      for (int k = 0; k < N; ++k) out.at[k] = to_element<T>(silu(to_compute(gate.at[k])) * to_compute(up.at[k]));
      store_pack<N>(in + i, out);
    }
  }
}

// The weights of score heads first .. first + kWarps, into the cache.
__device__ inline void prefetch_score_weights(const TokenLinearArgs& a, std::int64_t first) {
  constexpr std::int64_t kLine = 128 / sizeof(float);
  const std::int64_t end = min(first + kWarps, a.scores.Hs) * a.K;
  for (std::int64_t i = first * a.K + threadIdx.x * kLine; i < end; i += kThreads * kLine) prefetch(a.score_w_HK + i);
}

// A warp a score head, in the order of the score kernel: a lane adds its packs in order, a butterfly adds the lanes.
template <class T>
__device__ void score_rows(const TokenLinearArgs& a, const T* in, std::int64_t first) {
  constexpr int N = kPack<T>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t h = first + threadIdx.x / 32;
  if (h >= a.scores.Hs) return;
  for (std::int64_t b = 0; b < a.B; ++b) {
    float sum = 0;
    for (std::int64_t i = lane * N; i < a.K; i += 32 * N) {
      const Pack<T, N> x = load_pack<N>(in + b * a.K + i);
      const Pack<float, N> w = load_constant<N>(a.score_w_HK + h * a.K + i);
#pragma unroll
      for (int k = 0; k < N; ++k) sum = fmaf(to_compute(x.at[k]), w.at[k], sum);
    }
    sum = warp_sum(sum);
    if (lane == 0) push_score(a.scores, b, h, sum);
  }
}

// The packs that a team's lane takes of a weight row: pack (step W + member) 32 + lane.
template <class T>
struct Share {
  int packs, first, stride;
  const T* w;

  __device__ bool holds(int step) const { return first + step * stride < packs; }
  __device__ int at(int step) const { return (first + step * stride) * kPack<T>; }
  __device__ Pack<T, kPack<T>> pack(std::int64_t n, int step) const {
    return load_constant<kPack<T>>(w + n * packs * kPack<T> + at(step));
  }
  // The first kAhead packs of row n, zeros where there are none.
  __device__ void load(std::int64_t n, bool real, Pack<T, kPack<T>> (&out)[kAhead]) const {
#pragma unroll
    for (int s = 0; s < kAhead; ++s) out[s] = real && holds(s) ? pack(n, s) : Pack<T, kPack<T>>{};
  }
};

// A pack of weights times the same features of every sequence.
template <class T, int kRows>
__device__ void multiply(const TokenLinearArgs& a, const Pack<T, kPack<T>>& w, const T* in, float (&sum)[kRows]) {
  constexpr int N = kPack<T>;
#pragma unroll
  for (int b = 0; b < kRows; ++b) {
    if (b >= a.B) continue;
    const Pack<T, N> x = load_pack<N>(in + b * static_cast<int>(a.K));
#pragma unroll
    for (int k = 0; k < N; ++k) sum[b] = fmaf(to_compute(w.at[k]), to_compute(x.at[k]), sum[b]);
  }
}

// What is behind the product of sequence b and feature n. It is read before the product is made, or its way would come
// on top: the bias even before the input is there.
template <class T>
__device__ float bias_of(const TokenLinearArgs& a, bool real, std::int64_t n) {
  return real && a.bias_N != nullptr ? to_compute(static_cast<const T*>(a.bias_N)[n]) : 0.f;
}
template <class T>
__device__ float added(const TokenLinearArgs& a, bool real, std::int64_t b, std::int64_t n) {
  return real && a.add_BN != nullptr ? to_compute(static_cast<const T*>(a.add_BN)[b * a.N + n]) : 0.f;
}
__device__ inline void finish(const TokenLinearArgs& a, std::int64_t b, std::int64_t n, float value, float add) {
  if (a.gelu) value = gelu(value);
  const std::int64_t at = b * a.N + n;
  value += add;
  if (a.y_dtype == DType::f32) static_cast<float*>(a.y_BN)[at] = value;
  else static_cast<bf16*>(a.y_BN)[at] = to_element<bf16>(value);
}

// The lanes' sums, then those of a team's warps in their order: lane b of its first warp has sequence b. All warps of
// the block call it.
template <int kRows>
__device__ float joined(const float (&sum)[kRows], float (&parts)[kWarps][kRows], int team) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  float mine = 0;
#pragma unroll
  for (int b = 0; b < kRows; ++b) {
    const float total = warp_sum(sum[b]);
    if (lane == b) mine = total;
  }
  if (team == 1) return mine;
  if (lane < kRows) parts[warp][lane] = mine;
  __syncthreads();
  if (warp % team == 0 && lane < kRows) {
    for (int w = 1; w < team; ++w) mine += parts[warp + w][lane];
  }
  __syncthreads();
  return mine;
}

// kRows >= B sequences; kJoins: the input is the attention's. Teams of `team` warps; blocks from `blocks` on take score
// heads.
template <class T, int kRows, bool kJoins>
__global__ void __launch_bounds__(kThreads, kJoins || kRows == 4 || sizeof(T) == 4 ? 2 : 3)
    token_linear(const TokenLinearArgs a, int team, int blocks) {
  constexpr int N = kPack<T>;
  __shared__ float parts[kWarps][kRows];
  T *const in = reinterpret_cast<T*>(dynamic_shared()), *const gains = in + a.B * a.K;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  let_next_start();
  if (static_cast<int>(blockIdx.x) >= blocks) {
    const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) - blocks) * kWarps;
    prefetch_score_weights(a, first);
    read_gains<T>(a, gains);
    wait_for_earlier();
    __syncthreads();
    read_input<T, kJoins>(a, gains, in);
    __syncthreads();
    return score_rows<T>(a, in, first);
  }
  const int teams = kWarps / team;
  const Share<T> share{static_cast<int>(a.K) / N, warp % team * 32 + lane, team * 32, static_cast<const T*>(a.w_NK)};
  const std::int64_t stride = static_cast<std::int64_t>(blocks) * teams;
  std::int64_t n = static_cast<std::int64_t>(blockIdx.x) * teams + warp / team;
  Pack<T, N> now[kAhead], next[kAhead];
  const bool writes = warp % team == 0 && lane < a.B;
  share.load(n, n < a.N, now);
  float bias = bias_of<T>(a, writes && n < a.N, n);
  read_gains<T>(a, gains);
  wait_for_earlier();
  float add = added<T>(a, writes && n < a.N, lane, n);
  __syncthreads();
  read_input<T, kJoins>(a, gains, in);
  __syncthreads();
  // All warps of a block go round equally often: they meet where teams join.
  for (std::int64_t base = static_cast<std::int64_t>(blockIdx.x) * teams; base < a.N; base += stride, n += stride) {
    const bool more = n + stride < a.N;
    share.load(n + stride, more, next);
    const float next_bias = bias_of<T>(a, writes && more, n + stride),
                next_add = added<T>(a, writes && more, lane, n + stride);
    float sum[kRows] = {};
#pragma unroll
    for (int s = 0; s < kAhead; ++s) {
      if (!share.holds(s)) continue;
      multiply<T>(a, now[s], in + share.at(s), sum);
    }
    if (n < a.N) {
      for (int s = kAhead; share.holds(s); ++s) multiply<T>(a, share.pack(n, s), in + share.at(s), sum);
    }
    const float mine = joined<kRows>(sum, parts, team);
    if (writes && n < a.N) finish(a, lane, n, mine + bias, add);
    bias = next_bias, add = next_add;
#pragma unroll
    for (int s = 0; s < kAhead; ++s) now[s] = next[s];
  }
}

// The input, gain and shift.
std::size_t shared_bytes(std::int64_t B, std::int64_t K, std::size_t element) {
  return static_cast<std::size_t>((B + 2) * K) * element;
}

// The fewest warps a feature whose packs are all loaded ahead.
template <class T>
int team_of(std::int64_t K) {
  const std::int64_t packs = K / kPack<T>;
  int team = 1;
  while (team < kWarps && packs > std::int64_t{32} * kAhead * team) team *= 2;
  return team;
}

template <class T, int kRows, bool kJoins>
void start_rows(const TokenLinearArgs& a, const Stream& stream) {
  const int team = team_of<T>(a.K), teams = kWarps / team;
  const std::int64_t most = 4 * attribute_of(stream, cudaDevAttrMultiProcessorCount);
  const auto blocks = static_cast<int>(std::min((a.N + teams - 1) / teams, most));
  const std::int64_t score_blocks = (a.scores.Hs + kWarps - 1) / kWarps;
  start_dependent("token product", token_linear<T, kRows, kJoins>, dim3(static_cast<unsigned>(blocks + score_blocks)),
                  kThreads, shared_bytes(a.B, a.K, sizeof(T)), true, stream, a, team, blocks);
}

template <class T, bool kJoins>
void start_input(const TokenLinearArgs& a, const Stream& stream) {
  if (a.B == 1) start_rows<T, 1, kJoins>(a, stream);
  else if (a.B == 2) start_rows<T, 2, kJoins>(a, stream);
  else if (a.B <= 4) start_rows<T, 4, kJoins>(a, stream);
  else start_rows<T, 8, kJoins>(a, stream);
}
template <class T>
void start(const TokenLinearArgs& a, const Stream& stream) {
  if (a.input == TokenInput::attention) start_input<T, true>(a, stream);
  else start_input<T, false>(a, stream);
}

}  // namespace

bool takes_token_product(std::int64_t B, std::int64_t K, DType dtype) {
  if (dtype != DType::f32 && dtype != DType::bf16) return false;
  const auto bytes = static_cast<std::int64_t>(size_of(dtype));
  return B >= 1 && B <= kMaxRows && K >= 1 && K * bytes % 16 == 0 &&
         (B + 2) * K * bytes <= std::min(kMaxShared, most_shared_bytes());
}

void run(const TokenLinearArgs& a, Stream stream) {
  require(takes_token_product(a.B, a.K, a.dtype), "token product", a.B, " rows of ", a.K, " features");
  if (a.dtype == DType::bf16) start<bf16>(a, stream);
  else start<float>(a, stream);
}

}  // namespace sieve::cuda
