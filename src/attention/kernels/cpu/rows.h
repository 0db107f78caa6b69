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

// Scratch of one thread, cut into cache-line aligned pieces. Ends in slack, since nothing may run past a piece.
template <class T>
class Arena {
 public:
  explicit Arena(std::size_t elements) : size_(elements) {
    const std::size_t bytes = (elements * sizeof(T) + 63) / 64 * 64;
    memory_.reset(static_cast<T*>(std::aligned_alloc(64, bytes > 0 ? bytes : 64)));
    if (memory_ == nullptr) throw std::bad_alloc();
  }
  // n is a multiple of 64 / sizeof(T).
  T* take(std::ptrdiff_t n) {
    T* p = memory_.get() + used_;
    used_ += static_cast<std::size_t>(n);
    require(used_ <= size_, "attention", "scratch of ", size_, " elements is too small");
    return p;
  }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<T[], Free> memory_;
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
  for (std::ptrdiff_t d = 0; d < D; ++d) out[d] = bf16(static_cast<float>(src[d]));
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

// rows (n, Dp) -> columns (Dp, kTile), times factor; lanes n .. lanes - 1 become 0.
template <class T>
inline void transpose_in(const T* rows, std::ptrdiff_t n, std::ptrdiff_t Dp, std::ptrdiff_t lanes, T factor,
                         T* columns) {
  constexpr std::ptrdiff_t kStep = 16;  // a square of this side stays in the first-level cache on both sides
  for (std::ptrdiff_t i0 = 0; i0 < lanes; i0 += kStep) {
    for (std::ptrdiff_t d0 = 0; d0 < Dp; d0 += kStep) {
      for (std::ptrdiff_t d = d0; d < d0 + kStep && d < Dp; ++d) {
        for (std::ptrdiff_t i = i0; i < i0 + kStep && i < lanes; ++i) {
          columns[d * kTile + i] = i < n ? rows[i * Dp + d] * factor : T(0);
        }
      }
    }
  }
}
// columns (Dp, kTile) -> rows (n, Dp), lane i times factor[i].
template <class T>
inline void transpose_out(const T* columns, std::ptrdiff_t n, std::ptrdiff_t Dp, const T* factor, T* rows) {
  constexpr std::ptrdiff_t kStep = 16;
  for (std::ptrdiff_t i0 = 0; i0 < n; i0 += kStep) {
    for (std::ptrdiff_t d0 = 0; d0 < Dp; d0 += kStep) {
      for (std::ptrdiff_t i = i0; i < i0 + kStep && i < n; ++i) {
        for (std::ptrdiff_t d = d0; d < d0 + kStep && d < Dp; ++d)
          rows[i * Dp + d] = columns[d * kTile + i] * factor[i];
      }
    }
  }
}

}  // namespace sieve::cpu
