// One token in one launch. Every block has its rows of each matrix: the copy engine brings their weights into its
// shared memory nearly a layer ahead, with the attention's rows, and the head's rows go through registers. Four warps
// share a scheduler, so that an instruction all warps execute costs four cycles of a phase: what depends on the model
// alone is worked out by the host, and copies are one thread's business. What a phase waits for are the words of the
// phase before (token_words.cuh): qkv, attention's parts, x behind the attention, the MLP's features, x behind the
// layer. Words are of one layer each, so none is overwritten before the next token.
#include "attention/kernels/cuda/launch.cuh"
#include "nn/kernels/cuda/token_run_choice.cuh"
#include "nn/kernels/cuda/token_run_products.cuh"
#include "tensor/kernels/cuda/dependent.cuh"

namespace sieve::cuda {
namespace {

constexpr int kComing = 3;  // rows of the head that a warp waits for
template <class T>
class TokenRun : public RunProducts<T> {
 public:
  using Base = RunProducts<T>;
  using Base::a, Base::N, Base::kIn, Base::kFew, Base::Base;
  using typename Base::Row, typename Base::Weights;

  __device__ void run() {
    this->begin();
    angles();
    float v[kFew] = {};
    embed(v);
#pragma unroll 1
    for (std::int64_t i = 0; i < a.count; ++i) layer_of(i, v);
    head();
  }

 private:
  using Base::attends, Base::barrier, Base::copies, Base::fill, Base::fill_last, Base::fill_rows, Base::ask_ahead,
      Base::ask_for_head, Base::gain, Base::layer, Base::words, Base::space_, Base::lane_, Base::warp_, Base::tag_,
      Base::position_, Base::x_, Base::between_, Base::in_, Base::normed_, Base::take, Base::multiply, Base::norm,
      Base::own, Base::load_row, Base::dot;
  template <class V>
  __device__ V* at(int bytes) const {
    return Base::template at<V>(bytes);
  }

  // A place is filled anew once the block has met behind its last use, and behind a product, so that no warp waits for
  // the one that asks. v: features of x, where i is 0.
  __device__ void layer_of(std::int64_t i, float (&v)[kFew]) {
    const TokenRunLayer& l = layer(i);
    const bool more = i + 1 < a.count;
    const auto parity = static_cast<std::uint32_t>(i & 1);
    Word *qkv = words(i), *parts = qkv + a.qkv_words, *x1 = parts + a.part_words, *hidden = x1 + a.x_words,
         *x2 = hidden + a.up_words;

    const AttendSpace<T> space = attend_space();
    TokenAttend<T> attend(a, space, position_);
    Weights w;
    if (attends()) attend.prepare(l.attend);
    take(0, parity, w);
    if (i > 0) own(qkv - a.x_words, v);  // the words before are x behind the last layer
    norm(v, x_, gain(0), l.shift1_C != nullptr);
    Row row;
    load_row(normed_, 0, row);
    multiply(0, l.qkv.bias_N != nullptr, w, row, nullptr, false, qkv);
    if (copies() && i > 0) fill(3, i);
    score(l, row);
    if (attends()) {
      attend.finish(l.attend, qkv, parts, tag_, barrier(kOfRows), parity);
      if (copies() && more) fill_rows(i + 1);
    }

    take(1, parity, w);
    read_parts(parts);
    __syncthreads();
    load_row(in_, 1, row);
    multiply(1, l.out.bias_N != nullptr, w, row, x_, false, x1);
    if (copies()) {
      if (more) fill(0, i + 1), ask_ahead(i + 1);
      else fill_last();
    }

    take(2, parity, w);
    own(x1, v);
    norm(v, between_, gain(1), l.shift2_C != nullptr);
    load_row(normed_, 2, row);
    multiply(2, l.up.bias_N != nullptr, w, row, nullptr, !a.swiglu, hidden);
    if (copies() && more) fill(1, i + 1);

    take(3, parity, w);
    if (a.swiglu) read_swiglu(hidden);
    else read_features(hidden, static_cast<int>(a.F), in_);
    __syncthreads();
    load_row(in_, 3, row);
    multiply(3, l.down.bias_N != nullptr, w, row, between_, false, x2);
    if (copies() && more) fill(2, i + 1);
  }

  // The thread's own features of the first x, which every block makes for itself.
  __device__ void embed(float (&v)[kFew]) const {
    const std::int64_t id = *a.id, position = position_, k = static_cast<std::int64_t>(threadIdx.x) * kFew;
    const bool known = id >= 0 && id < a.V;
    if (k < a.C) {
      const auto token = load_pack<kFew>(static_cast<const T*>(a.tokens_VC) + (known ? id : 0) * a.C + k);
      Pack<T, kFew> place{};
      if (a.positions_TC != nullptr)
        place = load_pack<kFew>(static_cast<const T*>(a.positions_TC) + position * a.C + k);
#pragma unroll
      for (int e = 0; e < kFew; ++e) {
        v[e] = to_compute(token.at[e]);
        if (a.positions_TC != nullptr) v[e] = to_compute(to_element<T>(v[e] + to_compute(place.at[e])));
        if (!known) v[e] = std::numeric_limits<float>::quiet_NaN();
      }
    }
  }
  // Of the position; who looks at them synchronises before.
  __device__ void angles() const {
    if (!attends()) return;
    const auto position = static_cast<double>(position_);
    for (std::int64_t r = threadIdx.x; r < a.R; r += kRunThreads) {
      double s = 0, c = 0;
      sincos(position * a.frequency_R[r], &s, &c);
      at<float>(space_.cos)[r] = static_cast<float>(c), at<float>(space_.sin)[r] = static_cast<float>(s);
    }
  }

  // The last warp of the last blocks: a score head each, in the order of the score kernel.
  __device__ void score(const TokenRunLayer& l, const Row& row) const {
    if (warp_ != kRunWarps - 1) return;
#pragma unroll 1
    for (std::int64_t h = a.G - 1 - blockIdx.x; h < l.scores.Hs; h += a.G) {
      float sum = 0;
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const int i = (s * 32 + lane_) * N;
        if (i >= a.C) continue;
        const Pack<float, N> w = load_constant<N>(l.score_w_HC + h * a.C + i);
#pragma unroll
        for (int k = 0; k < N; ++k) sum = fmaf(row[s].get(k), w.at[k], sum);
      }
      sum = warp_sum(sum);
      if (lane_ == 0) push_score(l.scores, 0, h, sum);
    }
  }

  // K features of the phase before; the caller synchronises.
  __device__ void read_features(const Word* from, int K, T* to) const {
    constexpr int kAtOnce = 2, kEach = 2 * kIn;
    const int pairs = K / kEach;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < pairs; i += kRunThreads * kAtOnce) {
      const bool second = i + kRunThreads < pairs;
      const Word* const places[kAtOnce] = {from + 2 * i, from + 2 * (second ? i + kRunThreads : i)};
      std::uint32_t got[kAtOnce][2];
      await<kAtOnce>(places, tag_, got);
      memcpy(to + i * kEach, got[0], 8);
      if (second) memcpy(to + (i + kRunThreads) * kEach, got[1], 8);
    }
  }
  __device__ void read_swiglu(const Word* from) const {
    constexpr int kEach = 2 * kIn;
    const int F = static_cast<int>(a.F), pairs = F / kEach;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < pairs; i += kRunThreads) {
      const Word* const places[2] = {from + 2 * i, from + F / kIn + 2 * i};
      std::uint32_t got[2][2];
      await<2>(places, tag_, got);
      Pack<T, kEach> gate, up, out;
      memcpy(&gate, got[0], 8), memcpy(&up, got[1], 8);
#pragma unroll
      for (int k = 0; k < kEach; ++k)
        out.at[k] = to_element<T>(silu_of<T>(to_compute(gate.at[k])) * to_compute(up.at[k]));
      store_pack<kEach>(in_ + i * kEach, out);
    }
  }

  // The attention's features, the splits of each head joined in their order. The wait is the longest, and all blocks
  // poll: for the splits' maxima and sums alone, a sixteenth of what they want, until those are there.
  __device__ void read_parts(const Word* parts) const {
    constexpr int kAtOnce = 4;
    const int D = static_cast<int>(a.D), pairs = static_cast<int>(a.H) * D / 2, S = static_cast<int>(a.S);
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < pairs; i += kRunThreads) {
      const int head = 2 * i / D, d = 2 * i - head * D;
      const Word* from = parts + head * S * (D + 2);
      float top = kNoLogit, total = 0, out[2] = {};
#pragma unroll 1
      for (int base = 0; base < S; base += kAtOnce) {
        const Word *stats[kAtOnce], *sums[kAtOnce];
#pragma unroll
        for (int s = 0; s < kAtOnce; ++s) {
          const Word* part = from + min(base + s, S - 1) * (D + 2);
          stats[s] = part + D, sums[s] = part + d;
        }
        std::uint32_t stat[kAtOnce][2], sum[kAtOnce][2];
        await<kAtOnce>(const_cast<const Word* const(&)[kAtOnce]>(stats), tag_, stat);
        await<kAtOnce>(const_cast<const Word* const(&)[kAtOnce]>(sums), tag_, sum);
        float high = top;
#pragma unroll
        for (int s = 0; s < kAtOnce; ++s) high = fmaxf(high, __uint_as_float(stat[s][0]));
        const float shrink = power_of_two(top - high);
        total *= shrink, out[0] *= shrink, out[1] *= shrink, top = high;
#pragma unroll
        for (int s = 0; s < kAtOnce; ++s) {
          const float weight = base + s < S ? power_of_two(__uint_as_float(stat[s][0]) - high) : 0.f;
          total = fmaf(__uint_as_float(stat[s][1]), weight, total);
#pragma unroll
          for (int k = 0; k < 2; ++k) out[k] = fmaf(__uint_as_float(sum[s][k]), weight, out[k]);
        }
      }
      const float share = 1.f / total;
      in_[2 * i] = to_element<T>(out[0] * share), in_[2 * i + 1] = to_element<T>(out[1] * share);
    }
  }

  __device__ AttendSpace<T> attend_space() const {
    return {at<T>(space_.raw),       at<float>(space_.query), at<T>(space_.keys),     at<T>(space_.values),
            at<float>(space_.gates), at<float>(space_.tops),  at<float>(space_.sums), at<float>(space_.outs),
            at<float>(space_.cos),   at<float>(space_.sin)};
  }

  // Logits of a row a warp at a time, the next ones on their way; then the choice.
  __device__ void head() {
    const int begin = space_.head.first(blockIdx.x), end = begin + space_.head.count(blockIdx.x);
    int n = begin + warp_;
    if (copies()) ask_for_head(kHeadLayers * space_.head_part, space_.head_more);
    Row coming[kComing], row;
#pragma unroll
    for (int c = 0; c < kComing; ++c) load_head(n + c * kRunWarps, end, coming[c]);
    float v[kFew] = {};
    await_bytes(barrier(0), static_cast<std::uint32_t>(a.count & 1));
    own(words(a.count) - a.x_words, v);
    norm(v, x_, gain(0), a.shift_C != nullptr);
    load_row(normed_, 0, row);
    Best best = no_best();
#pragma unroll 1
    while (n < end) {
#pragma unroll
      for (int c = 0; c < kComing; ++c, n += kRunWarps) {
        float sum = 0;
#pragma unroll
        for (int s = 0; s < kSteps; ++s) dot(coming[c][s], row[s], sum);
        load_head(n + kComing * kRunWarps, end, coming[c]);
        sum = warp_sum(sum);
        if (n >= end) continue;
        if (lane_ == 0) a.logits_V[n] = sum;
        if (n < a.vocab) best = best.joined(best_of(sum, n));
      }
    }
    choose(a, tag_, best);
  }
  __device__ void load_head(int n, int end, Row& out) const {
    const T* from = static_cast<const T*>(a.head_VC) + n * a.C + lane_ * N;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int k = s * 32 * N;
      out[s] = n < end && k + lane_ * N < a.C ? Raw<T>::constant_at(from + k) : Raw<T>::none();
    }
  }
};

template <class T>
__global__ void __launch_bounds__(kRunThreads, 1)
    token_run(const __grid_constant__ TokenRunArgs a, const __grid_constant__ RunSpace space) {
  TokenRun<T>(a, space).run();
}

// All blocks have to be there at once: they wait for each other. Rows of the attention that the shared memory has no
// room for are read from memory.
template <class T>
bool fits(TokenRunArgs& a, const Stream& stream) {
  const int most = attribute_of(stream, cudaDevAttrMaxSharedMemoryPerBlockOptin) - 1024,
            over = RunSpace(a).bytes - most, row = 2 * static_cast<int>(a.D * static_cast<std::int64_t>(sizeof(T))) + 4;
  if (over > 0) a.held = std::max<std::int64_t>(0, a.held - over / row - kRunWarps);
  const int bytes = RunSpace(a).bytes;
  if (bytes > most) return false;
  const auto* kernel = reinterpret_cast<const void*>(token_run<T>);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "token run");
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kRunThreads, static_cast<std::size_t>(bytes)),
        "token run");
  return blocks >= 1;
}

template <class T>
void start(const TokenRunArgs& a, const Stream& stream) {
  const RunSpace space(a);
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(token_run<T>), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             space.bytes),
        "token run");
  cudaLaunchAttribute together{};
  together.id = cudaLaunchAttributeCooperative;
  together.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(a.G));
  config.blockDim = dim3(kRunThreads);
  config.dynamicSmemBytes = static_cast<std::size_t>(space.bytes);
  config.stream = handle_of(stream);
  config.attrs = &together;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, token_run<T>, a, space), "token run");
}

}  // namespace

bool plan_token_run(TokenRunArgs& a, std::int64_t rows, const Stream& stream) {
  if (a.dtype != DType::f32 && a.dtype != DType::bf16) return false;
  if (attribute_of(stream, cudaDevAttrComputeCapabilityMajor) < 9 ||
      attribute_of(stream, cudaDevAttrCooperativeLaunch) == 0)
    return false;
  const std::int64_t pack = a.dtype == DType::bf16 ? 8 : 4, HD = a.H * a.D, lane_row = 32 * pack * kSteps;
  if (a.C % pack != 0 || a.F % pack != 0 || a.D % pack != 0 || a.D > 32 * pack) return false;
  if (a.C > lane_row || HD > lane_row * kRunWarps || a.F > lane_row * kRunWarps) return false;
  a.G = attribute_of(stream, cudaDevAttrMultiProcessorCount);
  if (a.Hkv > a.G || a.count < 1) return false;
  a.group = static_cast<int>(a.H / a.Hkv);
  for (a.lanes_log2 = 0; pack << a.lanes_log2 < a.D;) ++a.lanes_log2;
  const std::int64_t held = (kRunThreads >> a.lanes_log2) * kTwo * 2;
  if (2 * std::max({(a.H + 2 * a.Hkv) * a.D, a.F, a.C}) * (a.G + 1) >= std::int64_t{1} << 32) return false;
  if (rows >= std::int64_t{1} << 28 || a.V >= std::int64_t{1} << 31) return false;
  a.S = std::clamp<std::int64_t>((rows + held - 1) / held, 1, std::min(kMaxSplits, a.G / a.Hkv));
  a.held = std::min<std::int64_t>((rows + a.S - 1) / a.S, kRunThreads);
  const std::int64_t in_word = a.dtype == DType::bf16 ? 2 : 1;
  a.qkv_words = (a.H + 2 * a.Hkv) * a.D / in_word, a.part_words = a.H * a.S * (a.D + 2);
  a.x_words = a.C / in_word, a.up_words = (a.swiglu ? 2 : 1) * a.F / in_word;
  a.layer_words = a.qkv_words + a.part_words + 2 * a.x_words + a.up_words;
  return a.dtype == DType::bf16 ? fits<bf16>(a, stream) : fits<float>(a, stream);
}

void run(const TokenRunArgs& a, Stream stream) {
  if (a.dtype == DType::bf16) start<bf16>(a, stream);
  else start<float>(a, stream);
}

}  // namespace sieve::cuda
