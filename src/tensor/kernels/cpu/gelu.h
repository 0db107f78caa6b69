// GELU and its slope, as functions that vectorise: the activation kernels and the epilogue of matrix products share
// them. std::true_type: the tanh form, std::false_type: x Phi(x).
#pragma once

#include <type_traits>

#include "tensor/kernels/cpu/vec.h"

namespace sieve::cpu {

// 0.5 (1 + tanh u) = sigmoid(2u): one exponential, and no cancellation for negative x.
template <class C>
C tanh_gate(C x) {
  return sigmoid(C(1.5957691216057308) * (x + C(0.044715) * x * x * x));
}

template <class C>
C gelu(C x, std::true_type) {
  return x * tanh_gate(x);
}
template <class C>
C gelu(C x, std::false_type) {
  return x * normal(x).cdf;
}
template <class C>
C gelu_slope(C x, std::true_type) {
  const C s = tanh_gate(x);
  return s + x * s * (C(1) - s) * C(1.5957691216057308) * (C(1) + C(3 * 0.044715) * x * x);
}
template <class C>
C gelu_slope(C x, std::false_type) {
  const Normal<C> n = normal(x);
  return n.cdf + x * n.pdf;
}

}  // namespace sieve::cpu
