// The gated sum of three branches. Eight lanes of a warp take a head of a row. Letters as in kernels/nsa.h.
#include "attention/kernels/cuda/launch.cuh"
#include "attention/kernels/cuda/nsa_pack.cuh"
#include "attention/kernels/nsa.h"

namespace sieve::cuda {
namespace {

constexpr int kLanes = 8, kBranches = 3;

template <class C>
__device__ inline C sigmoid(C x) {
  if constexpr (sizeof(C) == sizeof(float)) return 1 / (1 + expf(-x));
  else return 1 / (1 + exp(-x));
}

// Index of gate (r, c, h), head = r H + h.
__device__ inline std::int64_t gate_at(std::int64_t head, std::int64_t H, int c) {
  const auto heads = static_cast<unsigned>(H), x = static_cast<unsigned>(head);
  return (static_cast<std::int64_t>(x / heads) * kBranches + c) * H + x % heads;
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads) gate_branches(const GateBranchesArgs a) {
  const std::int64_t head = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kLanes;
  if (head >= a.R * a.H) return;
  compute_t<T> gates[kBranches];
#pragma unroll
  for (int c = 0; c < kBranches; ++c)
    gates[c] = sigmoid(load(static_cast<const T*>(a.gates_RCH), gate_at(head, a.H, c)));
  for (std::int64_t d = threadIdx.x % kLanes * V; d < a.D; d += kLanes * V) {
    Elements<T, V> sum, x;
    sum.clear();
#pragma unroll
    for (int c = 0; c < kBranches; ++c) {
      x.read(static_cast<const T*>(a.x_RF[c]) + head * a.D + d);
      sum.add(x, gates[c]);
    }
    sum.write(static_cast<T*>(a.out_RF) + head * a.D + d);
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads) gate_branches_backward(const GateBranchesBackwardArgs b) {
  const GateBranchesArgs& a = b.forward;
  const std::int64_t head = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kLanes;
  const bool real = head < a.R * a.H;  // lanes without a head take part in the sums below
  using C = compute_t<T>;
  C gates[kBranches] = {}, along[kBranches] = {};
#pragma unroll
  for (int c = 0; c < kBranches; ++c)
    if (real) gates[c] = sigmoid(load(static_cast<const T*>(a.gates_RCH), gate_at(head, a.H, c)));
  for (std::int64_t d = threadIdx.x % kLanes * V; real && d < a.D; d += kLanes * V) {
    Elements<T, V> dy, x;
    dy.read(static_cast<const T*>(b.dout_RF) + head * a.D + d);
#pragma unroll
    for (int c = 0; c < kBranches; ++c) {
      x.read(static_cast<const T*>(a.x_RF[c]) + head * a.D + d);
#pragma unroll
      for (int n = 0; n < V; ++n) along[c] += dy.x[n] * x.x[n], x.x[n] = gates[c] * dy.x[n];
      x.write(static_cast<T*>(b.dx_RF[c]) + head * a.D + d);
    }
  }
#pragma unroll
  for (int c = 0; c < kBranches; ++c) {
    C sum = along[c];
    for (int offset = kLanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (real && threadIdx.x % kLanes == 0)
      store(static_cast<T*>(b.dgates_RCH), gate_at(head, a.H, c), gates[c] * (1 - gates[c]) * sum);
  }
}

std::int64_t blocks_of(const GateBranchesArgs& a) {
  require(a.R * a.H < (std::int64_t{1} << 31), "gate_branches", a.R, " rows of ", a.H, " heads exceed 2^31");
  return (a.R * a.H * kLanes + kThreads - 1) / kThreads;
}

}  // namespace

void run(const GateBranchesArgs& a, Stream stream) {
  by_width(a.dtype, a.D, {a.x_RF[0], a.x_RF[1], a.x_RF[2], a.out_RF}, "gate_branches", [&]<class T, int V>() {
    start("gate branches", gate_branches<T, V>, blocks_of(a), kThreads, 0, stream, a);
  });
}

void run(const GateBranchesBackwardArgs& b, Stream stream) {
  const GateBranchesArgs& a = b.forward;
  by_width(a.dtype, a.D, {a.x_RF[0], a.x_RF[1], a.x_RF[2], b.dout_RF, b.dx_RF[0], b.dx_RF[1], b.dx_RF[2]},
           "gate_branches", [&]<class T, int V>() {
             start("gated branches' gradient", gate_branches_backward<T, V>, blocks_of(a), kThreads, 0, stream, b);
           });
}

}  // namespace sieve::cuda
