// Sums in an order that the extents alone decide: a first kernel sums fixed pieces into fp64 partial sums (fp32 for
// columns), a second adds the pieces in order. No atomics.
#include "tensor/kernels/cuda/pack.cuh"
#include "tensor/kernels/cuda/partials.h"
#include "tensor/kernels/cuda/scratch.h"
#include "tensor/kernels/cuda/strided.cuh"
#include "tensor/kernels/kernels.h"

namespace sieve::cuda {
namespace {

// ---- Any axes of a view: `kept` outputs, each a sum of `terms`, cut into `pieces`.
struct Reduction {
  DeviceView<std::uint64_t, 1> kept, summed;
  std::int64_t outputs = 1, terms = 1, pieces = 1, piece = 1;  // piece: terms in one
};

// Where the i-th term lies behind an output's first one.
__device__ std::int64_t term_at(const Reduction& r, std::int64_t i) {
  std::int64_t at[1];
  r.summed.offsets(static_cast<std::uint64_t>(i), at);
  return at[0];
}

// A thread N neighbouring outputs and a piece: where neighbours are neighbours in x. r.kept counts packs of N.
template <int N, class T>
__global__ void __launch_bounds__(kThreads) reduce_threads(const T* __restrict__ x, Reduction r, double* partial) {
  const std::int64_t packs = r.outputs / N;
  SIEVE_GRID_STRIDE(index, packs * r.pieces) {
    const std::int64_t pack = index % packs, piece = index / packs;
    std::int64_t at[1];
    r.kept.offsets(static_cast<std::uint64_t>(pack), at);
    const std::int64_t begin = piece * r.piece, end = min(r.terms, begin + r.piece);
    double sum[N] = {};
#pragma unroll 4
    for (std::int64_t i = begin; i < end; ++i) {
      const Pack<T, N> v = load_pack<N>(x + at[0] + term_at(r, i));
#pragma unroll
      for (int k = 0; k < N; ++k) sum[k] += static_cast<double>(to_compute(v.at[k]));
    }
#pragma unroll
    for (int k = 0; k < N; ++k) partial[piece * r.outputs + pack * N + k] = sum[k];
  }
}

// Whether all outputs can be read in aligned packs of N; then r.kept counts packs.
template <int N, class T>
bool to_packs(Reduction& r, const T* x) {
  const int last = r.kept.rank - 1;
  if (last < 0 || r.kept.strides[0][last] != 1 || r.kept.extents[last] % N != 0 || !aligned<N>(x)) return false;
  for (int axis = 0; axis < last; ++axis)
    if (r.kept.strides[0][axis] % N != 0) return false;
  for (int axis = 0; axis < r.summed.rank; ++axis)
    if (r.summed.strides[0][axis] % N != 0) return false;
  r.kept.extents[last] /= N;
  r.kept.strides[0][last] *= N;
  return true;
}

// A warp an output and piece: where the terms of an output are neighbours.
template <class T>
__global__ void __launch_bounds__(kThreads) reduce_warps(const T* __restrict__ x, Reduction r, double* partial) {
  const std::int64_t warps = static_cast<std::int64_t>(gridDim.x) * (kThreads / 32);
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
       index < r.outputs * r.pieces; index += warps) {
    std::int64_t at[1];
    r.kept.offsets(static_cast<std::uint64_t>(index % r.outputs), at);
    const std::int64_t begin = index / r.outputs * r.piece, end = min(r.terms, begin + r.piece);
    double sum = 0;
#pragma unroll 4
    for (std::int64_t i = begin + lane; i < end; i += 32)
      sum += static_cast<double>(to_compute(x[at[0] + term_at(r, i)]));
    sum = warp_sum(sum);
    if (lane == 0) partial[index] = sum;
  }
}

template <class O>
__global__ void __launch_bounds__(kThreads)
    reduce_pieces(const double* __restrict__ partial, std::int64_t outputs, std::int64_t pieces, O* out) {
  SIEVE_GRID_STRIDE(i, outputs) {
    double sum = 0;
#pragma unroll 4
    for (std::int64_t piece = 0; piece < pieces; ++piece) sum += partial[piece * outputs + i];
    out[i] = to_element<O>(static_cast<compute_t<O>>(sum));
  }
}

// Enough pieces to fill a large GPU, none shorter than `least` terms; a function of the extents alone.
void cut(Reduction& r, std::int64_t workers, std::int64_t least) {
  const std::int64_t wanted = (workers + r.outputs - 1) / r.outputs;
  r.pieces = std::clamp<std::int64_t>(std::min(wanted, (r.terms + least - 1) / least), 1, 4096);
  r.piece = std::max<std::int64_t>(1, (r.terms + r.pieces - 1) / r.pieces);
}

Reduction split(const ReduceArgs& args, bool& kept_are_neighbours) {
  // A view whose second operand is the output: stride 0 along summed axes.
  Extents kept_extents = args.extents, marks{};
  for (std::size_t axis = 0; axis < kMaxRank; ++axis)
    if (args.reduce[axis]) kept_extents[axis] = 1;
  const Extents dense = cpu::dense_strides(args.rank, kept_extents);
  for (std::size_t axis = 0; axis < kMaxRank; ++axis) marks[axis] = args.reduce[axis] ? 0 : dense[axis];
  const auto view = cpu::coalesce(cpu::View<2>{args.rank, args.extents, {args.x_strides, marks}});
  Reduction r;
  kept_are_neighbours = false;
  for (std::size_t axis = 0; axis < static_cast<std::size_t>(view.rank); ++axis) {
    const bool summed = view.strides[1][axis] == 0;
    auto& side = summed ? r.summed : r.kept;
    side.extents[side.rank] = static_cast<std::uint64_t>(view.extents[axis]);
    side.strides[0][side.rank++] = view.strides[0][axis];
    (summed ? r.terms : r.outputs) *= view.extents[axis];
    if (!summed) kept_are_neighbours = view.strides[0][axis] == 1;
  }
  return r;
}

// ---- Everything, in fp64.
constexpr int kSumThreads = 256, kSumPacks = 8;

template <class T>
constexpr std::int64_t kSumBlock = kSumThreads* kSumPacks* kPack<T>;  // elements a block adds

template <class T>
__global__ void __launch_bounds__(kSumThreads)
    sum_blocks(const T* __restrict__ x, std::int64_t n, bool square, bool wide, double* partial) {
  constexpr int N = kPack<T>;
  const std::int64_t first = blockIdx.x * kSumBlock<T>;
  Pack<T, N> v[kSumPacks];
#pragma unroll
  for (int u = 0; u < kSumPacks; ++u) {
    const std::int64_t i = first + (u * kSumThreads + static_cast<int>(threadIdx.x)) * N;
    v[u] = load_part<N>(x + i, n - i, wide);
  }
  double sum = 0;
#pragma unroll
  for (int u = 0; u < kSumPacks; ++u) {
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const double d = static_cast<double>(to_compute(v[u].at[k]));
      sum += square ? d * d : d;
    }
  }
  sum = block_reduce(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(1024) sum_partials(const double* __restrict__ partial, std::int64_t n, double* out) {
  double sum = 0;
#pragma unroll 8
  for (std::int64_t i = threadIdx.x; i < n; i += 1024) sum += partial[i];
  sum = block_reduce(sum);
  if (threadIdx.x == 0) *out = sum;
}

// ---- Columns. A warp reads rows of 32 packs, every eighth of its block's piece of the rows.
constexpr int kColumnWarps = 8;

template <class T>
__global__ void __launch_bounds__(32 * kColumnWarps)
    column_pieces(const T* __restrict__ x, std::int64_t R, std::int64_t N, std::int64_t ld, std::int64_t piece,
                  bool wide, compute_t<T>* partial) {
  using C = compute_t<T>;
  constexpr int W = kPack<T>;
  __shared__ C sums[kColumnWarps][32 * W];
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const std::int64_t block = blockIdx.x * static_cast<std::int64_t>(32 * W), column = block + lane * W;
  const std::int64_t begin = blockIdx.y * piece, end = min(R, begin + piece);
  C sum[W] = {};
  if (column < N) {
#pragma unroll 4
    for (std::int64_t r = begin + warp; r < end; r += kColumnWarps) {
      const Pack<T, W> v = load_part<W>(x + r * ld + column, N - column, wide);
#pragma unroll
      for (int k = 0; k < W; ++k) sum[k] += to_compute(v.at[k]);
    }
  }
#pragma unroll
  for (int k = 0; k < W; ++k) sums[warp][k * 32 + lane] = sum[k];  // one bank a lane
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < 32 * W; i += 32 * kColumnWarps) {
    const std::int64_t to = block + i;
    if (to >= N) continue;
    const int at = i % W * 32 + i / W;
    C total = 0;
    for (int w = 0; w < kColumnWarps; ++w) total += sums[w][at];
    partial[blockIdx.y * N + to] = total;
  }
}

}  // namespace

void run(const ReduceArgs& args, Stream stream) {
  require(args.out_dtype == args.dtype || args.out_dtype == compute_dtype(args.dtype), "reduce", name_of(args.dtype),
          " into ", name_of(args.out_dtype));
  bool kept_are_neighbours = false;
  Reduction r = split(args, kept_are_neighbours);
  if (r.outputs == 0) return;
  const bool by_threads = kept_are_neighbours || r.terms < 8;
  cut(r, by_threads ? 1 << 18 : 1 << 13, by_threads ? 32 : 1024);
  const std::int64_t tasks = r.outputs * r.pieces;
  const Scratch partial(static_cast<std::size_t>(tasks) * sizeof(double), stream);
  double* sums = partial.as<double>();
  dispatch_float(args.dtype, "reduce", [&]<class T>() {
    const T* x = static_cast<const T*>(args.x);
    constexpr int N = kPack<T>;
    if (by_threads && to_packs<N>(r, x)) {
      reduce_threads<N, T><<<blocks_for(tasks / N), kThreads, 0, handle_of(stream)>>>(x, r, sums);
    } else if (by_threads) {
      reduce_threads<1, T><<<blocks_for(tasks), kThreads, 0, handle_of(stream)>>>(x, r, sums);
    } else {
      reduce_warps<T><<<blocks_for(tasks * 32), kThreads, 0, handle_of(stream)>>>(x, r, sums);
    }
  });
  check_launch("reduce");
  dispatch_float(args.out_dtype, "reduce", [&]<class O>() {
    reduce_pieces<O><<<blocks_for(r.outputs), kThreads, 0, handle_of(stream)>>>(sums, r.outputs, r.pieces,
                                                                                static_cast<O*>(args.out));
  });
  check_launch("reduce");
}

void run(const SumArgs& args, Stream stream) {
  dispatch_float(args.dtype, "sum", [&]<class T>() {
    const T* x = static_cast<const T*>(args.x);
    const std::int64_t blocks = (args.n + kSumBlock<T> - 1) / kSumBlock<T>;
    const Scratch partial(static_cast<std::size_t>(blocks) * sizeof(double), stream);
    if (blocks > 0) {
      sum_blocks<T><<<static_cast<unsigned>(blocks), kSumThreads, 0, handle_of(stream)>>>(
          x, args.n, args.square, aligned<kPack<T>>(x), partial.as<double>());
      check_launch("sum");
    }
    sum_partials<<<1, 1024, 0, handle_of(stream)>>>(partial.as<double>(), blocks, args.sum);
    check_launch("sum");
  });
}

void run(const ColumnSumArgs& args, Stream stream) {
  if (args.N == 0) return;
  dispatch_float(args.dtype, "column sum", [&]<class T>() {
    using C = compute_t<T>;
    constexpr int W = kPack<T>;
    const T* x = static_cast<const T*>(args.x_RN);
    C* out = static_cast<C*>(args.out_N);
    const std::int64_t S = std::clamp<std::int64_t>((args.R + 63) / 64, 0, 256),
                       piece = S > 0 ? (args.R + S - 1) / S : 0;
    const Scratch partial(static_cast<std::size_t>(S * args.N) * sizeof(C), stream);
    if (S > 0) {
      const bool wide = aligned<W>(x) && args.ld % W == 0;
      const dim3 grid(static_cast<unsigned>((args.N + 32 * W - 1) / (32 * W)), static_cast<unsigned>(S));
      column_pieces<T>
          <<<grid, 32 * kColumnWarps, 0, handle_of(stream)>>>(x, args.R, args.N, args.ld, piece, wide, partial.as<C>());
      check_launch("column sum");
    }
    add_partials(partial.as<C>(), S, args.N, out, args.accumulate, stream);
  });
}

}  // namespace sieve::cuda
