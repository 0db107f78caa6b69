// Norms and products of a token that runs in one launch.
#pragma once

#include "nn/kernels/cuda/token_run_block.cuh"
#include "tensor/kernels/cuda/block.cuh"

namespace sieve::cuda {

// In the few instructions that bf16 cannot tell from the accurate ones.
template <class T>
__device__ float sigmoid(float x) {
  return sizeof(T) == 2 ? __fdividef(1.f, 1.f + power_of_two(-kLog2E * x)) : 1.f / (1.f + expf(-x));
}
template <class T>
__device__ float silu_of(float x) {
  return x * sigmoid<T>(x);
}
// 0.5 x (1 + tanh u) = x sigmoid(2u).
template <class T>
__device__ float gelu_of(float x) {
  return x * sigmoid<T>(1.5957691216057308f * (x + 0.044715f * x * x * x));
}

template <class T>
class RunProducts : public RunBlock<T> {
 public:
  using Base = RunBlock<T>;
  using Base::a, Base::N, Base::kIn, Base::kFew;
  using Row = Raw<T>[kSteps];
  using Weights = Row[kIn];
  using Base::Base;

 protected:
  using Base::barrier, Base::space_, Base::lane_, Base::warp_, Base::tag_, Base::mean_, Base::normed_;
  template <class V>
  __device__ V* at(int bytes) const {
    return Base::template at<V>(bytes);
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

  // The packs of a row that this lane multiplies.
  __device__ void load_row(const T* from, int which, Row& row) const {
    const int K = space_.K[which], log2 = space_.team[which], member = warp_ & ((1 << log2) - 1);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int k = (((s << log2) + member) * 32 + lane_) * N;
      row[s] = k < K ? Raw<T>::at(from + k) : Raw<T>::none();
    }
  }

  // x into shared memory for who adds to it, and its norm for who multiplies it; v: the thread's own features. Sums are
  // taken about the mean of the norm before, so that their squares hold no large constant.
  __device__ void norm(const float (&v)[kFew], T* x, const T* gain, bool shifted) {
    const int C = static_cast<int>(a.C), k = static_cast<int>(threadIdx.x) * kFew;
    auto* stats = at<float>(space_.stats);
    if (warp_ < kMostNorm) {
      Pack<T, kFew> kept;
      float sum = 0, squares = 0;
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
    __syncthreads();
    if (k < C) {
      float sum = 0, squares = 0;
#pragma unroll
      for (int w = 0; w < kMostNorm; w += 2) {
        const Pack<float, 4> two = load_pack<4>(stats + 2 * w);
        sum += two.at[0], squares += two.at[1];
        sum += two.at[2], squares += two.at[3];
      }
      float variance = squares * space_.inverse_C;
      if (shifted) {
        const float moved = sum * space_.inverse_C;
        mean_ += moved, variance = fmaxf(variance - moved * moved, 0.f);
      }
      const float rstd = rsqrtf(variance + static_cast<float>(a.eps));
      const Pack<T, kFew> g = load_pack<kFew>(gain + k), b = shifted ? load_pack<kFew>(gain + C + k) : Pack<T, kFew>{};
      Pack<T, kFew> out;
#pragma unroll
      for (int e = 0; e < kFew; ++e)
        out.at[e] = to_element<T>((v[e] - mean_) * rstd * to_compute(g.at[e]) + (shifted ? to_compute(b.at[e]) : 0.f));
      store_pack<kFew>(normed_ + k, out);
    }
    __syncthreads();
  }

  __device__ static void dot(const Raw<T>& w, const Raw<T>& x, float& sum) {
    float other = 0;  // two chains
#pragma unroll
    for (int k = 0; k < N; k += 2) sum = fmaf(w.get(k), x.get(k), sum), other = fmaf(w.get(k + 1), x.get(k + 1), other);
    sum += other;
  }

  // The packs of its first row that this lane will multiply, before there is anything to multiply them with. Lane l of
  // member m of a team of M warps has packs (step M + m) 32 + l.
  __device__ void take(int which, std::uint32_t parity, Weights& w) const {
    await_bytes(barrier(which), parity);
    load_weights(which, warp_ >> space_.team[which], w);
  }
  __device__ void load_weights(int which, int j, Weights& w) const {
    const int K = space_.K[which], log2 = space_.team[which], member = warp_ & ((1 << log2) - 1),
              k = (member * 32 + lane_) * N;
    const T* weights = at<T>(space_.weights[which]) + j * kIn * K + k;
    const bool real = j < space_.units[which].count(blockIdx.x);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int step = (s * 32 * N) << log2;
#pragma unroll
      for (int r = 0; r < kIn; ++r)
        w[r][s] = real && step + k < K ? Raw<T>::at(weights + r * K + step) : Raw<T>::none();
    }
  }

  // The block's rows of a product to words: + bias, GELU, + what stood there.
  __device__ void multiply(int which, bool biased, Weights& w, const Row& row, const T* add, bool gelus,
                           Word* to) const {
    const int K = space_.K[which], log2 = space_.team[which], teams = kRunWarps >> log2,
              member = warp_ & ((1 << log2) - 1), count = space_.units[which].count(blockIdx.x);
    auto* parts = at<float>(space_.parts);
#pragma unroll 1
    for (int base = 0; base < count; base += teams) {
      const int j = base + (warp_ >> log2);
      float sum[kIn] = {};
      if (j < count) {
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          if ((s * 32 * N) << log2 >= K) break;
#pragma unroll
          for (int r = 0; r < kIn; ++r) dot(w[r][s], row[s], sum[r]);
        }
        if (base + teams < count) load_weights(which, j + teams, w);
#pragma unroll
        for (int r = 0; r < kIn; ++r) sum[r] = warp_sum(sum[r]);
      }
      if (log2 > 0) {
#pragma unroll
        for (int r = 0; r < kIn; ++r)
          if (lane_ == 0) parts[warp_ * kIn + r] = sum[r];
        __syncthreads();
        if (member == 0) {
#pragma unroll 1
          for (int other = 1; other < 1 << log2; ++other)
#pragma unroll
            for (int r = 0; r < kIn; ++r) sum[r] += parts[(warp_ + other) * kIn + r];
        }
        if (base + teams < count) __syncthreads();
      }
      if (j < count && member == 0 && lane_ == 0) finish(which, biased, j, sum, add, gelus, to);
    }
  }

  __device__ void finish(int which, bool biased, int j, const float (&sum)[kIn], const T* add, bool gelus,
                         Word* to) const {
    const int first = space_.units[which].first(blockIdx.x), unit = first + j;
    const T* bias = at<T>(space_.bias[which]) + ((first & 3) + j) * kIn;
    T out[kIn];
#pragma unroll
    for (int r = 0; r < kIn; ++r) {
      float value = sum[r] + (biased ? to_compute(bias[r]) : 0.f);
      if (gelus) value = gelu_of<T>(value);
      if (add != nullptr) value += to_compute(add[unit * kIn + r]);
      out[r] = to_element<T>(value);
    }
    send(to + unit, payload_of<T>(out), tag_);
  }
};

}  // namespace sieve::cuda
