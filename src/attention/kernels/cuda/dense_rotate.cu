// Memory-bound: every feature is read and written once, 16 bytes a load where rows, heads and halves allow it. cos and
// sin are shared by the heads of a row and come from the caches.
// Letters: R = rotary_dims / 2 pairs (r, r + R) of a head, D head size, n features of a vector.
#include <cuda_bf16.h>

#include "attention/kernels/cuda/dense_rotate.h"
#include "tensor/kernels/cuda/block.cuh"

namespace sieve::cuda {
namespace {

template <int n>
struct alignas(2 * n) Chunk {
  __nv_bfloat16 x[n];
};
template <int n>
struct alignas(n == 1 ? 4 : 16) Factors {
  float x[n];
};

// One thread: n pairs of one head, or n features behind the rotated ones, which are copied.
template <int n, class Index>
__global__ void __launch_bounds__(kThreads)
    rotate_kernel(const __nv_bfloat16* src, __nv_bfloat16* dst, std::int64_t src_stride, std::int64_t dst_stride,
                  Index total, Index T, Index heads, int D, int R, const float* cos, const float* sin, float sign) {
  const Index pairs = R / n, parts = pairs + (D - 2 * R) / n;
  const Index step = static_cast<Index>(gridDim.x) * kThreads;
  for (Index i = static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x; i < total; i += step) {
    const Index part = i % parts, head = i / parts % heads, row = i / parts / heads;
    const __nv_bfloat16* from = src + static_cast<std::int64_t>(row) * src_stride + static_cast<std::int64_t>(head) * D;
    __nv_bfloat16* to = dst + static_cast<std::int64_t>(row) * dst_stride + static_cast<std::int64_t>(head) * D;
    if (part >= pairs) {
      const std::int64_t d = 2 * R + static_cast<std::int64_t>(part - pairs) * n;
      *reinterpret_cast<Chunk<n>*>(to + d) = *reinterpret_cast<const Chunk<n>*>(from + d);
      continue;
    }
    const std::int64_t r = static_cast<std::int64_t>(part) * n;
    const std::int64_t angle = static_cast<std::int64_t>(row % T) * R + r;
    const Chunk<n> a = *reinterpret_cast<const Chunk<n>*>(from + r);
    const Chunk<n> b = *reinterpret_cast<const Chunk<n>*>(from + R + r);
    const Factors<n> c = *reinterpret_cast<const Factors<n>*>(cos + angle);
    const Factors<n> s = *reinterpret_cast<const Factors<n>*>(sin + angle);
    Chunk<n> first, second;
#pragma unroll
    for (int k = 0; k < n; ++k) {
      const float x = __bfloat162float(a.x[k]), y = __bfloat162float(b.x[k]), turn = s.x[k] * sign;
      first.x[k] = __float2bfloat16_rn(x * c.x[k] - y * turn);
      second.x[k] = __float2bfloat16_rn(y * c.x[k] + x * turn);
    }
    *reinterpret_cast<Chunk<n>*>(to + r) = first;
    *reinterpret_cast<Chunk<n>*>(to + R + r) = second;
  }
}

template <int n>
void launch_rotation(const DenseRotation& a, Stream stream) {
  const std::int64_t R = a.rotary.rotary_dims / 2;
  const std::int64_t total = a.rows * a.heads * (R / n + (a.D - 2 * R) / n);
  if (total == 0) return;
  const auto start = [&]<class Index>(Index) {
    rotate_kernel<n, Index><<<blocks_for(total), kThreads, 0, handle_of(stream)>>>(
        static_cast<const __nv_bfloat16*>(a.src), static_cast<__nv_bfloat16*>(a.dst), a.src_stride, a.dst_stride,
        static_cast<Index>(total), static_cast<Index>(a.T), static_cast<Index>(a.heads), static_cast<int>(a.D),
        static_cast<int>(R), static_cast<const float*>(a.rotary.cos), static_cast<const float*>(a.rotary.sin),
        a.back ? -1.0f : 1.0f);
  };
  // Three divisions a thread: in 32 bits where they suffice. A step adds at most 2^24, so 32 bits never wrap.
  if (total < (std::int64_t{1} << 31)) start(std::uint32_t{0});
  else start(std::int64_t{0});
  check_launch("rotate_rows");
}

bool vectors_fit(const DenseRotation& a, std::int64_t n) {
  const auto at_16 = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; };
  const std::int64_t R = a.rotary.rotary_dims / 2;
  return R % n == 0 && a.D % n == 0 && a.src_stride % n == 0 && a.dst_stride % n == 0 && at_16(a.src) && at_16(a.dst) &&
         at_16(a.rotary.cos) && at_16(a.rotary.sin);
}

}  // namespace

void rotate_rows(const DenseRotation& a, Stream stream) {
  if (vectors_fit(a, 8)) launch_rotation<8>(a, stream);
  else launch_rotation<1>(a, stream);
}

}  // namespace sieve::cuda
