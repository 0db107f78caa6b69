// The way back through the softmax engine: delta = dO . o per query and head, then three passes (backward.cuh), then
// the sums of the score gradient over the heads that share a score.
#include "attention/kernels/cuda/backward.cuh"

namespace sieve::cuda {
namespace {

// One warp per (b, i, h).
template <class C>
__global__ void make_delta(const Engine e, C* delta) {
  const std::int64_t warp = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32,
                     lane = threadIdx.x % 32;
  if (warp >= e.B * e.T * e.H) return;  // whole warps leave
  C sum = 0;
  for (std::int64_t d = lane; d < e.D; d += 32)
    sum += load_as<C>(e.dout.base, warp * e.D + d, e.dtype) * load_as<C>(e.out, warp * e.D + d, e.dtype);
  sum = warp_sum(sum);
  const std::int64_t h = warp % e.H, i = warp / e.H % e.T, b = warp / e.H / e.T;
  if (lane == 0) delta[(b * e.H + h) * e.T + i] = sum;
}

// out (B, groups, T) = sum over the `each` heads of a group, in their order.
__global__ void sum_heads(const double* heads, double* out, std::int64_t n, std::int64_t T, std::int64_t each) {
  SIEVE_GRID_STRIDE(x, n) {
    const double* first = heads + x / T * each * T + x % T;
    double sum = first[0];
    for (std::int64_t h = 1; h < each; ++h) sum += first[h * T];
    out[x] = sum;
  }
}

}  // namespace

std::size_t workspace_bytes(const SoftmaxBackwardArgs& a, Stream) {
  return workspace_of(a.forward, true, a.column_BHT != nullptr).bytes;
}

void run(const SoftmaxBackwardArgs& a, Stream stream) {
  const SoftmaxForwardArgs& f = a.forward;
  if (f.B * f.T == 0) return;
  const bool scores = a.column_BHT != nullptr;
  const Workspace space = workspace_of(f, true, scores);
  Engine e = prepare(f, space, stream);
  auto* memory = static_cast<unsigned char*>(f.workspace);
  e.dout = {a.dout_BTHD, f.H * f.D, 0, f.dtype};
  e.dqkv = a.dqkv_BTF;
  e.delta = memory + space.delta;
  e.partial = memory + space.partial;
  if (scores) {
    e.column_part = reinterpret_cast<double*>(memory + space.column_part);
    e.column_heads = reinterpret_cast<double*>(memory + space.column_heads);
    e.row_heads = reinterpret_cast<double*>(memory + space.row_heads);
  }
  const std::int64_t blocks = (f.B * f.T * f.H + kThreads / 32 - 1) / (kThreads / 32);
  if (f.dtype == DType::f64) {
    start("attention delta", make_delta<double>, blocks, kThreads, 0, stream, e,
          reinterpret_cast<double*>(memory + space.delta));
  } else {
    start("attention delta", make_delta<float>, blocks, kThreads, 0, stream, e,
          reinterpret_cast<float*>(memory + space.delta));
  }
  backward_queries(e, stream);
  if (f.device_plan.from_BHT != nullptr) backward_rows(e, stream);
  backward_keys(e, stream);
  if (!scores) return;
  const std::int64_t Hs = f.gate.heads, n = f.B * Hs * f.T;
  start("score columns", sum_heads, blocks_for(n), kThreads, 0, stream, e.column_heads, a.column_BHT, n, f.T,
        f.Hkv / Hs);
  start("score rows", sum_heads, blocks_for(n), kThreads, 0, stream, e.row_heads, a.row_BHT, n, f.T, f.H / Hs);
}

}  // namespace sieve::cuda
