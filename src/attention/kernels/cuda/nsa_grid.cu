// Counts the compressed keys of packed rows. A block of threads goes through a row; a compressed key ends wherever a
// whole number of strides lies between its document's first l positions and the position.
#include "attention/kernels/cuda/launch.cuh"
#include "attention/kernels/cuda/nsa_grid.cuh"
#include "tensor/kernels/cuda/block.cuh"

namespace sieve::cuda {
namespace {

constexpr int kWarps = kThreads / 32;

__global__ void __launch_bounds__(kThreads) lay_grid(const GridView g, std::int32_t* ends, std::int32_t* firsts) {
  __shared__ int in_warp[kWarps];
  const auto thread = static_cast<int>(threadIdx.x);
  const std::int64_t b = blockIdx.x;
  int passed = 0;
  for (std::int64_t base = 0; base < g.T; base += kThreads) {
    const std::int64_t t = base + thread;
    const int n = t < g.T ? static_cast<int>(t) - g.starts[b * g.T + t] + 1 : 0;
    const bool closes = n >= g.l && (n - g.l) % g.s == 0;
    const unsigned lanes = __ballot_sync(0xffffffffu, closes);
    if (thread % 32 == 0) in_warp[thread / 32] = __popc(lanes);
    __syncthreads();
    int before = passed;
    for (int w = 0; w < kWarps; ++w) {
      before += w < thread / 32 ? in_warp[w] : 0;
      passed += in_warp[w];
    }
    before += __popc(lanes & ((1u << (thread % 32)) - 1));
    if (t < g.T) ends[b * g.T + t] = before + (closes ? 1 : 0);
    if (closes && before < g.M) firsts[b * g.M + before] = static_cast<std::int32_t>(t) - g.l + 1;
    __syncthreads();  // before the next counts
  }
  for (std::int64_t m = passed + thread; m < g.M; m += kThreads) firsts[b * g.M + m] = -1;
}

std::size_t bytes_of(const CompressedGrid& grid, std::int64_t each) {
  return grid.document_starts_BT == nullptr ? 0 : static_cast<std::size_t>(grid.B * each) * sizeof(std::int32_t);
}

}  // namespace

DeviceGrid::DeviceGrid(const CompressedGrid& grid, const Stream& stream)
    : ends_(bytes_of(grid, grid.T), stream), firsts_(bytes_of(grid, grid.M()), stream) {
  view.B = grid.B, view.T = grid.T, view.M = grid.M();
  // No row is longer than 2^31 - 1: where l or s are, no compressed key exists, or one.
  constexpr std::int64_t kMost = 0x7fffffff;
  view.l = static_cast<int>(std::min(grid.l, kMost)), view.s = static_cast<int>(std::min(grid.s, kMost));
  if (grid.document_starts_BT == nullptr || grid.T == 0) return;
  view.starts = grid.document_starts_BT;
  start("compressed keys' grid", lay_grid, grid.B, kThreads, 0, stream, view, ends_.as<std::int32_t>(),
        firsts_.as<std::int32_t>());
  view.ends = ends_.as<std::int32_t>(), view.firsts = firsts_.as<std::int32_t>();
}

}  // namespace sieve::cuda
