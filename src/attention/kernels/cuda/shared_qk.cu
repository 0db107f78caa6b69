// Shared queries and keys, and their hash buckets: a warp a head of a position.
#include "attention/kernels/choose.h"
#include "attention/kernels/cuda/launch.cuh"
#include "attention/kernels/shared_qk.h"
#include "tensor/kernels/cuda/block.cuh"

namespace sieve::cuda {
namespace {

constexpr int kWarps = kThreads / 32;

__device__ inline std::int64_t first_warp() {
  return static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
}
__device__ inline std::int64_t all_warps() { return static_cast<std::int64_t>(gridDim.x) * kWarps; }
inline std::int64_t blocks_of_warps(std::int64_t warps) {
  const std::int64_t blocks = (warps + kWarps - 1) / kWarps;
  return blocks < (1 << 20) ? blocks : 1 << 20;
}

template <class T>
__global__ void __launch_bounds__(kThreads) share(const SharedQkArgs a) {
  using Real = compute_t<T>;
  const int lane = threadIdx.x % 32;
  for (std::int64_t x = first_warp(); x < a.B * a.T * a.H; x += all_warps()) {
    const std::int64_t row = x / a.H, h = x % a.H;
    const T* q = static_cast<const T*>(a.qv_BTF) + (row * (a.H + a.Hv) + h) * a.D;
    const T* v = static_cast<const T*>(a.qv_BTF) + (row * (a.H + a.Hv) + a.H + h / (a.H / a.Hv)) * a.D;
    T* out = static_cast<T*>(a.qkv_BTF) + (row * 3 * a.H + h) * a.D;
    Real squares = 0;
    for (std::int64_t d = lane; d < a.D; d += 32) squares += load(q, d) * load(q, d);
    const Real length = sqrt(warp_sum(squares));
    for (std::int64_t d = lane; d < a.D; d += 32) {
      out[d] = q[d];
      store(out, a.H * a.D + d, length == 0 ? Real(0) : load(q, d) / length);
      out[2 * a.H * a.D + d] = v[d];
    }
  }
}

// Items of a row: its query heads, then its value heads.
template <class T>
__global__ void __launch_bounds__(kThreads) unshare(const SharedQkBackwardArgs back) {
  using Real = compute_t<T>;
  const SharedQkArgs& a = back.forward;
  const int lane = threadIdx.x % 32;
  const std::int64_t items = a.H + a.Hv, group = a.H / a.Hv;
  for (std::int64_t x = first_warp(); x < a.B * a.T * items; x += all_warps()) {
    const std::int64_t row = x / items, h = x % items;
    const T* q = static_cast<const T*>(a.qv_BTF) + x * a.D;
    const T* grad = static_cast<const T*>(back.grad_BTF) + row * 3 * a.H * a.D;
    T* out = static_cast<T*>(back.dqv_BTF) + x * a.D;
    if (h >= a.H) {
      for (std::int64_t d = lane; d < a.D; d += 32) {
        Real sum = 0;
        for (std::int64_t g = 0; g < group; ++g) sum += load(grad, (2 * a.H + (h - a.H) * group + g) * a.D + d);
        store(out, d, sum);
      }
      continue;
    }
    const T *dq = grad + h * a.D, *dk = grad + (a.H + h) * a.D;
    Real squares = 0, along = 0;
    for (std::int64_t d = lane; d < a.D; d += 32) {
      squares += load(q, d) * load(q, d);
      along += load(q, d) * load(dk, d);
    }
    squares = warp_sum(squares), along = warp_sum(along);
    const Real length = sqrt(squares);
    for (std::int64_t d = lane; d < a.D; d += 32) {
      const Real through = length == 0 ? Real(0) : (load(dk, d) - load(q, d) * (along / squares)) / length;
      store(out, d, load(dq, d) + through);
    }
  }
}

// Lanes take directions; a product is one sum over the features in their order, as on the CPU.
template <class T>
__global__ void __launch_bounds__(kThreads) hash(const HashArgs a) {
  const int lane = threadIdx.x % 32;
  for (std::int64_t x = first_warp(); x < a.B * a.H * a.T; x += all_warps()) {
    const std::int64_t t = x % a.T, h = x / a.T % a.H, b = x / a.T / a.H;
    const T* row = static_cast<const T*>(a.x_BTF) + (b * a.T + t) * a.F + h * a.D;
    double most = -INFINITY;
    std::int64_t bucket = 2 * a.R;
    for (std::int64_t r = lane; r < a.R; r += 32) {
      const double* direction = a.directions_HRD + (h * a.R + r) * a.D;
      double sum = 0;
      for (std::int64_t d = 0; d < a.D; ++d) sum += static_cast<double>(load(row, d)) * direction[d];
      if (sum > most || (sum == most && r < bucket)) most = sum, bucket = r;
      if (-sum > most) most = -sum, bucket = a.R + r;
    }
    for (int offset = 16; offset > 0; offset >>= 1) {
      const double other = __shfl_xor_sync(0xffffffffu, most, offset);
      const std::int64_t theirs = __shfl_xor_sync(0xffffffffu, static_cast<long long>(bucket), offset);
      if (other > most || (other == most && theirs < bucket)) most = other, bucket = theirs;
    }
    if (lane == 0) a.bucket_BHT[x] = bucket == 2 * a.R ? 0 : static_cast<std::int32_t>(bucket);  // NaN: the first
  }
}

}  // namespace

void run(const SharedQkArgs& a, Stream stream) {
  const std::int64_t blocks = blocks_of_warps(a.B * a.T * a.H);
  if (a.dtype == DType::f64) start("shared qk", share<double>, blocks, kThreads, 0, stream, a);
  else if (a.dtype == DType::bf16) start("shared qk", share<bf16>, blocks, kThreads, 0, stream, a);
  else start("shared qk", share<float>, blocks, kThreads, 0, stream, a);
}

void run(const SharedQkBackwardArgs& a, Stream stream) {
  const std::int64_t blocks = blocks_of_warps(a.forward.B * a.forward.T * (a.forward.H + a.forward.Hv));
  const DType dtype = a.forward.dtype;
  if (dtype == DType::f64) start("shared qk gradient", unshare<double>, blocks, kThreads, 0, stream, a);
  else if (dtype == DType::bf16) start("shared qk gradient", unshare<bf16>, blocks, kThreads, 0, stream, a);
  else start("shared qk gradient", unshare<float>, blocks, kThreads, 0, stream, a);
}

void run(const HashArgs& a, Stream stream) {
  const std::int64_t blocks = blocks_of_warps(a.B * a.H * a.T);
  if (a.dtype == DType::f64) start("hash", hash<double>, blocks, kThreads, 0, stream, a);
  else if (a.dtype == DType::bf16) start("hash", hash<bf16>, blocks, kThreads, 0, stream, a);
  else start("hash", hash<float>, blocks, kThreads, 0, stream, a);
}

}  // namespace sieve::cuda
