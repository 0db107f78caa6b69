// Full and sliding-window layers on a GPU by fused kernels of a library, where it has them and they are the faster
// ones. The attention op asks dense_path first and otherwise takes the softmax engine.
#pragma once

#include "attention/spec.h"
#include "tensor/tensor.h"

namespace sieve {

// Whether forward, and backward if `saves`, of this layer go by the library. The answer for a shape never changes from
// yes to no between forward and backward.
bool dense_path(const AttentionSpec& spec, const RopeSpec& rope, const Tensor& qkv, bool documents, bool saves);

// qkv (B, T, F) contiguous to out (B, T, H D). `statistics`, if given, becomes what backward wants.
Tensor dense_forward(const AttentionSpec& spec, const RopeSpec& rope, const Tensor& qkv, Tensor* statistics);
Tensor dense_backward(const AttentionSpec& spec, const RopeSpec& rope, const Tensor& qkv, const Tensor& out,
                      const Tensor& statistics, const Tensor& dout);

// Process-wide, for comparisons of the two engines: false sends every layer to the softmax engine. True at the start.
void allow_dense_attention(bool allowed);

}  // namespace sieve
