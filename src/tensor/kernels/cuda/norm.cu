// Layer norm and RMS norm. A row stays in the registers of its threads: a warp for the usual widths, a block for wide
// ones; rows that fit neither are read again for each pass. Backward gives dx and partial sums of the weights'
// gradients in one pass over dy and x; a second kernel adds the partial sums of the (fixed) blocks in order.
#include <optional>

#include "tensor/kernels/cuda/pack.cuh"
#include "tensor/kernels/cuda/partials.h"
#include "tensor/kernels/cuda/scratch.h"
#include "tensor/kernels/kernels.h"

namespace sieve::cuda {
namespace {

// Both families: `centred` is layer norm.
template <class T>
struct Forward {
  const T *x, *w, *b;
  T* y;
  compute_t<T>*mean_out, *rstd_out;
  std::int64_t R, D;
  compute_t<T> eps;
  bool centred;
};
template <class T>
struct Backward {
  const T *dy, *x, *w;
  const compute_t<T>*mean, *rstd;
  T* dx;
  const T* dx_add;
  compute_t<T>*dw, *db;  // partial sums, a row of D for each block; null if not wanted
  std::int64_t R, D;
  bool centred;
};

template <int G, class C>
__device__ C row_sum(C v) {
  if constexpr (G == 32) {
    return warp_sum(v);
  } else {
    return block_reduce(v);
  }
}

// G threads a row, P packs a thread. D is a multiple of the pack and all rows are aligned.
template <class T, int G, int P>
__global__ void __launch_bounds__(kThreads) norm_forward(Forward<T> a) {
  using C = compute_t<T>;
  constexpr int N = kPack<T>;
  const std::int64_t r = static_cast<std::int64_t>(blockIdx.x) * (kThreads / G) + threadIdx.x / G;
  if (r >= a.R) return;  // whole warps or the whole block
  const int thread = static_cast<int>(threadIdx.x) % G, D = static_cast<int>(a.D);
  const T* x = a.x + r * a.D;
  Pack<T, N> v[P];
  C sum = 0;
#pragma unroll
  for (int p = 0; p < P; ++p) {
    const int i = (p * G + thread) * N;
    if (i < D) v[p] = load_pack<N>(x + i);
  }
#pragma unroll
  for (int p = 0; p < P; ++p) {
    if ((p * G + thread) * N >= D) continue;
#pragma unroll
    for (int k = 0; k < N; ++k) sum += to_compute(v[p].at[k]);
  }
  const C mean = a.centred ? row_sum<G>(sum) / static_cast<C>(D) : C(0);
  C square = 0;
#pragma unroll
  for (int p = 0; p < P; ++p) {
    if ((p * G + thread) * N >= D) continue;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const C c = to_compute(v[p].at[k]) - mean;
      square += c * c;
    }
  }
  const C rstd = C(1) / sqrt(row_sum<G>(square) / static_cast<C>(D) + a.eps);
#pragma unroll
  for (int p = 0; p < P; ++p) {
    const int i = (p * G + thread) * N;
    if (i >= D) continue;
    const Pack<T, N> w = load_constant<N>(a.w + i);
    Pack<T, N> b{}, y;
    if (a.b != nullptr) b = load_constant<N>(a.b + i);
#pragma unroll
    for (int k = 0; k < N; ++k)
      y.at[k] = to_element<T>((to_compute(v[p].at[k]) - mean) * rstd * to_compute(w.at[k]) + to_compute(b.at[k]));
    store_pack<N>(a.y + r * a.D + i, y);
  }
  if (thread != 0) return;
  if (a.mean_out != nullptr) a.mean_out[r] = mean;
  if (a.rstd_out != nullptr) a.rstd_out[r] = rstd;
}

// Any D, any alignment: a block a row, one pass for each statistic.
template <class T>
__global__ void __launch_bounds__(kThreads) norm_forward_any(Forward<T> a) {
  using C = compute_t<T>;
  for (std::int64_t r = blockIdx.x; r < a.R; r += gridDim.x) {
    const T* x = a.x + r * a.D;
    C mean = 0, square = 0;
    if (a.centred) {
      for (std::int64_t i = threadIdx.x; i < a.D; i += kThreads) mean += to_compute(x[i]);
      mean = block_reduce(mean) / static_cast<C>(a.D);
    }
    for (std::int64_t i = threadIdx.x; i < a.D; i += kThreads) {
      const C c = to_compute(x[i]) - mean;
      square += c * c;
    }
    const C rstd = C(1) / sqrt(block_reduce(square) / static_cast<C>(a.D) + a.eps);
    for (std::int64_t i = threadIdx.x; i < a.D; i += kThreads) {
      const C bias = a.b != nullptr ? to_compute(a.b[i]) : C(0);
      a.y[r * a.D + i] = to_element<T>((to_compute(x[i]) - mean) * rstd * to_compute(a.w[i]) + bias);
    }
    if (threadIdx.x != 0) continue;
    if (a.mean_out != nullptr) a.mean_out[r] = mean;
    if (a.rstd_out != nullptr) a.rstd_out[r] = rstd;
  }
}

// The blocks of backward: a number that the card has no say in, since the order of the sums depends on it.
constexpr std::int64_t kWarpRowBlocks = 256, kBlockRowBlocks = 512;

// A thread's columns of dw or db over the rows it has seen are added to the block's in the order of the warps. In
// shared memory the columns lie so that neighbouring threads use neighbouring banks.
template <class T, int G, int P>
__device__ void store_partials(const compute_t<T> (&mine)[P][kPack<T>], compute_t<T>* out, std::int64_t D) {
  constexpr int N = kPack<T>;
  extern __shared__ double shared_memory[];
  auto* sums = reinterpret_cast<compute_t<T>*>(shared_memory);
  const int thread = static_cast<int>(threadIdx.x) % G;
  for (int turn = 0; turn < kThreads / G; ++turn) {
    __syncthreads();  // also before this call writes what an earlier one still reads
    if (static_cast<int>(threadIdx.x) / G != turn) continue;
#pragma unroll
    for (int p = 0; p < P; ++p) {
#pragma unroll
      for (int k = 0; k < N; ++k) {
        compute_t<T>& sum = sums[(p * N + k) * G + thread];
        sum = turn == 0 ? mine[p][k] : sum + mine[p][k];
      }
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < D; i += kThreads)
    out[blockIdx.x * D + i] = sums[(i / (N * G) * N + i % N) * G + i / N % G];
}

// With xhat = (x - mean) rstd and g = dy w: dx = rstd (g - mean(g) - xhat mean(g xhat)) + dx_add; RMS norm has no
// mean(g). A thread reads all it needs of a row before it writes, so dx may be dy or dx_add.
template <class T, int G, int P>
__global__ void __launch_bounds__(kThreads, P* kPack<T> * sizeof(T) < 128 ? 2 : 1) norm_backward(Backward<T> a) {
  using C = compute_t<T>;
  constexpr int N = kPack<T>;
  const int thread = static_cast<int>(threadIdx.x) % G, D = static_cast<int>(a.D);
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * (kThreads / G);
  C dw[P][N] = {}, db[P][N] = {};
  for (std::int64_t r = blockIdx.x * static_cast<std::int64_t>(kThreads / G) + threadIdx.x / G; r < a.R; r += step) {
    Pack<T, N> dy[P], x[P];
#pragma unroll
    for (int p = 0; p < P; ++p) {
      const int i = (p * G + thread) * N;
      if (i >= D) continue;
      dy[p] = load_pack<N>(a.dy + r * a.D + i);
      x[p] = load_pack<N>(a.x + r * a.D + i);
    }
    const C mean = a.centred ? a.mean[r] : C(0), rstd = a.rstd[r];
    C sum_g = 0, sum_gx = 0;
#pragma unroll
    for (int p = 0; p < P; ++p) {
      const int i = (p * G + thread) * N;
      if (i >= D) continue;
      const Pack<T, N> w = load_constant<N>(a.w + i);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const C d = to_compute(dy[p].at[k]), xhat = (to_compute(x[p].at[k]) - mean) * rstd;
        const C g = d * to_compute(w.at[k]);
        sum_g += g;
        sum_gx += g * xhat;
        dw[p][k] += d * xhat;
        db[p][k] += d;
      }
    }
    if (a.dx == nullptr) continue;  // all threads or none
    Pack<T, N> add[P] = {};         // on its way while the row is summed
#pragma unroll
    for (int p = 0; p < P; ++p) {
      const int i = (p * G + thread) * N;
      if (a.dx_add != nullptr && i < D) add[p] = load_pack<N>(a.dx_add + r * a.D + i);
    }
    const C mean_g = a.centred ? row_sum<G>(sum_g) / static_cast<C>(D) : C(0);
    const C mean_gx = row_sum<G>(sum_gx) / static_cast<C>(D);
#pragma unroll
    for (int p = 0; p < P; ++p) {
      const int i = (p * G + thread) * N;
      if (i >= D) continue;
      const Pack<T, N> w = load_constant<N>(a.w + i);
      Pack<T, N> dx;
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const C g = to_compute(dy[p].at[k]) * to_compute(w.at[k]), xhat = (to_compute(x[p].at[k]) - mean) * rstd;
        dx.at[k] = to_element<T>(rstd * (g - mean_g - xhat * mean_gx) + to_compute(add[p].at[k]));
      }
      store_pack<N>(a.dx + r * a.D + i, dx);
    }
  }
  if (a.dw != nullptr) store_partials<T, G, P>(dw, a.dw, a.D);
  if (a.db != nullptr) store_partials<T, G, P>(db, a.db, a.D);
}

// Any D, any alignment: weight gradients a thread a column, dx a block a row.
constexpr std::int64_t kAnyRows = 64;

template <class T>
__global__ void __launch_bounds__(kThreads) norm_weights_any(Backward<T> a) {
  using C = compute_t<T>;
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (column >= a.D) return;
  C dw = 0, db = 0;
  for (std::int64_t r = blockIdx.x * kAnyRows; r < min(a.R, (blockIdx.x + 1) * kAnyRows); ++r) {
    const C d = to_compute(a.dy[r * a.D + column]), mean = a.centred ? a.mean[r] : C(0);
    dw += d * ((to_compute(a.x[r * a.D + column]) - mean) * a.rstd[r]);
    db += d;
  }
  if (a.dw != nullptr) a.dw[blockIdx.x * a.D + column] = dw;
  if (a.db != nullptr) a.db[blockIdx.x * a.D + column] = db;
}

template <class T>
__global__ void __launch_bounds__(kThreads) norm_dx_any(Backward<T> a) {
  using C = compute_t<T>;
  for (std::int64_t r = blockIdx.x; r < a.R; r += gridDim.x) {
    const C mean = a.centred ? a.mean[r] : C(0), rstd = a.rstd[r];
    const T *dy = a.dy + r * a.D, *x = a.x + r * a.D;
    C sum_g = 0, sum_gx = 0;
    for (std::int64_t i = threadIdx.x; i < a.D; i += kThreads) {
      const C g = to_compute(dy[i]) * to_compute(a.w[i]);
      sum_g += g;
      sum_gx += g * ((to_compute(x[i]) - mean) * rstd);
    }
    const C mean_g = a.centred ? block_reduce(sum_g) / static_cast<C>(a.D) : C(0);
    const C mean_gx = block_reduce(sum_gx) / static_cast<C>(a.D);
    for (std::int64_t i = threadIdx.x; i < a.D; i += kThreads) {
      const C g = to_compute(dy[i]) * to_compute(a.w[i]), xhat = (to_compute(x[i]) - mean) * rstd;
      const C add = a.dx_add != nullptr ? to_compute(a.dx_add[r * a.D + i]) : C(0);
      a.dx[r * a.D + i] = to_element<T>(rstd * (g - mean_g - xhat * mean_gx) + add);
    }
  }
}

// How a row is laid over threads: G of them with P packs each; P 0: read again for each pass.
struct Layout {
  int G = 0, P = 0;
};
Layout layout_of(std::int64_t D, std::int64_t pack, bool wide, int most_warp_packs, int most_block_packs) {
  const std::int64_t packs = D / pack;
  if (!wide || D % pack != 0 || D == 0) return {};
  if (packs <= 32 * most_warp_packs) return {32, static_cast<int>((packs + 31) / 32)};
  if (packs <= kThreads * most_block_packs) return {kThreads, static_cast<int>((packs + kThreads - 1) / kThreads)};
  return {};
}

// Calls f<G, P>() with the smallest P of the list that holds `layout`; false if it is laid over no threads.
template <int G, int... P, class F>
bool with_packs(const Layout& layout, F&& f) {
  if (layout.G != G) return false;
  bool done = false;
  ((!done && layout.P <= P ? (f.template operator()<G, P>(), done = true) : false), ...);
  return done;
}

template <class T>
void forward(const Forward<T>& a, const Stream& stream) {
  if (a.R == 0 || a.D == 0) {
    if (a.R > 0) norm_forward_any<T><<<blocks_for(a.R, 1), kThreads, 0, handle_of(stream)>>>(a);
    return check_launch("norm");
  }
  bool done = false;
  if constexpr (!std::is_same_v<T, double>) {
    constexpr int N = kPack<T>;
    const bool wide = aligned<N>(a.x) && aligned<N>(a.w) && aligned<N>(a.b) && aligned<N>(a.y);
    const Layout layout = layout_of(a.D, N, wide, 8, 8);
    const auto launch_rows = [&]<int G, int P>() {
      const auto blocks = static_cast<unsigned>((a.R + kThreads / G - 1) / (kThreads / G));
      norm_forward<T, G, P><<<blocks, kThreads, 0, handle_of(stream)>>>(a);
    };
    done = with_packs<32, 1, 2, 3, 4, 6, 8>(layout, launch_rows) || with_packs<kThreads, 2, 4, 8>(layout, launch_rows);
  }
  if (!done) {
    const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(a.R, 1 << 16));
    norm_forward_any<T><<<blocks, kThreads, 0, handle_of(stream)>>>(a);
  }
  check_launch("norm");
}

// The first stage: dx and partial sums. Returns the number of rows of partial sums; `sums` are 2 * that * D numbers.
template <class T, class GetScratch>
std::int64_t launch_backward(Backward<T> a, bool want_dw, bool want_db, const GetScratch& scratch,
                             const Stream& stream) {
  std::int64_t S = 0;
  const auto place = [&](std::int64_t rows) {
    S = rows;
    compute_t<T>* sums = scratch(rows);
    a.dw = want_dw ? sums : nullptr;
    a.db = want_db ? sums + (want_dw ? rows * a.D : 0) : nullptr;
  };
  if constexpr (!std::is_same_v<T, double>) {
    constexpr int N = kPack<T>;
    const bool wide =
        aligned<N>(a.dy) && aligned<N>(a.x) && aligned<N>(a.w) && aligned<N>(a.dx) && aligned<N>(a.dx_add);
    const Layout layout = layout_of(a.D, N, wide, 32 / N, 4);
    const auto launch_rows = [&]<int G, int P>() {
      constexpr std::int64_t each = kThreads / G;
      place(std::min((a.R + each - 1) / each, G == 32 ? kWarpRowBlocks : kBlockRowBlocks));
      constexpr std::size_t bytes = sizeof(compute_t<T>) * P * N * G;
      norm_backward<T, G, P><<<static_cast<unsigned>(S), kThreads, bytes, handle_of(stream)>>>(a);
    };
    if (with_packs<32, 1, 2, 24 / N, 32 / N>(layout, launch_rows) || with_packs<kThreads, 1, 2, 4>(layout, launch_rows))
      return S;
  }
  if (want_dw || want_db) {  // before dx, which may overwrite dy
    place((a.R + kAnyRows - 1) / kAnyRows);
    const dim3 grid(static_cast<unsigned>(S), static_cast<unsigned>((a.D + kThreads - 1) / kThreads));
    norm_weights_any<T><<<grid, kThreads, 0, handle_of(stream)>>>(a);
    check_launch("norm backward");
  }
  if (a.dx != nullptr)
    norm_dx_any<T><<<static_cast<unsigned>(std::min<std::int64_t>(a.R, 1 << 16)), kThreads, 0, handle_of(stream)>>>(a);
  return S;
}

template <class T>
void backward(const Backward<T>& a, void* dw_D, void* db_D, bool accumulate, const Stream& stream) {
  using C = compute_t<T>;
  if (a.D == 0) return;
  std::optional<Scratch> partial;
  std::int64_t S = 0;
  const auto scratch = [&](std::int64_t rows) {
    const int arrays = (dw_D != nullptr) + (db_D != nullptr);
    partial.emplace(static_cast<std::size_t>(arrays * rows * a.D) * sizeof(C), stream);
    return partial->template as<C>();
  };
  if (a.R > 0) {
    S = launch_backward(a, dw_D != nullptr, db_D != nullptr, scratch, stream);
    check_launch("norm backward");
  }
  const C* sums = partial ? partial->template as<C>() : nullptr;
  if (dw_D != nullptr) add_partials(sums, S, a.D, static_cast<C*>(dw_D), accumulate, stream);
  if (db_D != nullptr)
    add_partials(sums + (dw_D != nullptr ? S * a.D : 0), S, a.D, static_cast<C*>(db_D), accumulate, stream);
}

}  // namespace

void run(const LayerNormArgs& a, Stream stream) {
  dispatch_float(a.dtype, "layer norm", [&]<class T>() {
    using C = compute_t<T>;
    forward<T>({static_cast<const T*>(a.x_RD), static_cast<const T*>(a.w_D), static_cast<const T*>(a.b_D),
                static_cast<T*>(a.y_RD), static_cast<C*>(a.mean_R), static_cast<C*>(a.rstd_R), a.R, a.D,
                static_cast<C>(a.eps), true},
               stream);
  });
}

void run(const RmsNormArgs& a, Stream stream) {
  dispatch_float(a.dtype, "rms norm", [&]<class T>() {
    using C = compute_t<T>;
    forward<T>({static_cast<const T*>(a.x_RD), static_cast<const T*>(a.w_D), nullptr, static_cast<T*>(a.y_RD), nullptr,
                static_cast<C*>(a.rstd_R), a.R, a.D, static_cast<C>(a.eps), false},
               stream);
  });
}

void run(const LayerNormBackwardArgs& a, Stream stream) {
  dispatch_float(a.dtype, "layer norm", [&]<class T>() {
    using C = compute_t<T>;
    backward<T>({static_cast<const T*>(a.dy_RD), static_cast<const T*>(a.x_RD), static_cast<const T*>(a.w_D),
                 static_cast<const C*>(a.mean_R), static_cast<const C*>(a.rstd_R), static_cast<T*>(a.dx_RD),
                 static_cast<const T*>(a.dx_add_RD), nullptr, nullptr, a.R, a.D, true},
                a.dw_D, a.db_D, a.accumulate, stream);
  });
}

void run(const RmsNormBackwardArgs& a, Stream stream) {
  dispatch_float(a.dtype, "rms norm", [&]<class T>() {
    using C = compute_t<T>;
    backward<T>({static_cast<const T*>(a.dy_RD), static_cast<const T*>(a.x_RD), static_cast<const T*>(a.w_D), nullptr,
                 static_cast<const C*>(a.rstd_R), static_cast<T*>(a.dx_RD), static_cast<const T*>(a.dx_add_RD), nullptr,
                 nullptr, a.R, a.D, false},
                a.dw_D, nullptr, a.accumulate, stream);
  });
}

}  // namespace sieve::cuda
