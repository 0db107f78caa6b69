// What several ops need to fill kernel arguments.
#pragma once

#include <string_view>

#include "core/error.h"
#include "tensor/kernels/kernels.h"
#include "tensor/same_device.h"
#include "tensor/tensor.h"

namespace sieve {

inline Extents extents_of(const Tensor& t) {
  Extents out{};
  for (int i = 0; i < t.rank(); ++i) out[static_cast<std::size_t>(i)] = t.size(i);
  return out;
}
inline Extents strides_of(const Tensor& t) {
  Extents out{};
  for (int i = 0; i < t.rank(); ++i) out[static_cast<std::size_t>(i)] = t.stride(i);
  return out;
}

// Rows and features of x (..., D). D may be 0, then the rows are those of the leading axes.
inline std::int64_t rows_of(const Tensor& x) {
  std::int64_t rows = 1;
  for (int i = 0; i + 1 < x.rank(); ++i) rows *= x.size(i);
  return rows;
}

inline Shape with_last(const Shape& shape, std::int64_t extent) {
  Shape out = shape;
  out.set(-1, extent);
  return out;
}

inline void require_float(const Tensor& t, std::string_view subject) {
  require(t.defined() && is_float(t.dtype()), subject, "wants a float tensor, got ",
          t.defined() ? name_of(t.dtype()) : "none");
}
inline void require_same_dtype(const Tensor& a, const Tensor& b, std::string_view subject) {
  require(a.dtype() == b.dtype(), subject, "dtypes differ: ", name_of(a.dtype()), " ", a.shape(), " and ",
          name_of(b.dtype()), " ", b.shape(), "; cast one of them");
}
inline void require_ids(const Tensor& ids, const Device& device, std::string_view subject, std::string_view what) {
  require(ids.defined() && ids.dtype() == DType::i32, subject, what, " must be i32, got ",
          ids.defined() ? name_of(ids.dtype()) : "none");
  require_on(device, subject, {{what, ids}});
}

// c = op(a) op(b) with the extents, transpositions, beta and what is fused given in args; leading dimensions that are
// not given are those of dense tensors.
inline void multiply(const Tensor& a, const Tensor& b, const Tensor& c, MatmulArgs args) {
  args.a = a.raw();
  args.b = b.raw();
  args.c = c.raw();
  if (args.lda == 0) args.lda = args.transpose_a ? args.M : args.K;
  if (args.ldb == 0) args.ldb = args.transpose_b ? args.K : args.N;
  if (args.ldc == 0) args.ldc = args.N;
  args.dtype = a.dtype();
  args.c_dtype = c.dtype();
  launch(c.stream(), args);
}

}  // namespace sieve
