// The passes of the softmax engine's backward, in the order in which they run: queries; the rows of chunk lists, whose
// sums wait in the workspace; keys, which own each key once and add what waits. No atomics.
#pragma once

#include "attention/kernels/cuda/engine.cuh"

namespace sieve::cuda {

void backward_queries(const Engine& e, Stream stream);
void backward_rows(const Engine& e, Stream stream);
void backward_keys(const Engine& e, Stream stream);

}  // namespace sieve::cuda
