// The activations of generation's kernels, on the special function unit.
#pragma once

namespace sieve::cuda {

__device__ inline float silu(float x) { return x / (1.f + expf(-x)); }
// 0.5 x (1 + tanh u) = x sigmoid(2u).
__device__ inline float gelu(float x) { return x / (1.f + expf(-1.5957691216057308f * (x + 0.044715f * x * x * x))); }

}  // namespace sieve::cuda
