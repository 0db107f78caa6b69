// Rows that leave a cache, as tokens again: a block a row.
#include "attention/kernels/cuda/launch.cuh"
#include "attention/kernels/linear.h"
#include "tensor/kernels/cuda/block.cuh"

namespace sieve::cuda {
namespace {

template <class T>
__global__ void evicted_rows(const EvictedRowArgs a) {
  using C = compute_t<T>;
  const std::int64_t x = blockIdx.x, R = a.rotary_dims / 2, features = (a.H + 2 * a.Hkv) * a.D;
  const EvictedRow r = a.rows[x];
  const std::int64_t from = ((r.b * a.Hkv + r.kv) * a.capacity + r.row) * a.D,
                     to = (r.b * a.N + r.to) * features + (a.H + r.kv) * a.D;
  const T *keys = static_cast<const T*>(a.keys_BKCD) + from, *values = static_cast<const T*>(a.values_BKCD) + from;
  T *key = static_cast<T*>(a.qkv_BNF) + to, *value = key + a.Hkv * a.D;
  for (std::int64_t d = threadIdx.x; d < a.D; d += blockDim.x) {
    value[d] = values[d];
    C y = load(keys, d);
    if (d < 2 * R) {
      const std::int64_t angle = x * R + d % R;
      const C c = static_cast<const C*>(a.cos_XR)[angle], s = static_cast<const C*>(a.sin_XR)[angle];
      y = d < R ? y * c + load(keys, d + R) * s : y * c - load(keys, d - R) * s;
    }
    store(key, d, y);
  }
}

}  // namespace

void run(const EvictedRowArgs& a, Stream stream) {
  switch (a.dtype) {
    case DType::f32: return start("evicted rows", evicted_rows<float>, a.count, 128, 0, stream, a);
    case DType::bf16: return start("evicted rows", evicted_rows<bf16>, a.count, 128, 0, stream, a);
    case DType::f64: return start("evicted rows", evicted_rows<double>, a.count, 128, 0, stream, a);
    default: fail(Exit::internal, "evicted rows", "wants f32, bf16 or f64, got ", name_of(a.dtype));
  }
}

}  // namespace sieve::cuda
