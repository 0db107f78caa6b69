// The likeliest token: the largest logit, the first of equals.
#pragma once

#include <cstdint>
#include <limits>

namespace sieve::cuda {

// NaN stands above all, so that it is seen.
struct Best {
  float logit;
  std::int32_t id;
  __device__ Best joined(Best o) const { return o.logit > logit || (o.logit == logit && o.id < id) ? o : *this; }
};
static_assert(sizeof(Best) == 8);

__device__ inline Best best_of(float logit, std::int64_t id) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  return logit != logit ? Best{kInfinity, -1} : Best{logit, static_cast<std::int32_t>(id)};
}
__device__ inline Best no_best() {
  return {-std::numeric_limits<float>::infinity(), std::numeric_limits<std::int32_t>::max()};
}
__device__ inline Best warp_best(Best v) {
  for (int offset = 16; offset > 0; offset >>= 1)
    v = v.joined({__shfl_xor_sync(0xffffffffu, v.logit, offset), __shfl_xor_sync(0xffffffffu, v.id, offset)});
  return v;
}

}  // namespace sieve::cuda
