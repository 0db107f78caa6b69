// One token in one launch. Every block has its rows of each matrix: their weights come into its shared memory nearly a
// layer ahead, every lane copies what it will multiply itself, and the head's rows go through registers. What a phase
// waits for are the words of the phase before (token_words.cuh): qkv, attention's parts, x behind the attention, the
// MLP's features, x behind the layer. Words are of one layer each, so none is overwritten before the next token.
#include "attention/kernels/cuda/launch.cuh"
#include "nn/kernels/cuda/token_run_choice.cuh"
#include "nn/kernels/cuda/token_run_space.cuh"

namespace sieve::cuda {
namespace {

constexpr int kComing = 3;                                   // rows of the head that a warp waits for
constexpr std::int64_t kHeadAhead = std::int64_t{24} << 20;  // bytes of the head asked for before it is its turn
constexpr std::int64_t kHeadLayers = 3;                      // in so many last layers

template <class T>
class TokenRun {
 public:
  static constexpr int N = kPack<T>, kIn = kPerWord<T>, kFew = 2 * kIn;
  using Row = Raw<T>[kSteps];

  __device__ TokenRun(const TokenRunArgs& args, const RunSpace& space)
      : a(args), space_(space), lane_(static_cast<int>(threadIdx.x) % 32), warp_(static_cast<int>(threadIdx.x) / 32) {
    tag_ = *a.epoch + 1;
    x_ = at<T>(space_.x), between_ = at<T>(space_.between), in_ = at<T>(space_.in), normed_ = at<T>(space_.normed);
  }

  __device__ void run() {
    copy_layers();
    __syncthreads();
    fill(0, layer(0).qkv, layer(0).gain1_C, layer(0).shift1_C);
    fill(1, layer(0).out, nullptr, nullptr);
    fill(2, layer(0).up, layer(0).gain2_C, layer(0).shift2_C);
    ask_ahead(0);
    angles();
    for (std::int64_t i = 0; i < a.count; ++i) layer_of(i);
    head();
  }

 private:
  template <class V>
  __device__ V* at(int bytes) const {
    return reinterpret_cast<V*>(dynamic_shared() + bytes);
  }
  __device__ const TokenRunLayer& layer(std::int64_t i) const { return at<TokenRunLayer>(space_.layers)[i]; }
  __device__ const T* gain(int which) const { return at<T>(space_.gains[which]); }
  __device__ Word* words(std::int64_t i) const { return a.words + i * a.layer_words; }
  __device__ bool attends() const { return blockIdx.x < a.Hkv * a.S; }

  __device__ void copy_layers() const {
    static_assert(sizeof(TokenRunLayer) % 8 == 0);
    const auto* from = reinterpret_cast<const std::uint64_t*>(a.layers);
    auto* to = at<std::uint64_t>(space_.layers);
    const auto n = static_cast<int>(a.count * static_cast<std::int64_t>(sizeof(TokenRunLayer) / 8));
    for (int i = static_cast<int>(threadIdx.x); i < n; i += kRunThreads) to[i] = from[i];
  }

  __device__ void layer_of(std::int64_t i) {
    const TokenRunLayer& l = layer(i);
    const bool more = i + 1 < a.count;
    Word *qkv = words(i), *parts = qkv + a.qkv_words, *x1 = parts + a.part_words, *hidden = x1 + a.x_words,
         *x2 = hidden + a.up_words;

    TokenAttend<T> attend(a);
    if (attends()) attend.prepare(l.attend, blockIdx.x);
    float v[kFew] = {};
    if (i > 0) own(qkv - a.x_words, v);  // the words before are x behind the last layer
    else embed(v);
    norm(v, x_, gain(0), l.shift1_C != nullptr ? gain(0) + a.C : nullptr);
    Row row;
    load_row(normed_, a.C, row);
    multiply(0, l.qkv, row, nullptr, false, qkv);
    score(l, row);
    fill(3, l.down, nullptr, nullptr);
    if (attends()) attend.finish(l.attend, qkv, parts, tag_, attend_space());

    read_parts(parts);
    await_copies<2>();
    __syncthreads();
    load_row(in_, l.out.K, row);
    multiply(1, l.out, row, x_, false, x1);
    if (more) fill(0, layer(i + 1).qkv, layer(i + 1).gain1_C, layer(i + 1).shift1_C), ask_ahead(i + 1);
    else end_copies();

    own(x1, v);
    norm(v, between_, gain(1), l.shift2_C != nullptr ? gain(1) + a.C : nullptr);
    load_row(normed_, a.C, row);
    multiply(2, l.up, row, nullptr, !a.swiglu, hidden);
    if (more) fill(1, layer(i + 1).out, nullptr, nullptr);
    else end_copies();

    if (a.swiglu) read_swiglu(hidden);
    else read_features(hidden, a.F, in_);
    await_copies<2>();
    __syncthreads();
    load_row(in_, l.down.K, row);
    multiply(3, l.down, row, between_, false, x2);
    if (more) fill(2, layer(i + 1).up, layer(i + 1).gain2_C, layer(i + 1).shift2_C);
    else end_copies();
  }

  // The thread's own features of the first x, which every block makes for itself.
  __device__ void embed(float (&v)[kFew]) const {
    const std::int64_t id = *a.id, position = *a.position, k = static_cast<std::int64_t>(threadIdx.x) * kFew;
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
    const auto position = static_cast<double>(*a.position);
    for (std::int64_t r = threadIdx.x; r < a.R; r += kRunThreads) {
      double s = 0, c = 0;
      sincos(position * a.frequency_R[r], &s, &c);
      at<float>(space_.cos)[r] = static_cast<float>(c), at<float>(space_.sin)[r] = static_cast<float>(s);
    }
  }

  // The block's rows of a product, in units of a word.
  struct Units {
    std::int64_t first;
    int count;
  };
  __device__ Units units_of(const TokenProduct& p) const {
    const auto all = static_cast<std::uint32_t>(p.N / kIn), b = blockIdx.x, G = gridDim.x, first = all * b / G;
    return {first, static_cast<int>(all * (b + 1) / G - first)};
  }

  // Weights, biases and norm of a product on their way to place `which`: a group of copies.
  __device__ void fill(int which, const TokenProduct& p, const void* gain, const void* shift) const {
    const int team = run_team<T>(p.K), teams = kRunWarps / team, member = warp_ % team, K = static_cast<int>(p.K);
    const Units units = units_of(p);
    T *weights = at<T>(space_.weights[which]), *bias = at<T>(space_.bias[which]);
#pragma unroll 1
    for (int j = warp_ / team; j < units.count; j += teams) {
      const std::int64_t n = (units.first + j) * kIn;
#pragma unroll
      for (int r = 0; r < kIn; ++r) {
        const T* from = static_cast<const T*>(p.w_NK) + (n + r) * p.K;
        for (int k = (member * 32 + lane_) * N; k < K; k += team * 32 * N)
          copy_beside<16>(weights + (j * kIn + r) * K + k, from + k);
      }
      if (p.bias_N != nullptr && member == 0 && lane_ == 0)
        copy_beside<4>(bias + j * kIn, static_cast<const T*>(p.bias_N) + n);
    }
    if (gain != nullptr) {
      T* gains = at<T>(space_.gains[which / 2]);
      for (int k = static_cast<int>(threadIdx.x) * N; k < a.C; k += kRunThreads * N) {
        copy_beside<16>(gains + k, static_cast<const T*>(gain) + k);
        if (shift != nullptr) copy_beside<16>(gains + a.C + k, static_cast<const T*>(shift) + k);
      }
    }
    end_copies();
  }

  // What later phases read from memory, into the second cache: rows of the attention, score weights, the head.
  __device__ void ask_ahead(std::int64_t i) const {
    const TokenRunLayer& l = layer(i);
    if (attends()) prefetch_rows<T>(a, l.attend, blockIdx.x);
    for (std::int64_t h = a.G - 1 - blockIdx.x; h < l.scores.Hs; h += a.G)
      for (std::int64_t k = threadIdx.x * 32; k < a.C; k += kRunThreads * 32) prefetch(l.score_w_HC + h * a.C + k);
    const std::int64_t nth = i - (a.count - kHeadLayers);
    if (nth < 0) return;
    const std::int64_t mine = a.V * (blockIdx.x + 1) / a.G - a.V * blockIdx.x / a.G,
                       row = a.C * static_cast<std::int64_t>(sizeof(T)),
                       each = min(mine * row / kHeadLayers, kHeadAhead / kHeadLayers / a.G) / 128 * 128;
    const char* from = static_cast<const char*>(a.head_VC) + a.V * blockIdx.x / a.G * row + nth * each;
    for (std::int64_t k = threadIdx.x * 128; k < each; k += kRunThreads * 128) prefetch(from + k);
  }

  // The packs of a row that this lane multiplies.
  __device__ void load_row(const T* from, std::int64_t K, Row& row) const {
    const int team = run_team<T>(K), member = warp_ % team;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int k = ((s * team + member) * 32 + lane_) * N;
      row[s] = k < K ? Raw<T>::at(from + k) : Raw<T>::none();
    }
  }

  // x into shared memory for who adds to it, and its norm for who multiplies it; v: the thread's own features. Sums are
  // taken about the mean of the norm before, so that their squares hold no large constant.
  __device__ void norm(const float (&v)[kFew], T* x, const T* gain, const T* shift) {
    const int C = static_cast<int>(a.C), k = static_cast<int>(threadIdx.x) * kFew;
    float *stats = at<float>(space_.stats), sum = 0, squares = 0;
    if (warp_ * 32 * kFew < C) {
      Pack<T, kFew> kept;
#pragma unroll
      for (int e = 0; e < kFew; ++e) {
        const float c = k < C ? v[e] - mean_ : 0.f;
        sum += c, squares = fmaf(c, c, squares);
        kept.at[e] = to_element<T>(v[e]);
      }
      if (k < C) store_pack<kFew>(x + k, kept);
#pragma unroll
      for (int offset = 16; offset > 0; offset >>= 1) {
        sum += __shfl_xor_sync(0xffffffffu, sum, offset);
        squares += __shfl_xor_sync(0xffffffffu, squares, offset);
      }
      if (lane_ == 0) stats[2 * warp_] = sum, stats[2 * warp_ + 1] = squares;
    }
    await_copies<2>();
    __syncthreads();
    if (k < C) {
      sum = squares = 0;
      for (int w = 0; w * 32 * kFew < C; ++w) sum += stats[2 * w], squares += stats[2 * w + 1];
      float variance = squares / static_cast<float>(C);
      if (shift != nullptr) {
        const float moved = sum / static_cast<float>(C);
        mean_ += moved, variance = fmaxf(variance - moved * moved, 0.f);
      }
      const float rstd = 1.f / sqrtf(variance + static_cast<float>(a.eps));
      const Pack<T, kFew> g = load_pack<kFew>(gain + k), b = shift != nullptr ? load_pack<kFew>(shift + k) : g;
      Pack<T, kFew> out;
#pragma unroll
      for (int e = 0; e < kFew; ++e)
        out.at[e] =
            to_element<T>((v[e] - mean_) * rstd * to_compute(g.at[e]) + (shift != nullptr ? to_compute(b.at[e]) : 0.f));
      store_pack<kFew>(normed_ + k, out);
    }
    __syncthreads();
  }
  // The thread's own features of what the phase before left.
  __device__ void own(const Word* from, float (&v)[kFew]) const {
    if (static_cast<int>(threadIdx.x) * kFew >= a.C) return;
    const Word* const places[1] = {from + 2 * threadIdx.x};
    std::uint32_t got[1][2];
    await<1>(places, tag_, got);
    Pack<T, kFew> all;
    memcpy(&all, got[0], 8);
#pragma unroll
    for (int e = 0; e < kFew; ++e) v[e] = to_compute(all.at[e]);
  }

  __device__ static void dot(const Raw<T>& w, const Raw<T>& x, float& sum) {
#pragma unroll
    for (int k = 0; k < N; ++k) sum = fmaf(w.get(k), x.get(k), sum);
  }

  // The block's rows of a product to words: + bias, GELU, + what stood there.
  __device__ void multiply(int which, const TokenProduct& p, const Row& row, const T* add, bool gelus, Word* to) {
    const int team = run_team<T>(p.K), teams = kRunWarps / team, member = warp_ % team, K = static_cast<int>(p.K);
    const Units units = units_of(p);
    const T* weights = at<T>(space_.weights[which]);
    float* parts = at<float>(space_.parts);
#pragma unroll 1
    for (int base = 0; base < units.count; base += teams) {
      const int j = base + warp_ / team;
      float sum[kIn] = {};
      if (j < units.count) {
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          const int k = ((s * team + member) * 32 + lane_) * N;
          if (k >= K) continue;
#pragma unroll
          for (int r = 0; r < kIn; ++r) dot(Raw<T>::at(weights + (j * kIn + r) * K + k), row[s], sum[r]);
        }
      }
#pragma unroll
      for (int r = 0; r < kIn; ++r) sum[r] = warp_sum(sum[r]);
      if (team > 1) {
#pragma unroll
        for (int r = 0; r < kIn; ++r)
          if (lane_ == 0) parts[warp_ * kIn + r] = sum[r];
        __syncthreads();
        if (member == 0) {
          for (int w = 1; w < team; ++w)
#pragma unroll
            for (int r = 0; r < kIn; ++r) sum[r] += parts[(warp_ + w) * kIn + r];
        }
        __syncthreads();
      }
      if (j < units.count && member == 0 && lane_ == 0) finish(which, p, units.first + j, j, sum, add, gelus, to);
    }
  }

  __device__ void finish(int which, const TokenProduct& p, std::int64_t unit, int j, const float (&sum)[kIn],
                         const T* add, bool gelus, Word* to) const {
    const T* bias = at<T>(space_.bias[which]);
    T out[kIn];
#pragma unroll
    for (int r = 0; r < kIn; ++r) {
      float value = sum[r] + (p.bias_N != nullptr ? to_compute(bias[j * kIn + r]) : 0.f);
      if (gelus) value = gelu(value);
      if (add != nullptr) value += to_compute(add[unit * kIn + r]);
      out[r] = to_element<T>(value);
    }
    send(to + unit, payload_of<T>(out), tag_);
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
  __device__ void read_features(const Word* from, std::int64_t K, T* to) const {
    constexpr int kAtOnce = 2, kEach = 2 * kIn;
    const int pairs = static_cast<int>(K) / kEach;
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
    const int pairs = static_cast<int>(a.F) / kEach;
    for (int i = static_cast<int>(threadIdx.x); i < pairs; i += kRunThreads) {
      const Word* const places[2] = {from + 2 * i, from + a.F / kIn + 2 * i};
      std::uint32_t got[2][2];
      await<2>(places, tag_, got);
      Pack<T, kEach> gate, up, out;
      memcpy(&gate, got[0], 8), memcpy(&up, got[1], 8);
#pragma unroll
      for (int k = 0; k < kEach; ++k) out.at[k] = to_element<T>(silu(to_compute(gate.at[k])) * to_compute(up.at[k]));
      store_pack<kEach>(in_ + i * kEach, out);
    }
  }

  // The attention's features, the splits of each head joined in their order.
  __device__ void read_parts(const Word* parts) const {
    const int D = static_cast<int>(a.D), pairs = static_cast<int>(a.H) * D / 2, S = static_cast<int>(a.S);
    for (int i = static_cast<int>(threadIdx.x); i < pairs; i += kRunThreads) {
      const Word* head = parts + static_cast<std::int64_t>(2 * i / D) * S * (D + 2);
      const int d = 2 * i % D;
      float top = kNoLogit, total = 0, out[2] = {};
      for (int base = 0; base < S; base += 4) {
        const Word* places[8];
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          const Word* part = head + static_cast<std::int64_t>(min(base + s, S - 1)) * (D + 2);
          places[s] = part + d, places[4 + s] = part + D;
        }
        std::uint32_t got[8][2];
        await<8>(const_cast<const Word* const(&)[8]>(places), tag_, got);
        float high = top;
#pragma unroll
        for (int s = 0; s < 4; ++s) high = fmaxf(high, __uint_as_float(got[4 + s][0]));
        const float shrink = expf(top - high);
        total *= shrink, out[0] *= shrink, out[1] *= shrink, top = high;
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          const float weight = base + s < S ? expf(__uint_as_float(got[4 + s][0]) - high) : 0.f;
          total = fmaf(__uint_as_float(got[4 + s][1]), weight, total);
#pragma unroll
          for (int k = 0; k < 2; ++k) out[k] = fmaf(__uint_as_float(got[s][k]), weight, out[k]);
        }
      }
      in_[2 * i] = to_element<T>(out[0] / total), in_[2 * i + 1] = to_element<T>(out[1] / total);
    }
  }

  __device__ AttendSpace<T> attend_space() const {
    return {at<T>(space_.raw),      at<T>(space_.moved),   at<float>(space_.tops), at<float>(space_.sums),
            at<float>(space_.outs), at<float>(space_.cos), at<float>(space_.sin)};
  }

  // Logits of a row a warp at a time, the next ones on their way; then the choice.
  __device__ void head() {
    const std::int64_t end = a.V * (blockIdx.x + 1) / a.G;
    std::int64_t n = a.V * blockIdx.x / a.G + warp_;
    Row coming[kComing], row;
#pragma unroll
    for (int c = 0; c < kComing; ++c) load_head(n + c * kRunWarps, end, coming[c]);
    float v[kFew] = {};
    own(words(a.count) - a.x_words, v);
    norm(v, x_, static_cast<const T*>(a.gain_C), static_cast<const T*>(a.shift_C));
    load_row(normed_, a.C, row);
    Best best = no_best();
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
  __device__ void load_head(std::int64_t n, std::int64_t end, Row& out) const {
    const T* from = static_cast<const T*>(a.head_VC) + n * a.C;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int k = (s * 32 + lane_) * N;
      out[s] = n < end && k < a.C ? Raw<T>::constant_at(from + k) : Raw<T>::none();
    }
  }

  const TokenRunArgs& a;
  const RunSpace& space_;
  int lane_, warp_;
  std::uint32_t tag_;
  float mean_ = 0;  // of the last norm, by the threads that have features
  T *x_, *between_, *in_, *normed_;
};

template <class T>
__global__ void __launch_bounds__(kRunThreads, 1)
    token_run(const __grid_constant__ TokenRunArgs a, const __grid_constant__ RunSpace space) {
  TokenRun<T>(a, space).run();
}

// All blocks have to be there at once: they wait for each other.
template <class T>
bool fits(const TokenRunArgs& a, const Stream& stream) {
  const int bytes = RunSpace(a).bytes;
  if (bytes + 1024 > attribute_of(stream, cudaDevAttrMaxSharedMemoryPerBlockOptin)) return false;
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
  if (attribute_of(stream, cudaDevAttrComputeCapabilityMajor) < 8 ||
      attribute_of(stream, cudaDevAttrCooperativeLaunch) == 0)
    return false;
  const std::int64_t pack = a.dtype == DType::bf16 ? 8 : 4, HD = a.H * a.D, lane_row = 32 * pack * kSteps;
  if (a.C % pack != 0 || a.F % pack != 0 || a.D % pack != 0 || a.D > 32 * pack) return false;
  if (a.C > lane_row || HD > lane_row * kRunWarps || a.F > lane_row * kRunWarps) return false;
  a.G = attribute_of(stream, cudaDevAttrMultiProcessorCount);
  if (a.Hkv > a.G || a.count < 1) return false;
  std::int64_t lanes = 1;
  while (lanes * pack < a.D) lanes *= 2;
  const std::int64_t held = kRunThreads / lanes * kHeld;
  if (2 * std::max({(a.H + 2 * a.Hkv) * a.D, a.F, a.C}) * (a.G + 1) >= std::int64_t{1} << 32) return false;
  a.S = std::clamp<std::int64_t>((rows + held - 1) / held, 1, std::min(kMaxSplits, a.G / a.Hkv));
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
