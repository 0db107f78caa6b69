// The memory of a generation cache: rows of keys and values, the rotation of new tokens, and the launches that store
// and read rows. Which rows there are is the cache's business (attention/decode.h, attention/pattern_cache.h).
// Letters: B batch, n new tokens, H query heads, Hkv key-value heads, D head size.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "attention/kernels/decode.h"
#include "tensor/tensor.h"

namespace sieve {

struct CacheRows {
  std::int64_t B = 0, H = 0, Hkv = 0, D = 0, capacity = 0;
  DType dtype = DType::f32;
  RopeSpec rope;
  Tensor keys, values;  // (B, Hkv, capacity, D)
  Tensor cos, sin;  // (n, rotary_dims / 2) of the tokens that turn() was told, compute dtype; undefined: no rotation

  std::int64_t features() const { return (H + 2 * Hkv) * D; }
  // More rows; the first `held` keep what they hold. Nothing happens where there are as many.
  void grow(std::int64_t rows, std::int64_t held, const Stream& stream);
  // The tokens to come stand at positions first .. first + n - 1. Angles in fp64, where a table would have to grow with
  // the length.
  void turn(std::int64_t first, std::int64_t n, const Stream& stream);
  // Moves of tokens of qkv (B, n, (H + 2 Hkv) D), keys rotated, and of rows.
  void store(const Tensor& qkv, const std::vector<CacheMove>& moves);
  // Token t of qkv against the rows, out (B, n, H D)[t]. Who launches adds the rows that are seen.
  DecodeArgs arguments(const Tensor& qkv, std::int64_t t, const Tensor& out) const;
};

// An array of the host on the stream's device, as bytes.
template <class T>
Tensor uploaded(const std::vector<T>& values, const Stream& stream) {
  Tensor host = empty({static_cast<std::int64_t>(values.size() * sizeof(T))}, DType::u8);
  if (!values.empty()) std::memcpy(host.raw(), values.data(), values.size() * sizeof(T));
  return host.to(stream);
}

}  // namespace sieve
