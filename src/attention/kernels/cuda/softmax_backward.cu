// The way back through the softmax engine: delta = dO . o per query and head, then three passes (backward.cuh), then
// the sums of the score gradient over the heads that share a score.
#include "attention/kernels/cuda/backward.cuh"
#include "attention/kernels/cuda/hopper/hopper.h"

namespace sieve::cuda {
namespace {

// One warp per (b, i, h).
template <class C>
__global__ void sum_products(const Engine e, C* delta) {
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

void make_delta(const Engine& e, void* delta, Stream stream) {
  const std::int64_t blocks = (e.B * e.T * e.H + kThreads / 32 - 1) / (kThreads / 32);
  const auto go = [&]<class C>(C* out) {
    start("attention delta", sum_products<C>, blocks, kThreads, 0, stream, e, out);
  };
  if (e.dtype == DType::f64) go(static_cast<double*>(delta));
  else go(static_cast<float*>(delta));
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
  if (scores && f.H == f.gate.heads) e.row_heads = a.row_BHT;  // one head a score: nothing is left to add up
  if (scores && f.Hkv == f.gate.heads) e.column_heads = a.column_BHT;
  const bool gathers = f.device_plan.from_BHT != nullptr;
  if (f.device_plan.warpgroups) {
    hopper::make_delta(e, reinterpret_cast<float*>(memory + space.delta), stream);
    hopper::backward_queries(e, stream);
    if (gathers) hopper::backward_rows(e, stream);
    hopper::backward_keys(e, stream);
  } else {
    make_delta(e, memory + space.delta, stream);
    backward_queries(e, stream);
    if (gathers) backward_rows(e, stream);
    backward_keys(e, stream);
  }
  if (!scores) return;
  const std::int64_t Hs = f.gate.heads, n = f.B * Hs * f.T;
  if (f.Hkv > Hs) {
    start("score columns", sum_heads, blocks_for(n), kThreads, 0, stream, e.column_heads, a.column_BHT, n, f.T,
          f.Hkv / Hs);
  }
  if (f.H > Hs)
    start("score rows", sum_heads, blocks_for(n), kThreads, 0, stream, e.row_heads, a.row_BHT, n, f.T, f.H / Hs);
}

}  // namespace sieve::cuda
