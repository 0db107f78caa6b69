// One token in one launch. Every block has its rows of each matrix: their weights come into its shared memory nearly a
// layer ahead, every lane copies what it will multiply itself, and the head's rows go through registers. What a phase
// waits for are the words of the phase before (token_words.cuh): qkv, attention's parts, x behind the attention, the
// MLP's features, x behind the layer. Words are of one layer each, so none is overwritten before the next token.
#include "attention/kernels/cuda/launch.cuh"
#include "nn/kernels/cuda/best.cuh"
#include "nn/kernels/cuda/token_run_attend.cuh"

namespace sieve::cuda {
namespace {

constexpr int kComing = 3;                                   // rows of the head that a warp waits for
constexpr int kSteps = 4;                                    // packs of a lane in a row
constexpr std::int64_t kHeadAhead = std::int64_t{24} << 20;  // bytes of the head asked for before it is its turn
constexpr std::int64_t kHeadLayers = 3;                      // in so many last layers

__device__ inline float silu(float x) { return x / (1.f + expf(-x)); }
// 0.5 x (1 + tanh u) = x sigmoid(2u).
__device__ inline float gelu(float x) { return x / (1.f + expf(-1.5957691216057308f * (x + 0.044715f * x * x * x))); }

// The fewest warps that share a row of K features.
template <class T>
__host__ __device__ int run_team(std::int64_t K) {
  int team = 1;
  while (team < kRunWarps && K > std::int64_t{32} * kPack<T> * kSteps * team) team *= 2;
  return team;
}

// Where everything lies in shared memory: bytes from its beginning.
struct RunSpace {
  int bytes = 0;
  int layers, weights[4], bias[4], gains[2], x, between, in, raw, moved, tops, sums, outs, cos, sin, parts;

  int take(std::int64_t n) {
    const int at = bytes;
    bytes += static_cast<int>(std::min<std::int64_t>((n + 15) / 16 * 16, 1 << 24));
    return at;
  }
  explicit RunSpace(const TokenRunArgs& a) {
    const std::int64_t e = a.dtype == DType::bf16 ? 2 : 4, HD = a.H * a.D, up = a.swiglu ? 2 * a.F : a.F,
                       in_word = 4 / e;
    const std::int64_t N[4] = {(a.H + 2 * a.Hkv) * a.D, a.C, up, a.C}, K[4] = {a.C, HD, a.C, a.F};
    layers = take(a.count * static_cast<std::int64_t>(sizeof(TokenRunLayer)));
    for (int i = 0; i < 4; ++i) {
      const std::int64_t rows = (N[i] / in_word + a.G - 1) / a.G * in_word;
      weights[i] = take(rows * K[i] * e), bias[i] = take(rows * e);
    }
    for (int& gain : gains) gain = take(2 * a.C * e);
    x = take(a.C * e), between = take(a.C * e), in = take(std::max(HD, a.F) * e);
    raw = take((a.H / a.Hkv + 2) * a.D * e), moved = take(4 * a.D * e);
    tops = take(kRunWarps * 4), sums = take(kRunWarps * 4), outs = take(kRunWarps * a.D * 4);
    cos = take(a.R * 4), sin = take(a.R * 4), parts = take(kRunWarps * 2 * 4);
  }
};

template <class T>
class TokenRun {
 public:
  static constexpr int N = kPack<T>, kIn = kPerWord<T>;
  using Row = Raw<T>[kSteps];

  __device__ TokenRun(const TokenRunArgs& args, const RunSpace& space)
      : a(args), space_(space), lane_(static_cast<int>(threadIdx.x) % 32), warp_(static_cast<int>(threadIdx.x) / 32) {
    tag_ = *a.epoch + 1;
    x_ = at<T>(space_.x), between_ = at<T>(space_.between), in_ = at<T>(space_.in);
  }

  __device__ void run() {
    copy_layers();
    __syncthreads();
    fill(0, layer(0).qkv, layer(0).gain1_C, layer(0).shift1_C);
    fill(1, layer(0).out, nullptr, nullptr);
    fill(2, layer(0).up, layer(0).gain2_C, layer(0).shift2_C);
    ask_ahead(0);
    embed();
    for (std::int64_t i = 0; i < a.count; ++i) layer_of(i);
    head();
  }

 private:
  template <class V>
  __device__ V* at(int bytes) const {
    return reinterpret_cast<V*>(dynamic_shared() + bytes);
  }
  __device__ const TokenRunLayer& layer(std::int64_t i) const { return at<TokenRunLayer>(space_.layers)[i]; }
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

    if (i > 0) read_features(words(i) - a.x_words, a.C, x_);  // the words before are x behind the last layer
    await_copies<2>();
    __syncthreads();
    Row row;
    normed(x_, l.shift1_C != nullptr, 0, row);
    multiply(0, l.qkv, row, nullptr, false, qkv);
    score(l, row);
    fill(3, l.down, nullptr, nullptr);
    if (attends()) TokenAttend<T>(a, l.attend, blockIdx.x).finish(qkv, parts, tag_, attend_space());

    read_parts(parts);
    await_copies<2>();
    __syncthreads();
    load_row(in_, l.out.K, row);
    multiply(1, l.out, row, x_, false, x1);
    if (more) fill(0, layer(i + 1).qkv, layer(i + 1).gain1_C, layer(i + 1).shift1_C), ask_ahead(i + 1);
    else end_copies();

    read_features(x1, a.C, between_);
    await_copies<2>();
    __syncthreads();
    normed(between_, l.shift2_C != nullptr, 1, row);
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

  // x of the first layer, by every block for itself; the angles of the position.
  __device__ void embed() const {
    const std::int64_t id = *a.id, position = *a.position;
    const bool known = id >= 0 && id < a.V;
    const T *token = static_cast<const T*>(a.tokens_VC) + (known ? id : 0) * a.C,
            *place = static_cast<const T*>(a.positions_TC) + (a.positions_TC != nullptr ? position * a.C : 0);
    for (std::int64_t i = threadIdx.x; i < a.C; i += kRunThreads) {
      T x = token[i];
      if (a.positions_TC != nullptr) x = to_element<T>(to_compute(x) + to_compute(place[i]));
      if (!known) x = to_element<T>(std::numeric_limits<float>::quiet_NaN());
      x_[i] = x;
    }
    if (!attends()) return;
    for (std::int64_t r = threadIdx.x; r < a.R; r += kRunThreads) {
      double s = 0, c = 0;
      sincos(static_cast<double>(position) * a.frequency_R[r], &s, &c);
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

  // Every warp norms x for itself: mean, then the deviation about it, as the norm kernels do. which: the gains' place.
  __device__ void normed(const T* x, bool centred, int which, Row& row) const {
    const T* gains = at<T>(space_.gains[which]);
    norm_by(x, centred, gains, centred ? gains + a.C : nullptr, row);
  }
  __device__ void norm_by(const T* x, bool centred, const T* gain, const T* shift, Row& row) const {
    const int C = static_cast<int>(a.C);
    load_row(x, C, row);
    float sum = 0, squares = 0;
    if (centred) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s)
#pragma unroll
        for (int k = 0; k < N; ++k) sum += row[s].get(k);
      sum = warp_sum(sum);
    }
    const float mean = sum / static_cast<float>(C);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      if ((s * 32 + lane_) * N >= C) continue;
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const float c = row[s].get(k) - mean;
        squares = fmaf(c, c, squares);
      }
    }
    const float rstd = 1.f / sqrtf(warp_sum(squares) / static_cast<float>(C) + static_cast<float>(a.eps));
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int i = (s * 32 + lane_) * N;
      if (i >= C) continue;
      const Raw<T> g = Raw<T>::at(gain + i), b = shift != nullptr ? Raw<T>::at(shift + i) : Raw<T>::none();
      float out[N];
#pragma unroll
      for (int k = 0; k < N; ++k) out[k] = (row[s].get(k) - mean) * rstd * g.get(k) + b.get(k);
      row[s] = Raw<T>::of(out);
    }
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
    read_features(words(a.count) - a.x_words, a.C, x_);
    __syncthreads();
    norm_by(x_, a.shift_C != nullptr, static_cast<const T*>(a.gain_C), static_cast<const T*>(a.shift_C), row);
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
    choose(best);
  }
  __device__ void load_head(std::int64_t n, std::int64_t end, Row& out) const {
    const T* from = static_cast<const T*>(a.head_VC) + n * a.C;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int k = (s * 32 + lane_) * N;
      out[s] = n < end && k < a.C ? Raw<T>::constant_at(from + k) : Raw<T>::none();
    }
  }

  // The block that is through last chooses, and leaves everything ready for the next token. All lanes of a warp have
  // the same best.
  __device__ void choose(Best best) const {
    __shared__ Best of_warps[kRunWarps];
    __shared__ bool last;
    if (lane_ == 0) of_warps[warp_] = best;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int w = 1; w < kRunWarps; ++w) best = best.joined(of_warps[w]);
      std::uint64_t bits;
      memcpy(&bits, &best, 8);
      a.best[blockIdx.x] = bits;
      __threadfence();
      last = atomicAdd(a.epoch + 1, 1u) == a.G - 1;
      __threadfence();
    }
    __syncthreads();
    if (!last || warp_ != 0) return;
    best = no_best();
    for (std::int64_t b = lane_; b < a.G; b += 32) {
      const auto bits = __ldcg(reinterpret_cast<const unsigned long long*>(a.best) + b);
      Best other;
      memcpy(&other, &bits, 8);
      best = best.joined(other);
    }
    best = warp_best(best);
    if (lane_ != 0) return;
    const std::int64_t position = *a.position;
    const std::int32_t id = isfinite(best.logit) ? best.id : -1;
    *a.id = id, a.history_T[position % a.kept] = id;
    *a.position = position + 1;
    a.epoch[0] = tag_, a.epoch[1] = 0;
  }

  const TokenRunArgs& a;
  const RunSpace& space_;
  int lane_, warp_;
  std::uint32_t tag_;
  T *x_, *between_, *in_;
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
