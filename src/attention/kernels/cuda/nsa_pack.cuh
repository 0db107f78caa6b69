// Some neighbouring elements of a row at once: 16 bytes where all rows are aligned to them, else one.
#pragma once

#include <cstring>

#include "tensor/kernels/cuda/block.cuh"

namespace sieve::cuda {

template <class T>
inline constexpr int kWideElements = 16 / static_cast<int>(sizeof(T));

template <class T, int V>
struct Elements {
  compute_t<T> x[V];

  __device__ void clear() {
#pragma unroll
    for (int n = 0; n < V; ++n) x[n] = 0;
  }
  __device__ void read(const T* from) {
    T raw[V];
    if constexpr (V == 1) {
      raw[0] = *from;
    } else {
      const uint4 words = *reinterpret_cast<const uint4*>(from);
      memcpy(raw, &words, sizeof words);
    }
#pragma unroll
    for (int n = 0; n < V; ++n) x[n] = static_cast<compute_t<T>>(raw[n]);
  }
  __device__ void write(T* to) const {
    T raw[V];
#pragma unroll
    for (int n = 0; n < V; ++n) raw[n] = static_cast<T>(x[n]);
    if constexpr (V == 1) {
      *to = raw[0];
    } else {
      uint4 words;
      memcpy(&words, raw, sizeof words);
      *reinterpret_cast<uint4*>(to) = words;
    }
  }
  __device__ void add(const Elements& other, compute_t<T> factor) {
#pragma unroll
    for (int n = 0; n < V; ++n) x[n] += factor * other.x[n];
  }
};

// f.template operator()<T, V>() for rows of D elements of `dtype` at these addresses.
template <class F>
void by_width(DType dtype, std::int64_t D, std::initializer_list<const void*> addresses, std::string_view subject,
              F&& f) {
  bool wide = D * static_cast<std::int64_t>(size_of(dtype)) % 16 == 0;
  for (const void* p : addresses) wide = wide && reinterpret_cast<std::uintptr_t>(p) % 16 == 0;
  dispatch_float(dtype, subject, [&]<class T>() {
    if (wide) f.template operator()<T, kWideElements<T>>();
    else f.template operator()<T, 1>();
  });
}

}  // namespace sieve::cuda
