// Scalar functions that compilers turn into vector code when they stand in a simple loop: no calls, no branches, only
// selects. fp32 forms are accurate to 1-3 ulp, with or without fused multiply-add; the lower tail of the normal
// distribution to 6 ulp (9 below -11). tests/tensor/math_test.cpp measures them. fp64 forms call libm.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "core/dtype.h"
#include "core/parallel_for.h"

namespace sieve::cpu {

// Loops shorter than this run in the calling thread; about 10 us of work.
inline constexpr std::int64_t kGrain = 16384;

// parallel_for over elements, cut at multiples of 1024 whatever the number of threads: an element is then always in the
// vector body of a loop or always in its scalar rest, which compilers may round differently. `cost` is in elementary
// operations per element.
template <class F>
void for_elements(std::int64_t n, std::int64_t cost, const F& f) {
  constexpr std::int64_t kBlock = 1024;
  parallel_for((n + kBlock - 1) / kBlock, std::max<std::int64_t>(1, kGrain / (kBlock * cost)),
               [&f, n](std::int64_t begin, std::int64_t end) { f(begin * kBlock, std::min(n, end * kBlock)); });
}

// Rows for one piece of parallel work when a row costs `cost` element operations.
inline std::int64_t row_grain(std::int64_t cost) {
  return std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(1, cost));
}

template <class T>
compute_t<T> load(T value) {
  return static_cast<compute_t<T>>(value);
}

// e^x. x = n ln2 + r, |r| <= ln2 / 2, polynomial of degree 6 in r (minimax, relative error 1e-9), times 2^n in two
// factors so that results may be subnormal or infinite.
inline float exp(float x) {
  constexpr float kRound = 12582912.f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  x = x > 89.f ? 89.f : x;
  x = x < -104.f ? -104.f : x;
  const float shifted = x * 1.44269504f + kRound;
  const std::int32_t n = std::bit_cast<std::int32_t>(shifted) - std::bit_cast<std::int32_t>(kRound);
  const float k = shifted - kRound;
  const float r = (x - k * 0.693359375f) - k * -2.12194440e-4f;  // ln2 in two parts, the first exact in k
  float p = 0x1.6c6b96p-10f;
  p = p * r + 0x1.121022p-7f;
  p = p * r + 0x1.5555bep-5f;
  p = p * r + 0x1.5554d8p-3f;
  p = p * r + 0.5f;
  p = p * (r * r) + r + 1.f;
  const std::int32_t half = n >> 1;
  const auto power = [](std::int32_t e) { return std::bit_cast<float>(static_cast<std::uint32_t>(e + 127) << 23); };
  return p * power(half) * power(n - half);
}
inline double exp(double x) { return std::exp(x); }

template <class C>
C sigmoid(C x) {
  return C(1) / (C(1) + exp(-x));
}

// Standard normal distribution Phi(x) and density at once.
template <class C>
struct Normal {
  C cdf, pdf;
};
// |x| < 1: Phi(x) = 1/2 + x Q(x^2). Else Phi(-a) = exp(-a^2/2) R(a), R a polynomial in t - 0.43, t = 1 / (1 + 0.4 a),
// on [1, 14.5]. Both minimax, relative errors 7e-10 and 3e-9. a^2 is split into the exact square of a's upper half and
// the rest, since exp amplifies the rounding of its argument.
inline Normal<float> normal(float x) {
  float a = x < 0.f ? -x : x;
  a = a > 14.5f ? 14.5f : a;
  const float high = std::bit_cast<float>(std::bit_cast<std::uint32_t>(a) & 0xfffff000u);
  const float d = -0.5f * (a - high) * (a + high);
  const float rest = 1.f + d * (1.f + d * (0.5f + d * (1.f / 6 + d * (1.f / 24))));
  const float e = exp(-0.5f * high * high) * rest;

  const float s = 1.f / (1.f + 0.4f * a) - 0.430672268907563f;
  float r = -0x1.985c40p-5f;
  r = r * s - 0x1.de4dbcp-6f;
  r = r * s + 0x1.2e9362p-4f;
  r = r * s + 0x1.8145dcp-6f;
  r = r * s - 0x1.c72d96p-4f;
  r = r * s - 0x1.78f8d2p-5f;
  r = r * s + 0x1.b6dbb8p-3f;
  r = r * s + 0x1.a37e9cp-2f;
  r = r * s + 0x1.95d558p-2f;
  r = r * s + 0x1.c9ffb0p-4f;
  const float tail = e * r;

  const float z = x * x;
  float q = -0x1.00d526p-17f;
  q = q * z + 0x1.dbff10p-14f;
  q = q * z - 0x1.36fd42p-10f;
  q = q * z + 0x1.46ce4cp-7f;
  q = q * z - 0x1.105832p-4f;
  q = q * z + 0x1.988454p-2f;
  const float outer = x < 0.f ? tail : 1.f - tail;
  return {a < 1.f ? 0.5f + x * q : outer, e * 0.398942280f};
}
inline Normal<double> normal(double x) {
  return {0.5 * std::erfc(-x * 0.70710678118654752), std::exp(-0.5 * x * x) * 0.39894228040143268};
}

// Sum of f(i), i < n, as C. Lane l adds the terms i = l mod 32 in order; the lanes are combined pairwise. The order
// depends on n alone and is one that vector units like.
template <class C, class F>
C lane_sum(std::int64_t n, const F& f) {
  constexpr int kLanes = 32;
  C lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes[l] += static_cast<C>(f(i + l));
  }
  for (int l = 0; i + l < n; ++l) lanes[l] += static_cast<C>(f(i + l));
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  }
  return lanes[0];
}

}  // namespace sieve::cpu
