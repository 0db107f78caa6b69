// Where everything lies in the shared memory of a token that runs in one launch, who multiplies it, and what a feature
// may go through.
#pragma once

#include <algorithm>
#include <cstdint>

#include "nn/kernels/cuda/token_activations.cuh"
#include "nn/kernels/cuda/token_run_attend.cuh"

namespace sieve::cuda {

constexpr int kSteps = 4;  // packs of a lane in a row

// The fewest warps that share a row of K features.
template <class T>
__host__ __device__ int run_team(std::int64_t K) {
  int team = 1;
  while (team < kRunWarps && K > std::int64_t{32} * kPack<T> * kSteps * team) team *= 2;
  return team;
}

// Bytes from its beginning; weights, biases: qkv, out, up, down.
struct RunSpace {
  int bytes = 0;
  int layers, weights[4], bias[4], gains[2], x, between, in, raw, moved, tops, sums, outs, cos, sin, parts, normed,
      stats;

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
    normed = take(a.C * e), stats = take(kRunWarps * 2 * 4);
  }
};

}  // namespace sieve::cuda
