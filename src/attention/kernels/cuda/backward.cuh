// The passes of the softmax engine's backward, in the order in which they run: queries; the rows of chunk lists, whose
// sums wait in the workspace; keys, which own each key once and add what waits. No atomics.
#pragma once

#include "attention/kernels/cuda/engine.cuh"

namespace sieve::cuda {

// What a block of pairs gives to its keys: dV += weights dO and dK += ds q.
template <class Math, int kPieces, class C>
__device__ __forceinline__ void add_products(C (*dk)[kHeld], C (*dv)[kHeld], typename Math::Element* weights,
                                             const C* s, const C* ds, const Operand<Math, kPieces>& q,
                                             const Operand<Math, kPieces>& dout) {
  keep_weights<Math>(weights, s);
  add_product<Math, kPieces>(dv, weights, dout);
  keep_weights<Math>(weights, ds);
  add_product<Math, kPieces>(dk, weights, q);
}

void backward_queries(const Engine& e, Stream stream);
void backward_rows(const Engine& e, Stream stream);
void backward_keys(const Engine& e, Stream stream);

}  // namespace sieve::cuda
