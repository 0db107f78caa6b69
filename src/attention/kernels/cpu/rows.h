// Rows of qkv, out and their gradients on their way into and out of a tile: conversion to the compute type, padding to
// whole vectors, rotation, transposition. T is the compute type, fp32 or fp64.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "attention/kernels/cpu/vec.h"
#include "core/dtype.h"
#include "core/error.h"

namespace sieve::cpu {

inline constexpr std::ptrdiff_t kTile = 64;  // lanes of a tile buffer and rows of a key block

// Memory cut into cache-line aligned pieces: the caller's workspace, or small scratch of one thread.
template <class T>
class Arena {
 public:
  Arena(void* memory, std::size_t elements) : memory_(static_cast<T*>(memory)), size_(elements) {}
  explicit Arena(std::size_t elements) : size_(elements) {
    own_.reset(static_cast<T*>(std::aligned_alloc(64, (elements * sizeof(T) + 64) / 64 * 64)));
    if (own_ == nullptr) throw std::bad_alloc();
    memory_ = own_.get();
  }
  // n is a multiple of 64 / sizeof(T).
  T* take(std::ptrdiff_t n) {
    T* p = memory_ + used_;
    used_ += static_cast<std::size_t>(n);
    require(used_ <= size_, "attention", "scratch of ", size_, " elements is too small");
    return p;
  }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<T[], Free> own_;
  T* memory_;
  std::size_t size_, used_ = 0;
};

using HalfWords [[gnu::vector_size(kVectorBytes / 2)]] = std::uint16_t;
using Words [[gnu::vector_size(kVectorBytes)]] = std::uint32_t;

// D elements to the compute type.
template <class T>
inline void convert_row(const void* src, DType dtype, std::ptrdiff_t D, T* dst) {
  if (dtype == dtype_of<T>) {
    std::memcpy(dst, src, static_cast<std::size_t>(D) * sizeof(T));
    return;
  }
  const auto* s = static_cast<const bf16*>(src);
  std::ptrdiff_t d = 0;
  if constexpr (sizeof(T) == 4) {
    for (; d + kLanes<float> <= D; d += kLanes<float>) {
      HalfWords h;
      std::memcpy(&h, s + d, sizeof h);
      const Words w = __builtin_convertvector(h, Words) << 16;
      std::memcpy(dst + d, &w, sizeof w);
    }
  }
  for (; d < D; ++d) dst[d] = static_cast<T>(static_cast<float>(s[d]));
}

// And back, rounding to nearest even once.
template <class T>
inline void store_row(const T* src, std::ptrdiff_t D, void* dst, DType dtype) {
  if (dtype == dtype_of<T>) {
    std::memcpy(dst, src, static_cast<std::size_t>(D) * sizeof(T));
    return;
  }
  auto* out = static_cast<bf16*>(dst);
  std::ptrdiff_t d = 0;
  if constexpr (sizeof(T) == 4) {
    for (; d + kLanes<float> <= D; d += kLanes<float>) {  // bf16(float) of core/dtype.h, lane by lane
      Words w;
      std::memcpy(&w, src + d, sizeof w);
      const Words nearest = (w + 0x7fffu + ((w >> 16) & 1u)) >> 16, quiet = (w >> 16) | 0x40u;
      const HalfWords h = __builtin_convertvector((w & 0x7fffffffu) > 0x7f800000u ? quiet : nearest, HalfWords);
      std::memcpy(out + d, &h, sizeof h);
    }
  }
  for (; d < D; ++d) out[d] = bf16(static_cast<float>(src[d]));
}

// x -> R(position) x on the first 2 R elements, rotate-half layout; sign = -1 turns back (the transpose).
template <class T>
inline void rotate_row(T* x, const T* cos, const T* sin, std::ptrdiff_t R, T sign) {
  std::ptrdiff_t r = 0;
  for (; r + kLanes<T> <= R; r += kLanes<T>) {
    const Vec<T> c = load(cos + r), s = load(sin + r) * sign, a = load(x + r), b = load(x + R + r);
    store(x + r, Vec<T>(a * c - b * s));
    store(x + R + r, Vec<T>(b * c + a * s));
  }
  for (; r < R; ++r) {
    const T c = cos[r], s = sin[r] * sign, a = x[r], b = x[R + r];
    x[r] = a * c - b * s;
    x[R + r] = b * c + a * s;
  }
}

// True if no element of the row is NaN or infinite. n is a multiple of kLanes<T>.
template <class T>
inline bool all_finite(const T* x, std::ptrdiff_t n) {
  Vec<T> sum{};
  for (std::ptrdiff_t d = 0; d < n; d += kLanes<T>)
    sum += load(x + d) * T(0);  // NaN as soon as one element is not finite
  T total = 0;
  for (int l = 0; l < kLanes<T>; ++l) total += sum[l];
  return total == 0;
}

// A square of kLanes x kLanes in registers, in log2(kLanes) rounds: round s exchanges the off-diagonal s x s squares.
template <class T>
[[gnu::always_inline]] inline void transpose_square(Vec<T>* v) {
  constexpr int L = kLanes<T>;
#pragma GCC unroll 4
  for (int s = 1; s < L; s *= 2) {
    IVec<T> low, high;  // lanes of (a, b) that the two results take; constants after unrolling
#pragma GCC unroll 16
    for (int l = 0; l < L; ++l) {
      low[l] = (l & s) != 0 ? L + l - s : l;
      high[l] = (l & s) != 0 ? L + l : l + s;
    }
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
      if ((i & s) != 0) continue;
      const Vec<T> a = v[i], b = v[i | s];
      v[i] = __builtin_shuffle(a, b, low);
      v[i | s] = __builtin_shuffle(a, b, high);
    }
  }
}

// rows (n, Dp) -> columns (Dp, kTile), times factor; lanes n .. lanes - 1 become 0. lanes and Dp are multiples of
// kLanes<T>.
template <class T>
[[gnu::noinline]] void transpose_in(const T* rows, std::ptrdiff_t n, std::ptrdiff_t Dp, std::ptrdiff_t lanes, T factor,
                                    T* columns) {
  constexpr int L = kLanes<T>;
  for (std::ptrdiff_t i0 = 0; i0 < lanes; i0 += L) {
    for (std::ptrdiff_t d0 = 0; d0 < Dp; d0 += L) {
      Vec<T> v[L];
      for (int x = 0; x < L; ++x) v[x] = i0 + x < n ? Vec<T>(load(rows + (i0 + x) * Dp + d0) * factor) : Vec<T>{};
      transpose_square<T>(v);
      for (int x = 0; x < L; ++x) store(columns + (d0 + x) * kTile + i0, v[x]);
    }
  }
}
// columns (Dp, kTile) -> rows (n, Dp), lane i times factor[i].
template <class T>
[[gnu::noinline]] void transpose_out(const T* columns, std::ptrdiff_t n, std::ptrdiff_t Dp, const T* factor, T* rows) {
  constexpr int L = kLanes<T>;
  for (std::ptrdiff_t i0 = 0; i0 < n; i0 += L) {
    const Vec<T> f = load(factor + i0);
    for (std::ptrdiff_t d0 = 0; d0 < Dp; d0 += L) {
      Vec<T> v[L];
      for (int x = 0; x < L; ++x) v[x] = load(columns + (d0 + x) * kTile + i0) * f;
      transpose_square<T>(v);
      for (int x = 0; x < L && i0 + x < n; ++x) store(rows + (i0 + x) * Dp + d0, v[x]);
    }
  }
}

}  // namespace sieve::cpu
