// Attention by a recurrence on tensor cores, chunk by chunk: inside a chunk as pairs, between chunks through states.
#pragma once

#include "attention/kernels/linear.h"

namespace sieve::cuda::linear {

// bf16, as many heads of queries as of keys, D = 64, V = 64 (linear) or 128 (gated), no state from outside.
bool takes_tensor_cores(const LinearArgs& a);
bool takes_tensor_cores(const LinearBackwardArgs& back);

// By chunks, in the layout of chunk_states, fp32: what each adds to the state behind it, or, backward, what its
// queries add to the gradient of the state before it; (B, Hkv, chunks, D): product of its decays less 1, -1 where a
// document starts. normals: linear, backward (below).
void add_linear_states(const LinearArgs& a, float* states, float* decays, const Stream& stream);
void add_linear_gradients(const LinearBackwardArgs& back, const float* normals, float* dstates, float* decays,
                          const Stream& stream);
void add_gated_states(const LinearArgs& a, float* states, float* decays, const Stream& stream);
void add_gated_gradients(const LinearBackwardArgs& back, float* dstates, float* decays, const Stream& stream);

// From the state before each chunk.
void find_linear_outputs(const LinearArgs& a, const float* states, const Stream& stream);
void find_gated_outputs(const LinearArgs& a, const float* states, const Stream& stream);

// From these and the gradient that each chunk finds at its end. normals (B, T, H, 2): 1 / sum (0: sum 0), dout . out.
void find_normals(const LinearBackwardArgs& back, float* normals, const Stream& stream);
void find_linear_gradients(const LinearBackwardArgs& back, const float* normals, const float* dstates,
                           const Stream& stream);
bool fits_gated_gradients();  // the device's shared memory
void find_gated_gradients(const LinearBackwardArgs& back, const float* dstates, const Stream& stream);

void tensor_forward(const LinearArgs& a, const Stream& stream);
void tensor_backward(const LinearBackwardArgs& back, const Stream& stream);

}  // namespace sieve::cuda::linear
