// Which layers the softmax engine of Hopper GPUs serves (kernels/cuda/hopper): the others, and other GPUs, take the
// general kernels. Both give the same results up to rounding.
#pragma once

#include "attention/spec.h"
#include "tensor/tensor.h"

namespace sieve {

// bf16 qkv on a GPU of compute capability 9.0; head_dim 64 or 128; no sinks; selected keys rotated at their own
// positions; rotary_dims a multiple of 16. Depends on nothing that changes between forward and backward.
bool warpgroup_engine(const AttentionSpec& spec, const RopeSpec& rope, const Tensor& qkv);

// Process-wide, for comparisons of the two: false sends every layer to the general kernels. True at the start.
void allow_warpgroup_engine(bool allowed);

}  // namespace sieve
