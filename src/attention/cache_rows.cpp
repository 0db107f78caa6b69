#include "attention/cache_rows.h"

#include <cmath>

#include "tensor/dispatch.h"

namespace sieve {

void CacheRows::grow(std::int64_t rows, std::int64_t held, const Stream& stream) {
  if (rows <= capacity) return;
  for (Tensor* t : {&keys, &values}) {
    Tensor grown = zeros({B, Hkv, rows, D}, dtype, stream);
    if (held > 0) grown.slice(2, 0, held).copy_from(t->slice(2, 0, held));
    *t = grown;
  }
  capacity = rows;
}

void CacheRows::turn(std::int64_t first, std::int64_t n, const Stream& stream) {
  const std::int64_t R = rope.rotary_dims / 2;
  if (R == 0) return;
  std::vector<double> c, s, frequencies;
  for (std::int64_t x = 0; x < R; ++x)
    frequencies.push_back(std::pow(rope.theta, -2.0 * static_cast<double>(x) / static_cast<double>(rope.rotary_dims)));
  for (std::int64_t x = 0; x < n * R; ++x) {
    const double angle = static_cast<double>(first + x / R) * frequencies[static_cast<std::size_t>(x % R)];
    c.push_back(std::cos(angle)), s.push_back(std::sin(angle));
  }
  cos = from_values<double>(c, {n, R}).to(compute_dtype(dtype)).to(stream);
  sin = from_values<double>(s, {n, R}).to(compute_dtype(dtype)).to(stream);
}

void CacheRows::store(const Tensor& qkv, const std::vector<CacheMove>& moves) {
  if (moves.empty()) return;
  const Tensor list = uploaded(moves, qkv.stream());
  CacheStoreArgs args;
  args.qkv_BNF = qkv.raw(), args.keys_BKCD = keys.raw(), args.values_BKCD = values.raw();
  args.moves = static_cast<const CacheMove*>(list.raw()), args.count = static_cast<std::int64_t>(moves.size());
  args.N = qkv.size(1), args.H = H, args.Hkv = Hkv, args.D = D;
  args.capacity = capacity, args.dtype = dtype;
  if (cos.defined()) args.rotary_dims = rope.rotary_dims, args.cos_NR = cos.raw(), args.sin_NR = sin.raw();
  launch(qkv.stream(), args);
}

DecodeArgs CacheRows::arguments(const Tensor& qkv, std::int64_t t, const Tensor& out) const {
  const std::int64_t n = qkv.size(1);
  const auto token = [&](const Tensor& x, std::int64_t width) {
    return static_cast<std::byte*>(x.raw()) + static_cast<std::size_t>(t * width) * size_of(dtype);
  };
  DecodeArgs args;
  args.qkv_BF = token(qkv, features()), args.qkv_stride = n * features();
  args.out_BHD = token(out, H * D), args.out_stride = n * H * D;
  args.keys_BKCD = keys.raw(), args.values_BKCD = values.raw();
  args.capacity = capacity;
  args.B = B, args.H = H, args.Hkv = Hkv, args.D = D;
  args.scale = 1 / std::sqrt(static_cast<double>(D));
  args.dtype = dtype, args.rotary_dims = rope.rotary_dims;
  if (cos.defined()) args.query_cos = cos.slice(0, t, t + 1).raw(), args.query_sin = sin.slice(0, t, t + 1).raw();
  return args;
}

}  // namespace sieve
