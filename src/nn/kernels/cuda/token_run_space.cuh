// Where everything lies in the shared memory of a token that runs in one launch, and who multiplies it: what depends on
// the model alone is worked out once, on the host.
#pragma once

#include <algorithm>
#include <cstdint>

#include "nn/kernels/cuda/token_run_attend.cuh"

namespace sieve::cuda {

constexpr int kSteps = 4;                                    // packs of a lane in a row
constexpr int kCopies = 5;                                   // weights of qkv, out, up, down; rows of the attention
constexpr int kOfRows = 4;                                   // the last of them
constexpr std::int64_t kHeadAhead = std::int64_t{24} << 20;  // bytes of the head asked for before it is its turn
constexpr std::int64_t kHeadLayers = 3;                      // in so many last layers
constexpr std::int64_t kHeadMore = std::int64_t{14} << 20;   // and when it is: memory rests while those are read
constexpr int kMostNorm = 8;                                 // warps that have features in a norm

// Features [first, first + count) of a product, in units of a word, and of the head, in rows: block b has `each` and
// one more if b < rest.
struct Shares {
  std::uint32_t each = 0, rest = 0;

  Shares() = default;
  Shares(std::int64_t all, std::int64_t G)
      : each(static_cast<std::uint32_t>(all / G)), rest(static_cast<std::uint32_t>(all % G)) {}
  __host__ __device__ int first(std::uint32_t b) const { return static_cast<int>(each * b + (b < rest ? b : rest)); }
  __host__ __device__ int count(std::uint32_t b) const { return static_cast<int>(each + (b < rest ? 1 : 0)); }
  __host__ __device__ int most() const { return static_cast<int>(each + (rest > 0 ? 1 : 0)); }
};

// Offsets in bytes; products: qkv, out, up, down.
struct RunSpace {
  int bytes = 0;
  int layers, barriers, weights[4], bias[4], gains[2], x, between, in, normed, stats, parts;
  int raw, query, keys, values, gates, tops, sums, outs, cos, sin;
  int K[4], team[4];  // features in, and the logarithm of the fewest warps that share a row of them
  Shares units[4], head;
  std::uint32_t head_part, head_more;  // bytes of a block
  float inverse_C;

  int take(std::int64_t n) {
    const int at = bytes;
    bytes += static_cast<int>(std::min<std::int64_t>((n + 15) / 16 * 16, 1 << 24));
    return at;
  }
  explicit RunSpace(const TokenRunArgs& a) {
    const std::int64_t e = a.dtype == DType::bf16 ? 2 : 4, HD = a.H * a.D, up = a.swiglu ? 2 * a.F : a.F,
                       in_word = 4 / e;
    const std::int64_t N[4] = {(a.H + 2 * a.Hkv) * a.D, a.C, up, a.C}, features[4] = {a.C, HD, a.C, a.F};
    layers = take(a.count * static_cast<std::int64_t>(sizeof(TokenRunLayer)));
    barriers = take(kCopies * 8);
    for (int i = 0; i < 4; ++i) {
      K[i] = static_cast<int>(features[i]), units[i] = Shares(N[i] / in_word, a.G);
      for (team[i] = 0; 1 << team[i] < kRunWarps && features[i] > (std::int64_t{512} / e * kSteps << team[i]);)
        ++team[i];
      const std::int64_t rows = units[i].most() * in_word;
      weights[i] = take(rows * features[i] * e), bias[i] = take(rows * e + 32);
    }
    head = Shares(a.V, a.G), inverse_C = 1.F / static_cast<float>(a.C);
    for (int& gain : gains) gain = take(2 * a.C * e);
    x = take(a.C * e), between = take(a.C * e), in = take(std::max(HD, a.F) * e), normed = take(a.C * e);
    stats = take(kMostNorm * 2 * 4), parts = take(kRunWarps * 2 * 4);
    const std::int64_t mine = head.each * a.C * e, part = std::min(mine, kHeadAhead / a.G) / kHeadLayers / 128 * 128;
    head_part = static_cast<std::uint32_t>(part);
    head_more = static_cast<std::uint32_t>(std::min(mine - kHeadLayers * part, kHeadMore / a.G) / 16 * 16);
    const std::int64_t group = a.H / a.Hkv, rows = a.held + kCarried;
    raw = take((group + 2) * a.D * e), query = take(group * a.D * 4);
    keys = take(rows * a.D * e), values = take(rows * a.D * e), gates = take(rows * 4);
    tops = take(kRunWarps * 4), sums = take(kRunWarps * 4), outs = take(kRunWarps * a.D * 4);
    cos = take(a.R * 4), sin = take(a.R * 4);
  }
};

}  // namespace sieve::cuda
