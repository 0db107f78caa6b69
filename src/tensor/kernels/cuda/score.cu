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
constexpr int kRows = 4;  // rows a warp takes at once, so that w is read once for all of them

// Place of the score of (row, head) in (B, H, T).
__device__ std::int64_t score_at(std::int64_t row, std::int64_t h, std::int64_t T, std::int64_t H) {
  const std::int64_t b = row / T;
  return (b * H + h) * T + (row - b * T);
}

template <class T, int Heads>
__global__ void __launch_bounds__(kThreads)
    scores(const T* __restrict__ x, const compute_t<T>* __restrict__ w, compute_t<T>* __restrict__ s, std::int64_t rows,
           std::int64_t T_, std::int64_t C, std::int64_t H, bool wide) {
  using S = compute_t<T>;
  constexpr int N = kPack<T>;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::int64_t row0 = (static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32) * kRows;
  if (row0 >= rows) return;
  for (std::int64_t h0 = 0; h0 < H; h0 += Heads) {
    S sum[kRows][Heads] = {};
    for (std::int64_t i = lane * N; i < C; i += 32 * N) {
      Pack<T, N> xs[kRows];
      Pack<S, N> ws[Heads];
#pragma unroll
      for (int r = 0; r < kRows; ++r) xs[r] = load_part<N>(x + min(row0 + r, rows - 1) * C + i, C - i, wide);
#pragma unroll
      for (int h = 0; h < Heads; ++h) ws[h] = load_part<N>(w + min(h0 + h, H - 1) * C + i, C - i, wide);
#pragma unroll
      for (int k = 0; k < N; ++k) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
#pragma unroll
          for (int h = 0; h < Heads; ++h) sum[r][h] = fma(to_compute(xs[r].at[k]), ws[h].at[k], sum[r][h]);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int h = 0; h < Heads; ++h) {
        const S total = warp_sum(sum[r][h]);
        if (lane == r * Heads + h && row0 + r < rows && h0 + h < H) s[score_at(row0 + r, h0 + h, T_, H)] = total;
      }
    }
  }
}

// dx = sum over heads of ds w, heads in order. A warp takes kRows rows and 32 packs of channels.
template <class T>
__global__ void __launch_bounds__(kThreads)
    score_dx(const compute_t<T>* __restrict__ ds, const compute_t<T>* __restrict__ w, T* __restrict__ dx,
             std::int64_t rows, std::int64_t T_, std::int64_t C, std::int64_t H, std::int64_t spans, bool wide) {
  using S = compute_t<T>;
  constexpr int N = kPack<T>;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::int64_t task = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const std::int64_t row0 = task / spans * kRows, i = (task % spans * 32 + lane) * N;
  if (row0 >= rows || i >= C) return;
  std::int64_t at[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) at[r] = score_at(min(row0 + r, rows - 1), 0, T_, H);
  S sum[kRows][N] = {};
#pragma unroll 2
  for (std::int64_t h = 0; h < H; ++h) {
    const Pack<S, N> ws = load_part<N>(w + h * C + i, C - i, wide);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const S g = ds[at[r] + h * T_];
#pragma unroll
      for (int k = 0; k < N; ++k) sum[r][k] = fma(g, ws.at[k], sum[r][k]);
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (row0 + r >= rows) continue;
    Pack<T, N> out;
#pragma unroll
    for (int k = 0; k < N; ++k) out.at[k] = to_element<T>(sum[r][k]);
    store_part<N>(dx + (row0 + r) * C + i, out, C - i, wide);
  }
}

// Partial sums of dw over a piece of the rows, for four heads (blockIdx.x) and 32 packs of channels (blockIdx.y); a
// warp takes every eighth row, the warps are added in order.
constexpr int kHeads = 4;

template <class T>
__global__ void __launch_bounds__(kThreads)
    score_dw(const compute_t<T>* __restrict__ ds, const T* __restrict__ x, compute_t<T>* __restrict__ partial,
             std::int64_t rows, std::int64_t T_, std::int64_t C, std::int64_t H, std::int64_t piece, bool wide) {
  using S = compute_t<T>;
  constexpr int N = kPack<T>;
  __shared__ S sums[kHeads][N][32];
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const std::int64_t h0 = static_cast<std::int64_t>(blockIdx.x) * kHeads;
  const std::int64_t i = (static_cast<std::int64_t>(blockIdx.y) * 32 + lane) * N;
  const std::int64_t begin = blockIdx.z * piece, end = min(rows, begin + piece);
  S sum[kHeads][N] = {};
#pragma unroll 2
  for (std::int64_t r = begin + warp; r < end; r += kWarps) {
    const Pack<T, N> v = load_part<N>(x + r * C + i, C - i, wide);
    const std::int64_t at = score_at(r, 0, T_, H);
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      const S g = ds[at + min(h0 + h, H - 1) * T_];
#pragma unroll
      for (int k = 0; k < N; ++k) sum[h][k] = fma(g, to_compute(v.at[k]), sum[h][k]);
    }
  }
  for (int turn = 0; turn < kWarps; ++turn) {
    __syncthreads();
    if (warp != turn) continue;
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
#pragma unroll
      for (int k = 0; k < N; ++k) sums[h][k][lane] = turn == 0 ? sum[h][k] : sums[h][k][lane] + sum[h][k];
    }
  }
  __syncthreads();
  for (int index = static_cast<int>(threadIdx.x); index < kHeads * N * 32; index += kThreads) {
    const int h = index / (N * 32), channel = index % (N * 32);
    const std::int64_t c = static_cast<std::int64_t>(blockIdx.y) * 32 * N + channel;
    if (h0 + h < H && c < C) partial[(blockIdx.z * H + h0 + h) * C + c] = sums[h][channel % N][channel / N];
  }
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
    const auto blocks = static_cast<unsigned>((rows + kWarps * kRows - 1) / (kWarps * kRows));
    const auto kernel = a.H >= 4 ? scores<T, 4> : scores<T, 1>;
    kernel<<<blocks, kThreads, 0, handle_of(stream)>>>(x, w, static_cast<compute_t<T>*>(a.s_BHT), rows, a.T, a.C, a.H,
                                                       wide);
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
    const std::int64_t spans = (a.C + 32 * N - 1) / (32 * N);
    if (dx != nullptr && rows * a.C > 0) {
      const bool wide = a.C % N == 0 && aligned<N>(dx) && aligned<N>(w);
      const std::int64_t tasks = (rows + kRows - 1) / kRows * spans;
      score_dx<T><<<static_cast<unsigned>((tasks + kWarps - 1) / kWarps), kThreads, 0, handle_of(stream)>>>(
          ds, w, dx, rows, a.T, a.C, a.H, spans, wide);
      check_launch("score backward");
    }
    if (a.dw_HC == nullptr || a.H * a.C == 0) return;
    const std::int64_t pieces = std::clamp<std::int64_t>((rows + 63) / 64, 0, 128);
    const Scratch partial(static_cast<std::size_t>(pieces * a.H * a.C) * sizeof(S), stream);
    if (pieces > 0) {
      const bool wide = a.C % N == 0 && aligned<N>(x);
      const dim3 grid(static_cast<unsigned>((a.H + kHeads - 1) / kHeads), static_cast<unsigned>(spans),
                      static_cast<unsigned>(pieces));
      score_dw<T><<<grid, kThreads, 0, handle_of(stream)>>>(ds, x, partial.as<S>(), rows, a.T, a.C, a.H,
                                                            (rows + pieces - 1) / pieces, wide);
      check_launch("score backward");
    }
    add_partials(partial.as<S>(), pieces, a.H * a.C, static_cast<S*>(a.dw_HC), a.accumulate, stream);
  });
}

}  // namespace sieve::cuda
