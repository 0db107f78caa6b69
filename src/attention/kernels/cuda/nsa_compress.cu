// Rows of compressed keys and their way back. Letters as in kernels/nsa.h. A position is gathered from the few
// compressed keys that hold it; what the places get is summed piece by piece in fp64, then piece after piece.
#include "attention/kernels/cuda/launch.cuh"
#include "attention/kernels/cuda/nsa_grid.cuh"
#include "attention/kernels/cuda/nsa_pack.cuh"
#include "tensor/kernels/cuda/scratch.h"

namespace sieve::cuda {
namespace {

constexpr std::int64_t kPieces = 512;  // of the compressed keys of all rows and heads
constexpr int kGroups = kThreads / 32;

// A block of threads a compressed key and head.
template <class T, int V>
__global__ void __launch_bounds__(kThreads) compress_rows(const CompressRowsArgs a, const GridView grid) {
  const auto M = static_cast<unsigned>(grid.M), H = static_cast<unsigned>(a.H);
  const std::int64_t m = blockIdx.x % M, h = blockIdx.x / M % H, b = blockIdx.x / M / H;
  const int first = grid.first(b, m), packs = static_cast<int>(a.D) / V, all = grid.l * packs;
  const T* from = static_cast<const T*>(a.x_BTF) + ((b * grid.T + first) * a.H + h) * a.D;
  const T* places = static_cast<const T*>(a.positions_LD);
  T* out = static_cast<T*>(a.out_BHML) + blockIdx.x * a.grid.l * a.D;
  for (int x = static_cast<int>(threadIdx.x); x < all; x += kThreads) {
    const int place = x / packs, d = x % packs * V;
    Elements<T, V> sum, added;
    sum.clear();
    if (first >= 0) {
      sum.read(from + place * a.H * a.D + d);
      added.read(places + static_cast<std::int64_t>(x) * V);
      sum.add(added, 1);
    }
    sum.write(out + static_cast<std::int64_t>(x) * V);
  }
}

// A block of threads a position.
template <class E, int V>
__global__ void __launch_bounds__(kThreads) gather_positions(const CompressRowsBackwardArgs back, const GridView grid) {
  const CompressRowsArgs& a = back.forward;
  const auto T = static_cast<unsigned>(grid.T);
  const std::int64_t b = blockIdx.x / T;
  const auto t = static_cast<int>(blockIdx.x % T);
  const int start = grid.start(b, t), p = t - start, packs = static_cast<int>(a.D) / V,
            all = static_cast<int>(a.H) * packs;
  const int before = grid.seen(b, t).begin, low = p < grid.l ? 0 : (p - grid.l) / grid.s + 1, high = p / grid.s;
  const E* grad = static_cast<const E*>(back.grad_BHML);
  E* dx = static_cast<E*>(back.dx_BTF) + blockIdx.x * a.H * a.D;
  for (int x = static_cast<int>(threadIdx.x); x < all; x += static_cast<int>(blockDim.x)) {
    const std::int64_t h = x / packs, d = x % packs * V;
    Elements<E, V> sum, row;
    sum.clear();
    for (int m = low; m <= high; ++m) {
      if (grid.first(b, before + m) != start + m * grid.s) break;  // the document ends inside it
      row.read(grad + (((b * a.H + h) * grid.M + before + m) * grid.l + p - m * grid.s) * a.D + d);
      sum.add(row, 1);
    }
    sum.write(dx + h * a.D + d);
  }
}

// pieces (kPieces, l D); blockIdx.x = piece * chunks + chunk of columns.
template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    sum_places(const CompressRowsBackwardArgs back, const GridView grid, double* pieces, int chunks) {
  const CompressRowsArgs& a = back.forward;
  const std::int64_t piece = blockIdx.x / chunks, rows = grid.B * a.H * grid.M, columns = grid.l * a.D,
                     column = (blockIdx.x % chunks * kThreads + threadIdx.x) * V;
  if (column >= columns) return;
  const T* grad = static_cast<const T*>(back.grad_BHML) + column;
  double sum[V] = {};
  const std::int64_t from = rows * piece / kPieces, to = rows * (piece + 1) / kPieces;
  std::int64_t head = grid.M > 0 ? from / grid.M : 0, m = from - head * grid.M;
#pragma unroll 4
  for (std::int64_t y = from; y < to; ++y, ++m) {
    if (m == grid.M) m = 0, ++head;
    if (grid.firsts != nullptr && grid.first(head / a.H, m) < 0) continue;
    Elements<T, V> row;
    row.read(grad + y * columns);
#pragma unroll
    for (int n = 0; n < V; ++n) sum[n] += static_cast<double>(row.x[n]);
  }
#pragma unroll
  for (int n = 0; n < V; ++n) pieces[piece * columns + column + n] = sum[n];
}

// 32 columns a block; warp w adds the pieces w, w + 8, .. and the first warp adds the warps.
template <class C>
__global__ void __launch_bounds__(kThreads) add_pieces(const double* pieces, C* dpositions, std::int64_t columns) {
  __shared__ double parts[kGroups][32];
  const int lane = static_cast<int>(threadIdx.x) % 32, group = static_cast<int>(threadIdx.x) / 32;
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * 32 + lane;
  double sum = 0;
  if (column < columns) {
#pragma unroll 8
    for (std::int64_t p = group; p < kPieces; p += kGroups) sum += pieces[p * columns + column];
  }
  parts[group][lane] = sum;
  __syncthreads();
  if (group != 0 || column >= columns) return;
  for (int g = 1; g < kGroups; ++g) sum += parts[g][lane];
  dpositions[column] = static_cast<C>(sum);
}

void check_sizes(const CompressRowsArgs& a) {
  constexpr std::int64_t kMost = std::int64_t{1} << 31;
  require((a.grid.M() == 0 || a.grid.l * a.D < kMost) && a.H * a.D < kMost, "compress_rows", a.grid.l, " rows and ",
          a.H, " heads of ", a.D, " features: each must be less than 2^31 elements");
}

template <class T, int V>
void differentiate_places(const CompressRowsBackwardArgs& b, const GridView& grid, const Stream& stream) {
  const std::int64_t columns = b.forward.grid.l * b.forward.D,
                     chunks = (columns + std::int64_t{kThreads} * V - 1) / (std::int64_t{kThreads} * V);
  const Scratch pieces(static_cast<std::size_t>(kPieces * columns) * sizeof(double), stream);
  start("compressed places", sum_places<T, V>, kPieces * chunks, kThreads, 0, stream, b, grid, pieces.as<double>(),
        static_cast<int>(chunks));
  using C = compute_t<T>;
  start("compressed places' sum", add_pieces<C>, (columns + 31) / 32, kThreads, 0, stream, pieces.as<double>(),
        static_cast<C*>(b.dpositions_LD), columns);
}

}  // namespace

void run(const CompressRowsArgs& a, Stream stream) {
  check_sizes(a);
  const DeviceGrid grid(a.grid, stream);
  by_width(a.dtype, a.D, {a.x_BTF, a.positions_LD, a.out_BHML}, "compress_rows", [&]<class T, int V>() {
    start("compress rows", compress_rows<T, V>, a.grid.B * a.H * a.grid.M(), kThreads, 0, stream, a, grid.view);
  });
}

void run(const CompressRowsBackwardArgs& b, Stream stream) {
  const CompressRowsArgs& a = b.forward;
  check_sizes(a);
  const DeviceGrid grid(a.grid, stream);
  by_width(a.dtype, a.D, {b.grad_BHML, b.dx_BTF}, "compress_rows", [&]<class T, int V>() {
    const auto threads = static_cast<int>(std::clamp<std::int64_t>((a.H * a.D / V + 31) / 32 * 32, 32, kThreads));
    start("compressed rows' gradient", gather_positions<T, V>, a.grid.B * a.grid.T, threads, 0, stream, b, grid.view);
    if (b.dpositions_LD != nullptr) differentiate_places<T, V>(b, grid.view, stream);
  });
}

}  // namespace sieve::cuda
