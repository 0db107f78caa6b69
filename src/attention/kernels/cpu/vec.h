// Explicit vectors (GNU vector extension: g++ and clang) as wide as the machine's registers. The compiler's own
// vectoriser is not relied upon: on CPUs newer than the compiler its tuning falls back to 128 bits.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/dtype.h"

namespace sieve::cpu {

#ifdef __AVX512F__  // the one place that asks for the instruction set: it sets the width, nothing else
inline constexpr int kVectorBytes = 64;
#else
inline constexpr int kVectorBytes = 32;
#endif

template <class T>
struct VecOf;
template <>
struct VecOf<float> {
  using Real [[gnu::vector_size(kVectorBytes)]] = float;
  using Int [[gnu::vector_size(kVectorBytes)]] = std::int32_t;
  using IntScalar = std::int32_t;
};
template <>
struct VecOf<double> {
  using Real [[gnu::vector_size(kVectorBytes)]] = double;
  using Int [[gnu::vector_size(kVectorBytes)]] = std::int64_t;
  using IntScalar = std::int64_t;
};
template <class T>
using Vec = typename VecOf<T>::Real;
template <class T>
using IVec = typename VecOf<T>::Int;
template <class T>
using Lane = typename VecOf<T>::IntScalar;  // integer as wide as T: positions and masks (0 or -1) of lanes
template <class T>
inline constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
[[gnu::always_inline]] inline Vec<T> load(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
[[gnu::always_inline]] inline void store(T* p, const Vec<T>& v) {
  std::memcpy(p, &v, sizeof v);
}
template <class T>
[[gnu::always_inline]] inline IVec<T> load_lanes(const Lane<T>* p) {
  IVec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
[[gnu::always_inline]] inline Vec<T> splat(T x) {
  return Vec<T>{} + x;
}
// NaN in `a` is passed over, like std::max(b, a).
template <class V>
[[gnu::always_inline]] inline V max(const V& a, const V& b) {
  return a > b ? a : b;
}

template <class T>
struct Exp2Constants;
template <>
struct Exp2Constants<float> {
  static constexpr float lowest = -127, highest = 128;
  static constexpr float magic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  static constexpr std::int32_t bias = 127;
  static constexpr int mantissa = 23;
  // (2^r - 1) / r interpolated in Chebyshev nodes of [-1/2, 1/2]; relative error of 2^r below 5e-9.
  static constexpr float c[] = {1.f,
                                6.93147188026228767e-01f,
                                2.40226507605681261e-01f,
                                5.55035711421907816e-02f,
                                9.61808255727785236e-03f,
                                1.33908633646712344e-03f,
                                1.54531629451206911e-04f};
};
template <>
struct Exp2Constants<double> {
  static constexpr double lowest = -1023, highest = 1024;
  static constexpr double magic = 6755399441055744.;  // 1.5 * 2^52
  static constexpr std::int64_t bias = 1023;
  static constexpr int mantissa = 52;
  static constexpr double c[] = {1.,
                                 6.93147180559945286e-01,
                                 2.40226506959100972e-01,
                                 5.55041086648215970e-02,
                                 9.61812910760688825e-03,
                                 1.33335581464169356e-03,
                                 1.54035304417360499e-04,
                                 1.52527338298361192e-05,
                                 1.32154425879216893e-06,
                                 1.01780624458457737e-07,
                                 7.07258594926922339e-09,
                                 4.45496059818651856e-10};  // error below 1e-17
};

// 2^x, at most 1.5 ulp off for normal results below 2^127.5 (2^1023.5), infinity above, 0 below 2^-126.5 (2^-1022.5).
// NaN stays NaN.
template <class T>
[[gnu::always_inline]] inline Vec<T> exp2_vec(Vec<T> x) {
  using K = Exp2Constants<T>;
  x = x < K::lowest ? splat<T>(K::lowest) : x;  // comparisons that are false for NaN keep it
  x = x > K::highest ? splat<T>(K::highest) : x;
  const Vec<T> shifted = x + K::magic;
  const Vec<T> r = x - (shifted - K::magic);
  constexpr int n = sizeof(K::c) / sizeof(K::c[0]);
  Vec<T> p = splat<T>(K::c[n - 1]);
#pragma GCC unroll 16
  for (int i = n - 2; i >= 0; --i) p = p * r + K::c[i];
  const T magic = K::magic;
  Lane<T> magic_bits;
  std::memcpy(&magic_bits, &magic, sizeof magic);
  IVec<T> exponent;
  std::memcpy(&exponent, &shifted, sizeof exponent);
  exponent = (exponent - magic_bits + K::bias)
             << K::mantissa;  // bias + n is 0 at the lowest, all ones at the highest: 0, infinity
  Vec<T> power;
  std::memcpy(&power, &exponent, sizeof power);
  return p * power;
}

}  // namespace sieve::cpu
