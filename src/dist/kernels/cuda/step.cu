#include "dist/kernels/kernels.h"
#include "dist/kernels/step_control.h"
#include "tensor/kernels/cuda/block.cuh"

namespace sieve::cuda {
namespace {

// V: the element type, or a vector of four of it. One element never depends on another: any split gives the same bits.
__device__ inline float4 operator+(const float4& a, const float4& b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

template <class V>
__global__ void __launch_bounds__(kThreads) add_chain_kernel(const __grid_constant__ AddChainArgs a, std::int64_t n) {
  SIEVE_GRID_STRIDE(i, n) {
    V value = a.leaf != nullptr ? static_cast<const V*>(a.leaf)[i] : V{};
    for (int s = 0; s < a.source_count; ++s) value = static_cast<const V*>(a.sources[s])[i] + value;
    static_cast<V*>(a.dest)[i] = value;
  }
}

// The part [begin, n) with element type V, `width` elements of the tensor each.
template <class V>
void launch_chain(AddChainArgs a, std::int64_t begin, std::int64_t count, const Stream& stream) {
  if (count <= 0) return;
  const auto skip = [begin](const void* p) {
    return p == nullptr ? p : static_cast<const void*>(static_cast<const V*>(p) + begin);
  };
  for (int s = 0; s < a.source_count; ++s) a.sources[s] = skip(a.sources[s]);
  a.leaf = skip(a.leaf);
  a.dest = static_cast<V*>(a.dest) + begin;
  add_chain_kernel<V><<<blocks_for(count, 4), kThreads, 0, handle_of(stream)>>>(a, count);
  check_launch("add_chain");
}

bool vectors(const AddChainArgs& a) {
  const auto aligned = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % sizeof(float4) == 0; };
  bool all = aligned(a.dest) && aligned(a.leaf);
  for (int s = 0; s < a.source_count; ++s) all = all && aligned(a.sources[s]);
  return all;
}

__global__ void step_totals_kernel(const double* losses, std::int64_t n, double tokens, double* totals) {
  double bad = 0;
  for (std::int64_t i = threadIdx.x; i < n; i += blockDim.x) bad += isfinite(losses[i]) ? 0.0 : 1.0;
  bad = block_reduce(bad);  // whole numbers: exact in any order
  if (threadIdx.x == 0) {
    totals[0] = tokens;
    totals[1] = bad;
  }
}

__global__ void step_control_kernel(const double* totals, const double* squared_norm, double clip, float* control) {
  // nvcc joins products and sums into fma only where both stand in one expression: step_control() has none.
  const StepControl c = step_control(totals[0], totals[1], *squared_norm, sqrt(*squared_norm), clip);
  control[0] = c.scale;
  control[1] = c.forbidden;
}

}  // namespace

void run(const AddChainArgs& a, Stream stream) {
  require(a.dtype == DType::f32 || a.dtype == DType::f64, "add_chain", "of ", name_of(a.dtype));
  require(a.source_count >= 0 && a.source_count <= AddChainArgs::kMaxSources, "add_chain", a.source_count, " sources");
  if (a.dtype == DType::f64) return launch_chain<double>(a, 0, a.n, stream);
  const std::int64_t in_vectors = vectors(a) ? a.n / 4 : 0;
  launch_chain<float4>(a, 0, in_vectors, stream);
  launch_chain<float>(a, 4 * in_vectors, a.n - 4 * in_vectors, stream);
}

void run(const StepTotalsArgs& a, Stream stream) {
  step_totals_kernel<<<1, kThreads, 0, handle_of(stream)>>>(a.losses, a.n, a.tokens, a.totals);
  check_launch("step_totals");
}

void run(const StepControlArgs& a, Stream stream) {
  step_control_kernel<<<1, 1, 0, handle_of(stream)>>>(a.totals, a.squared_norm, a.clip, a.control);
  check_launch("step_control");
}

}  // namespace sieve::cuda
