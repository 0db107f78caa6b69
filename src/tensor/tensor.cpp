#include "tensor/tensor.h"

#include <algorithm>

#include "tensor/kernels/kernels.h"
#include "tensor/runtime.h"

namespace sieve {
namespace {

Extents extents_of(const Shape& s) {
  Extents e{};
  std::copy(s.begin(), s.end(), e.begin());
  return e;
}

}  // namespace

Shape contiguous_strides(const Shape& shape) {
  Shape strides = shape;
  std::int64_t step = 1;
  for (int axis = shape.rank() - 1; axis >= 0; --axis) {
    strides.set(axis, step);
    step = checked_product(step, std::max<std::int64_t>(shape[axis], 1), "shape");
  }
  return strides;
}

Shape broadcast_shape(const Shape& a, const Shape& b, std::string_view subject) {
  Shape out = a.rank() >= b.rank() ? a : b;
  for (int i = 1; i <= std::min(a.rank(), b.rank()); ++i) {
    const std::int64_t ea = a[a.rank() - i], eb = b[b.rank() - i];
    require(ea == eb || ea == 1 || eb == 1, subject, "shapes do not broadcast: ", a, " and ", b);
    out.set(out.rank() - i, ea == 1 ? eb : ea);
  }
  return out;
}

bool Tensor::is_contiguous() const {
  if (numel() == 0) return true;
  std::int64_t step = 1;
  for (int axis = rank() - 1; axis >= 0; --axis) {
    if (shape_[axis] == 1) continue;  // its stride is never used
    if (strides_[axis] != step) return false;
    step *= shape_[axis];
  }
  return true;
}

Tensor Tensor::reshape(const Shape& shape) const {
  require(defined(), "reshape", "undefined tensor");
  require(shape.numel() == numel(), "reshape", shape_, " has ", numel(), " elements, ", shape, " has ", shape.numel());
  require(is_contiguous(), "reshape", "strided view ", shape_, ": call contiguous() first");
  return {buffer_, offset_, shape, contiguous_strides(shape), dtype_};
}

Tensor Tensor::view(std::initializer_list<std::int64_t> extents) const {
  std::vector<std::int64_t> wanted(extents);
  std::int64_t known = 1;
  auto open = wanted.end();
  for (auto e = wanted.begin(); e != wanted.end(); ++e) {
    if (*e == -1) {
      require(open == wanted.end(), "view", "only one extent may be -1");
      open = e;
    } else {
      known = checked_product(known, *e, "view");
    }
  }
  if (open != wanted.end()) {
    require(known > 0 && numel() % known == 0, "view", shape_, " does not divide into pieces of ", known, " elements");
    *open = numel() / known;
  }
  return reshape(Shape(wanted));
}

Tensor Tensor::slice(int axis, std::int64_t begin, std::int64_t end) const {
  require(defined(), "slice", "undefined tensor");
  const int a = shape_.normalise(axis);
  require(0 <= begin && begin <= end && end <= shape_[a], "slice", "[", begin, ", ", end, ") of axis ", axis, " of ",
          shape_);
  Shape shape = shape_;
  shape.set(a, end - begin);
  return {buffer_, offset_ + begin * strides_[a], shape, strides_, dtype_};
}

Tensor Tensor::transpose(int a, int b) const {
  require(defined(), "transpose", "undefined tensor");
  Shape shape = shape_, strides = strides_;
  shape.set(a, shape_[b]);
  shape.set(b, shape_[a]);
  strides.set(a, strides_[b]);
  strides.set(b, strides_[a]);
  return {buffer_, offset_, shape, strides, dtype_};
}

Tensor Tensor::expand(const Shape& shape) const {
  require(defined(), "expand", "undefined tensor");
  const int added = shape.rank() - rank();
  require(added >= 0, "expand", shape_, " has a higher rank than ", shape);
  Shape strides = shape;
  for (int axis = 0; axis < shape.rank(); ++axis) {
    const std::int64_t have = axis < added ? 1 : shape_[axis - added];
    require(have == shape[axis] || have == 1, "expand", shape_, " does not broadcast to ", shape);
    strides.set(axis, have == shape[axis] && axis >= added ? strides_[axis - added] : 0);
  }
  return {buffer_, offset_, shape, strides, dtype_};
}

Tensor Tensor::contiguous() const { return is_contiguous() ? *this : clone(); }

Tensor Tensor::clone() const {
  Tensor out = empty_like(*this);
  out.copy_from(*this);
  return out;
}

Tensor Tensor::to(DType dtype) const {
  require(defined(), "to", "undefined tensor");
  if (dtype == dtype_) return *this;
  Tensor out = empty(shape_, dtype, stream());
  out.copy_from(*this);
  return out;
}

Tensor Tensor::to(const Stream& stream) const {
  require(defined(), "to", "undefined tensor");
  if (device() == stream.device) return *this;
  Tensor out = empty(shape_, dtype_, stream);
  out.copy_from(*this);
  return out;
}

// Between devices bytes move; what must be converted or gathered is so where it lies before, scattered where it
// arrives.
void Tensor::copy_across(const Tensor& source) {
  if (is_contiguous() && source.is_contiguous() && dtype_ == source.dtype_) {
    copy_bytes(raw(), stream(), source.raw(), source.stream(), nbytes());
  } else {
    Tensor here = empty(shape_, dtype_, stream());
    here.copy_across(source.contiguous().to(dtype_));
    copy_from(here);
  }
}

void Tensor::copy_from(const Tensor& source) {
  require(defined() && source.defined(), "copy", "undefined tensor");
  require(shape_ == source.shape_, "copy", "shapes differ: ", source.shape_, " into ", shape_);
  for (int axis = 0; axis < rank(); ++axis)
    require(strides_[axis] != 0 || shape_[axis] <= 1, "copy", "into a broadcast view of shape ", shape_);
  if (numel() == 0) return;
  if (device() != source.device()) return copy_across(source);
  launch(stream(), CopyArgs{.src = source.raw(),
                            .dst = raw(),
                            .rank = rank(),
                            .extents = extents_of(shape_),
                            .src_strides = extents_of(source.strides_),
                            .dst_strides = extents_of(strides_),
                            .src_dtype = source.dtype_,
                            .dst_dtype = dtype_});
}

void Tensor::zero() { fill(0); }

void Tensor::fill(double value) {
  require(defined(), "fill", "undefined tensor");
  if (is_contiguous()) {
    launch(stream(), FillArgs{.dst = raw(), .n = numel(), .value = value, .dtype = dtype_});
  } else {
    copy_from(full(Shape{}, value, dtype_, stream()).expand(shape_));
  }
}

double Tensor::item() const {
  require(defined() && numel() == 1, "item", "wants one element, has ", defined() ? shape_.str() : "no tensor");
  Tensor value = empty(shape_, DType::f64);
  value.copy_from(*this);
  return *value.data<double>();
}

Tensor empty(const Shape& shape, DType dtype, const Stream& stream) {
  const std::int64_t bytes = checked_product(shape.numel(), static_cast<std::int64_t>(size_of(dtype)), "tensor");
  return {allocate(static_cast<std::size_t>(bytes), stream), 0, shape, contiguous_strides(shape), dtype};
}

Tensor empty_pinned(const Shape& shape, DType dtype) {
  const std::int64_t bytes = checked_product(shape.numel(), static_cast<std::int64_t>(size_of(dtype)), "tensor");
  return {allocate_pinned(static_cast<std::size_t>(bytes)), 0, shape, contiguous_strides(shape), dtype};
}

Tensor zeros(const Shape& shape, DType dtype, const Stream& stream) { return full(shape, 0, dtype, stream); }

Tensor full(const Shape& shape, double value, DType dtype, const Stream& stream) {
  Tensor t = empty(shape, dtype, stream);
  t.fill(value);
  return t;
}

Tensor empty_like(const Tensor& t) {
  require(t.defined(), "empty_like", "undefined tensor");
  return empty(t.shape(), t.dtype(), t.stream());
}

Tensor zeros_like(const Tensor& t) {
  Tensor out = empty_like(t);
  out.zero();
  return out;
}

Tensor random_normal(const Shape& shape, double mean, double std, std::uint64_t seed, std::uint64_t stream,
                     DType dtype) {
  Tensor t = empty(shape, dtype);
  launch(t.stream(), RandomArgs{.dst = t.raw(),
                                .n = t.numel(),
                                .kind = Random::normal,
                                .a = mean,
                                .b = std,
                                .seed = seed,
                                .philox_stream = stream,
                                .dtype = dtype});
  return t;
}

Tensor random_uniform(const Shape& shape, double low, double high, std::uint64_t seed, std::uint64_t stream,
                      DType dtype) {
  Tensor t = empty(shape, dtype);
  launch(t.stream(), RandomArgs{.dst = t.raw(),
                                .n = t.numel(),
                                .kind = Random::uniform,
                                .a = low,
                                .b = high,
                                .seed = seed,
                                .philox_stream = stream,
                                .dtype = dtype});
  return t;
}

}  // namespace sieve
