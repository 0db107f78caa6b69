// Scores of the SparseK scoring network and their gradients. B batch, T time, C channels, H score heads. Rows are
// (b, t). The order of a score's sum is a function of C alone: a lane adds its packs in order, a butterfly adds the
// lanes.
#include "tensor/kernels/cuda/pack.cuh"
#include "tensor/kernels/cuda/partials.h"
#include "tensor/kernels/cuda/scratch.h"
#include "tensor/kernels/kernels.h"

namespace sieve::cuda {
namespace {

constexpr int kWarps = kThreads / 32;

// Place of the score of (row, head) in (B, H, T).
__device__ std::int64_t score_at(std::int64_t row, std::int64_t h, std::int64_t T, std::int64_t H) {
  const std::int64_t b = row / T;
  return (b * H + h) * T + (row - b * T);
}

template <bool kWide, int N, class T>
__device__ inline Pack<T, N> load_channels(const T* p, std::int64_t left) {
  if constexpr (kWide) return load_pack<N>(p);
  else return load_part<N>(p, left, false);
}

// The butterfly sums of M values, M a power of two, in M - 1 + log2(32 / M) exchanges: lanes share the values among
// them, and lane l is left with the sum of value l / (32 / M).
template <int M, int kOffset = 16, class S>
__device__ inline S spread_sum(S* v) {
  if constexpr (kOffset == 0) {
    return v[0];
  } else if constexpr (M == 1) {
    v[0] += __shfl_xor_sync(0xffffffffu, v[0], kOffset);
    return spread_sum<1, kOffset / 2>(v);
  } else {
    const bool high = (threadIdx.x & kOffset) != 0;
#pragma unroll
    for (int x = 0; x < M / 2; ++x) {
      const S mine = high ? v[x + M / 2] : v[x], other = high ? v[x] : v[x + M / 2];
      v[x] = mine + __shfl_xor_sync(0xffffffffu, other, kOffset);
    }
    return spread_sum<M / 2, kOffset / 2>(v);
  }
}

constexpr int kScoreRows = 4;  // rows a warp takes at once

// Weights of a block's warps: `Heads` heads, 32 packs of channels, in units of 16 bytes so that neighbouring lanes read
// neighbouring units.
template <class S, int Heads, int N>
struct StagedWeights {
  static constexpr int kEach = static_cast<int>(16 / sizeof(S)), kUnits = N / kEach;
  uint4 at[Heads][kUnits][32];

  // Channels from `base` on, heads from h0 on; beyond the last head that one again, beyond the last channel 0. Begins
  // and ends with a barrier.
  template <bool kWide>
  __device__ void read(const S* w, std::int64_t base, std::int64_t h0, std::int64_t C, std::int64_t H) {
    __syncthreads();
#pragma unroll
    for (int x = static_cast<int>(threadIdx.x); x < Heads * kUnits * 32; x += kThreads) {
      const int h = x / (kUnits * 32), unit = x % (kUnits * 32);
      const std::int64_t i = base + unit * kEach;
      Pack<S, kEach> part{};
      if (i < C) part = load_channels<kWide, kEach>(w + min(h0 + h, H - 1) * C + i, C - i);
      memcpy(&at[h][unit % kUnits][unit / kUnits], &part, sizeof(part));
    }
    __syncthreads();
  }
  __device__ Pack<S, N> pack(int h, int lane) const {
    Pack<S, N> out;
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
      const uint4 part = at[h][unit][lane];
      memcpy(&out.at[unit * kEach], &part, sizeof(part));
    }
    return out;
  }
};

// A warp takes kScoreRows rows and `Heads` heads at once: x is read once for all of those, w once for all rows.
template <class T, int Heads, bool kWide>
__global__ void __launch_bounds__(kThreads, 2)
    scores(const T* __restrict__ x, const compute_t<T>* __restrict__ w, compute_t<T>* __restrict__ s, std::int64_t rows,
           std::int64_t T_, std::int64_t C, std::int64_t H) {
  using S = compute_t<T>;
  constexpr int N = kPack<T>, kSums = kScoreRows * Heads, kTail = kSums % 32;
  __shared__ StagedWeights<S, Heads, N> staged;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::int64_t row0 = (static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32) * kScoreRows;
  const auto read = [&](std::int64_t i, Pack<T, N>* out) {  // beyond the last row that one again
    if (i >= C) return;
#pragma unroll
    for (int r = 0; r < kScoreRows; ++r) out[r] = load_channels<kWide, N>(x + min(row0 + r, rows - 1) * C + i, C - i);
  };
  for (std::int64_t h0 = 0; h0 < H; h0 += Heads) {
    S sum[kSums] = {};
    Pack<T, N> next[kScoreRows] = {};
    read(lane * N, next);
    for (std::int64_t base = 0; base < C; base += 32 * N) {
      const std::int64_t i = base + lane * N;
      Pack<T, N> now[kScoreRows];
#pragma unroll
      for (int r = 0; r < kScoreRows; ++r) now[r] = next[r];
      staged.template read<kWide>(w, base, h0, C, H);
      read(i + 32 * N, next);
      if (i >= C) continue;
#pragma unroll
      for (int h = 0; h < Heads; ++h) {
        const Pack<S, N> ws = staged.pack(h, lane);
#pragma unroll
        for (int k = 0; k < N; ++k) {
#pragma unroll
          for (int r = 0; r < kScoreRows; ++r)
            sum[r * Heads + h] = fma(to_compute(now[r].at[k]), ws.at[k], sum[r * Heads + h]);
        }
      }
    }
    const auto write = [&](int index, S total) {
      const std::int64_t row = row0 + index / Heads, h = h0 + index % Heads;
      if (row < rows && h < H) s[score_at(row, h, T_, H)] = total;
    };
#pragma unroll
    for (int first = 0; first + 32 <= kSums; first += 32) write(first + lane, spread_sum<32>(sum + first));
    if constexpr (kTail > 0) {
      const S total = spread_sum<kTail>(sum + (kSums - kTail));
      if (lane % (32 / kTail) == 0) write(kSums - kTail + lane / (32 / kTail), total);
    }
  }
}

// dx = sum over heads of ds w, heads in order. A warp takes kGradientRows rows and 32 packs of channels at once.
constexpr int kGradientRows = 8, kStagedHeads = 16;

template <class T, bool kWide>
__global__ void __launch_bounds__(kThreads, 2)
    score_dx(const compute_t<T>* __restrict__ ds, const compute_t<T>* __restrict__ w, T* __restrict__ dx,
             std::int64_t rows, std::int64_t T_, std::int64_t C, std::int64_t H) {
  using S = compute_t<T>;
  constexpr int N = kPack<T>, kBlockRows = kWarps * kGradientRows;
  __shared__ __align__(16) S staged[kStagedHeads][kBlockRows];
  const int lane = static_cast<int>(threadIdx.x % 32), first = static_cast<int>(threadIdx.x / 32) * kGradientRows;
  const std::int64_t block = static_cast<std::int64_t>(blockIdx.x) * kBlockRows, row0 = block + first;
  for (std::int64_t base = 0; base < C; base += 32 * N) {
    const std::int64_t i = base + lane * N;
    S sum[kGradientRows][N] = {};
    for (std::int64_t h0 = 0; h0 < H; h0 += kStagedHeads) {
      const int heads = static_cast<int>(min(H - h0, static_cast<std::int64_t>(kStagedHeads)));
      if (base == 0 || H > kStagedHeads) {
        const int r = static_cast<int>(threadIdx.x) % kBlockRows;
        const std::int64_t from = score_at(min(block + r, rows - 1), h0, T_, H);
        __syncthreads();
        for (int h = static_cast<int>(threadIdx.x) / kBlockRows; h < heads; h += kThreads / kBlockRows)
          staged[h][r] = ds[from + h * T_];
        __syncthreads();
      }
      if (i >= C) continue;
#pragma unroll 2
      for (int h = 0; h < heads; ++h) {
        const Pack<S, N> ws = load_channels<kWide, N>(w + (h0 + h) * C + i, C - i);
        const auto g = load_pack<kGradientRows>(&staged[h][first]);
#pragma unroll
        for (int r = 0; r < kGradientRows; ++r) {
#pragma unroll
          for (int k = 0; k < N; ++k) sum[r][k] = fma(g.at[r], ws.at[k], sum[r][k]);
        }
      }
    }
    if (i >= C) continue;
#pragma unroll
    for (int r = 0; r < kGradientRows; ++r) {
      if (row0 + r >= rows) continue;
      Pack<T, N> out;
#pragma unroll
      for (int k = 0; k < N; ++k) out.at[k] = to_element<T>(sum[r][k]);
      store_part<N>(dx + (row0 + r) * C + i, out, C - i, kWide);
    }
  }
}

// Partial sums of dw over a piece of the rows, for `Heads` heads (blockIdx.x) and 32 packs of channels (blockIdx.y); a
// warp takes every eighth row, the warps are added in order.
template <class T, int Heads, bool kWide>
__global__ void __launch_bounds__(kThreads, 2)
    score_dw(const compute_t<T>* __restrict__ ds, const T* __restrict__ x, compute_t<T>* __restrict__ partial,
             std::int64_t rows, std::int64_t T_, std::int64_t C, std::int64_t H, std::int64_t piece) {
  using S = compute_t<T>;
  constexpr int N = kPack<T>, kStagedRows = 128, kPadded = (Heads + 3) / 4 * 4;
  __shared__ __align__(16) S staged[kStagedRows][kPadded];
  __shared__ S sums[Heads][N][32];
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const std::int64_t h0 = static_cast<std::int64_t>(blockIdx.x) * Heads;
  const std::int64_t i = (static_cast<std::int64_t>(blockIdx.y) * 32 + lane) * N;
  const std::int64_t begin = blockIdx.z * piece, end = min(rows, begin + piece);
  S sum[Heads][N] = {};
  for (std::int64_t base = begin; base < end; base += kStagedRows) {
    const int count = static_cast<int>(min(end - base, static_cast<std::int64_t>(kStagedRows))),
              mine = static_cast<int>(threadIdx.x) % kStagedRows;
    const std::int64_t from = score_at(min(base + mine, rows - 1), 0, T_, H);
    __syncthreads();
#pragma unroll
    for (int h = static_cast<int>(threadIdx.x) / kStagedRows; h < Heads; h += kThreads / kStagedRows)
      staged[mine][h] = ds[from + min(h0 + h, H - 1) * T_];
    __syncthreads();
    if (i >= C) continue;
#pragma unroll 4
    for (int r = warp; r < count; r += kWarps) {
      const Pack<T, N> v = load_channels<kWide, N>(x + (base + r) * C + i, C - i);
      const auto g = load_pack<kPadded>(staged[r]);
#pragma unroll
      for (int h = 0; h < Heads; ++h) {
#pragma unroll
        for (int k = 0; k < N; ++k) sum[h][k] = fma(g.at[h], to_compute(v.at[k]), sum[h][k]);
      }
    }
  }
  for (int turn = 0; turn < kWarps; ++turn) {
    __syncthreads();
    if (warp != turn) continue;
#pragma unroll
    for (int h = 0; h < Heads; ++h) {
#pragma unroll
      for (int k = 0; k < N; ++k) sums[h][k][lane] = turn == 0 ? sum[h][k] : sums[h][k][lane] + sum[h][k];
    }
  }
  __syncthreads();
  for (int index = static_cast<int>(threadIdx.x); index < Heads * N * 32; index += kThreads) {
    const int h = index / (N * 32), channel = index % (N * 32);
    const std::int64_t c = static_cast<std::int64_t>(blockIdx.y) * 32 * N + channel;
    if (h0 + h < H && c < C) partial[(blockIdx.z * H + h0 + h) * C + c] = sums[h][channel % N][channel / N];
  }
}

// Kernels by the number of heads that they take at once: few groups, few heads of the last one missing.
template <class T, bool kWide>
auto scores_of(std::int64_t H) {
  if (H == 1) return scores<T, 1, kWide>;
  if constexpr (kWide && sizeof(T) < sizeof(double)) {
    if (H > 4 && (H <= 8 || H % 8 == 0)) return scores<T, 8, kWide>;
    if (H > 8) return scores<T, 12, kWide>;
  }
  return scores<T, 4, kWide>;
}
constexpr int gradient_heads(std::int64_t H) { return H <= 4 ? 4 : (H % 6 == 0 ? 6 : 8); }
template <class T, bool kWide>
auto score_dw_of(std::int64_t H) {
  const int heads = gradient_heads(H);
  return heads == 4 ? score_dw<T, 4, kWide> : (heads == 6 ? score_dw<T, 6, kWide> : score_dw<T, 8, kWide>);
}

}  // namespace

void run(const ScoreArgs& a, Stream stream) {
  const std::int64_t rows = a.B * a.T;
  if (rows * a.H == 0) return;
  dispatch_float(a.dtype, "score", [&]<class T>() {
    constexpr int N = kPack<T>;
    const T* x = static_cast<const T*>(a.x_BTC);
    const auto* w = static_cast<const compute_t<T>*>(a.w_HC);
    const bool wide = a.C % N == 0 && aligned<N>(x) && aligned<N>(w);
    const auto blocks = static_cast<unsigned>((rows + kWarps * kScoreRows - 1) / (kWarps * kScoreRows));
    const auto kernel = wide ? scores_of<T, true>(a.H) : scores_of<T, false>(a.H);
    kernel<<<blocks, kThreads, 0, handle_of(stream)>>>(x, w, static_cast<compute_t<T>*>(a.s_BHT), rows, a.T, a.C, a.H);
  });
  check_launch("score");
}

void run(const ScoreBackwardArgs& a, Stream stream) {
  const std::int64_t rows = a.B * a.T;
  dispatch_float(a.dtype, "score", [&]<class T>() {
    using S = compute_t<T>;
    constexpr int N = kPack<T>;
    const S* ds = static_cast<const S*>(a.ds_BHT);
    const T* x = static_cast<const T*>(a.x_BTC);
    const auto* w = static_cast<const compute_t<T>*>(a.w_HC);
    T* dx = static_cast<T*>(a.dx_BTC);
    if (dx != nullptr && rows * a.C > 0) {
      const bool wide = a.C % N == 0 && aligned<N>(dx) && aligned<N>(w);
      constexpr int kBlockRows = kWarps * kGradientRows;
      const auto kernel = wide ? score_dx<T, true> : score_dx<T, false>;
      kernel<<<static_cast<unsigned>((rows + kBlockRows - 1) / kBlockRows), kThreads, 0, handle_of(stream)>>>(
          ds, w, dx, rows, a.T, a.C, a.H);
      check_launch("score backward");
    }
    if (a.dw_HC == nullptr || a.H * a.C == 0) return;
    const std::int64_t pieces = std::clamp<std::int64_t>((rows + 63) / 64, 0, 128);
    const Scratch partial(static_cast<std::size_t>(pieces * a.H * a.C) * sizeof(S), stream);
    if (pieces > 0) {
      const bool wide = a.C % N == 0 && aligned<N>(x);
      const int heads = gradient_heads(a.H);
      const auto kernel = wide ? score_dw_of<T, true>(a.H) : score_dw_of<T, false>(a.H);
      const dim3 grid(static_cast<unsigned>((a.H + heads - 1) / heads),
                      static_cast<unsigned>((a.C + 32 * N - 1) / (32 * N)), static_cast<unsigned>(pieces));
      kernel<<<grid, kThreads, 0, handle_of(stream)>>>(ds, x, partial.as<S>(), rows, a.T, a.C, a.H,
                                                       (rows + pieces - 1) / pieces);
      check_launch("score backward");
    }
    add_partials(partial.as<S>(), pieces, a.H * a.C, static_cast<S*>(a.dw_HC), a.accumulate, stream);
  });
}

}  // namespace sieve::cuda
