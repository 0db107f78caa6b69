// When SparseK drops each key for good, without a sort: at query i key i - window may leave the window, and at most one
// older key the selection, as a query brings one candidate.
#include "attention/kernels/cuda/launch.cuh"
#include "attention/kernels/cuda/row_scan.cuh"
#include "attention/kernels/linear.h"
#include "tensor/kernels/cuda/block.cuh"
#include "tensor/kernels/cuda/scratch.h"

namespace sieve::cuda {
namespace {

struct ExitRow {
  const std::int32_t *from, *to, *starts;
  std::int64_t T, window;

  __device__ ExitRow(const KeyExitArgs& a, std::int64_t row)
      : from(a.from_BHT + row * a.T),
        to(a.to_BHT + row * a.T),
        starts(a.document_starts_BT != nullptr ? a.document_starts_BT + row / a.H * a.T : nullptr),
        T(a.T),
        window(a.window) {}

  __device__ std::int64_t selected_until(std::int64_t j) const { return from[j] < to[j] ? to[j] : 0; }
  __device__ bool same_document(std::int64_t j, std::int64_t i) const {
    return i < T && (starts == nullptr || starts[i] == starts[j]);
  }
  // Key i - window leaves at i.
  __device__ bool leaves_window(std::int64_t i) const {
    const std::int64_t j = i - window;
    return j >= 0 && selected_until(j) <= i && same_document(j, i);
  }
};

// evicted (B, H, T), -1 everywhere before: the key that leaves the selection at each query.
__global__ void find_evicted(const KeyExitArgs a, std::int32_t* evicted) {
  SIEVE_GRID_STRIDE(x, a.B * a.H * a.T) {
    const std::int64_t j = x % a.T, row = x / a.T;
    const ExitRow keys(a, row);
    const std::int64_t exit = keys.selected_until(j);
    if (exit > j + a.window && keys.same_document(j, exit)) evicted[row * a.T + exit] = static_cast<std::int32_t>(j);
  }
}

// A block a row. The evicted key is older than the one that leaves the window, and stands before it.
__global__ void __launch_bounds__(kScanThreads) list_exits(const KeyExitArgs a, const std::int32_t* all_evicted) {
  const std::int64_t row = blockIdx.x;
  const ExitRow keys(a, row);
  const std::int32_t* evicted = all_evicted + row * a.T;
  std::int32_t *first = a.first_BHT + row * (a.T + 1), *out = a.keys_BHT + row * a.T;
  if (threadIdx.x == 0) first[0] = 0;
  scan_row<std::int32_t>(
      a.T, [&](std::int64_t i) { return (evicted[i] >= 0 ? 1 : 0) + (keys.leaves_window(i) ? 1 : 0); },
      [&](std::int64_t i, std::int32_t end) {
        first[i + 1] = end;
        if (keys.leaves_window(i)) out[--end] = static_cast<std::int32_t>(i - a.window);
        if (evicted[i] >= 0) out[--end] = evicted[i];
      });
}

}  // namespace

void run(const KeyExitArgs& a, Stream stream) {
  if (a.B * a.H == 0) return;
  const Scratch evicted(static_cast<std::size_t>(a.B * a.H * a.T) * sizeof(std::int32_t), stream);
  if (a.T > 0) {
    check(cudaMemsetAsync(evicted.as<std::int32_t>(), 0xff,
                          static_cast<std::size_t>(a.B * a.H * a.T) * sizeof(std::int32_t), handle_of(stream)),
          "key exits");
  }
  start("evicted keys", find_evicted, blocks_for(a.B * a.H * a.T), kThreads, 0, stream, a, evicted.as<std::int32_t>());
  start("key exits", list_exits, a.B * a.H, kScanThreads, 0, stream, a, evicted.as<std::int32_t>());
}

}  // namespace sieve::cuda
