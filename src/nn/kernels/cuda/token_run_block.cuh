// A block of a token that runs in one launch: what it knows, and the copies it asks for.
#pragma once

#include <algorithm>

#include "attention/kernels/cuda/launch.cuh"
#include "nn/kernels/cuda/token_run_copies.cuh"
#include "nn/kernels/cuda/token_run_space.cuh"

namespace sieve::cuda {

template <class T>
class RunBlock {
 public:
  static constexpr int N = kPack<T>, kIn = kPerWord<T>, kFew = 2 * kIn;

  __device__ RunBlock(const TokenRunArgs& args, const RunSpace& space)
      : a(args), space_(space), lane_(static_cast<int>(threadIdx.x) % 32), warp_(static_cast<int>(threadIdx.x) / 32) {
    tag_ = *a.epoch + 1, position_ = *a.position;
    x_ = at<T>(space_.x), between_ = at<T>(space_.between), in_ = at<T>(space_.in), normed_ = at<T>(space_.normed);
  }

  // Layers into shared memory, barriers, the first copies; the block meets in it.
  __device__ void begin() const {
    copy_layers();
    if (copies()) {
      for (int i = 0; i < kCopies; ++i) make_barrier(barrier(i));
      publish_barriers();
    }
    __syncthreads();
    if (!copies()) return;
#pragma unroll 1
    for (int place = 0; place < 4; ++place) {
      fill(place, 0);
      if (place == 0) fill_rows(0);  // wanted next
    }
    ask_ahead(0);
  }

 protected:
  template <class V>
  __device__ V* at(int bytes) const {
    return reinterpret_cast<V*>(dynamic_shared() + bytes);
  }
  __device__ const TokenRunLayer& layer(std::int64_t i) const { return at<TokenRunLayer>(space_.layers)[i]; }
  __device__ const T* gain(int which) const { return at<T>(space_.gains[which]); }
  __device__ std::uint64_t* barrier(int place) const { return at<std::uint64_t>(space_.barriers) + place; }
  __device__ Word* words(std::int64_t i) const { return a.words + i * a.layer_words; }
  __device__ bool attends() const { return blockIdx.x < a.Hkv * a.S; }
  // The thread that asks for copies: of a warp that has little else to do.
  __device__ static bool copies() { return threadIdx.x == kRunThreads - 64; }

  __device__ void copy_layers() const {
    static_assert(sizeof(TokenRunLayer) % 8 == 0);
    const auto* from = reinterpret_cast<const std::uint64_t*>(a.layers);
    auto* to = at<std::uint64_t>(space_.layers);
    const auto n = static_cast<int>(a.count * static_cast<std::int64_t>(sizeof(TokenRunLayer) / 8));
    for (int i = static_cast<int>(threadIdx.x); i < n; i += kRunThreads) to[i] = from[i];
  }

  __device__ static const TokenProduct& product_of(const TokenRunLayer& l, int place) {
    return place == 0 ? l.qkv : place == 1 ? l.out : place == 2 ? l.up : l.down;
  }
  // One thread: weights, biases and norm of a product of layer i on their way to their place.
  __device__ void fill(int place, std::int64_t i) const {
    const TokenRunLayer& l = layer(i);
    const TokenProduct& p = product_of(l, place);
    const Shares& share = space_.units[place];
    const int first = share.first(blockIdx.x), count = share.count(blockIdx.x);
    const std::uint32_t row = space_.K[place] * sizeof(T), bytes = count * kIn * row, norms = a.C * sizeof(T);
    const std::int64_t skipped = first * std::int64_t{4} & ~std::int64_t{15};
    const auto biases = static_cast<std::uint32_t>(
        p.bias_N == nullptr || count == 0 ? 0 : ((first + count) * std::int64_t{4} + 15 & ~std::int64_t{15}) - skipped);
    const void *gains = place == 0   ? l.gain1_C
                        : place == 2 ? l.gain2_C
                                     : nullptr,
               *shifts = place == 0   ? l.shift1_C
                         : place == 2 ? l.shift2_C
                                      : nullptr;
    order_copies();
    expect_bytes(barrier(place), bytes + biases + (gains != nullptr ? norms : 0) + (shifts != nullptr ? norms : 0));
    if (gains != nullptr) fill_norm(place, gains, shifts, norms);
    copy_bytes(at<char>(space_.weights[place]), static_cast<const char*>(p.w_NK) + first * std::int64_t{kIn} * row,
               bytes, barrier(place));
    copy_bytes(at<char>(space_.bias[place]), static_cast<const char*>(p.bias_N) + skipped, biases, barrier(place));
  }
  __device__ void fill_norm(int place, const void* gains, const void* shifts, std::uint32_t bytes) const {
    char* to = at<char>(space_.gains[place / 2]);
    copy_bytes(to, gains, bytes, barrier(place));
    if (shifts != nullptr) copy_bytes(to + bytes, shifts, bytes, barrier(place));
  }
  // The last norm.
  __device__ void fill_last() const {
    const std::uint32_t bytes = a.C * sizeof(T);
    order_copies();
    expect_bytes(barrier(0), bytes + (a.shift_C != nullptr ? bytes : 0));
    fill_norm(0, a.gain_C, a.shift_C, bytes);
  }
  __device__ void fill_rows(std::int64_t i) const {
    if (!attends()) return;
    order_copies();
    TokenAttend<T>::copy_rows(a, layer(i).attend, position_, at<T>(space_.keys), at<T>(space_.values),
                              barrier(kOfRows));
  }

  // What later phases read from memory, into the second cache: score weights, the head.
  __device__ void ask_ahead(std::int64_t i) const {
    const TokenRunLayer& l = layer(i);
    for (std::int64_t h = a.G - 1 - blockIdx.x; h < l.scores.Hs; h += a.G)
      prefetch_bytes(l.score_w_HC + h * a.C, static_cast<std::uint32_t>(a.C * sizeof(float)));
    const std::int64_t nth = i - (a.count - kHeadLayers);
    if (nth >= 0) ask_for_head(nth * space_.head_part, space_.head_part);
  }
  // Of the block's rows of the head, the bytes from `first` on.
  __device__ void ask_for_head(std::int64_t first, std::uint32_t bytes) const {
    const std::int64_t row = a.C * static_cast<std::int64_t>(sizeof(T));
    prefetch_bytes(static_cast<const char*>(a.head_VC) + space_.head.first(blockIdx.x) * row + first, bytes);
  }

  const TokenRunArgs& a;
  const RunSpace& space_;
  int lane_, warp_;
  std::uint32_t tag_;
  std::int64_t position_;
  float mean_ = 0;  // of the last norm, by the threads that have features
  T *x_, *between_, *in_, *normed_;
};

}  // namespace sieve::cuda
