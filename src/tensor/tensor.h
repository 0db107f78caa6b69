// A typed, strided view of a shared buffer. Copying a Tensor copies the view, never the data. Tensor knows nothing of
// gradients. Every mismatch of shape, dtype or layout throws Error(Exit::internal) that names the subject and the
// numbers.
#pragma once

#include <algorithm>
#include <memory>
#include <span>
#include <vector>

#include "core/dtype.h"
#include "core/shape.h"
#include "tensor/allocator.h"
#include "tensor/device.h"

namespace sieve {

class Tensor {
 public:
  Tensor() = default;  // undefined: stands for "no tensor"
  Tensor(std::shared_ptr<Buffer> buffer, std::int64_t offset, const Shape& shape, const Shape& strides, DType dtype)
      : buffer_(std::move(buffer)), offset_(offset), shape_(shape), strides_(strides), dtype_(dtype) {}

  bool defined() const { return buffer_ != nullptr; }
  const Shape& shape() const { return shape_; }
  std::int64_t size(int axis) const { return shape_[axis]; }
  int rank() const { return shape_.rank(); }
  std::int64_t numel() const { return shape_.numel(); }
  std::int64_t stride(int axis) const { return strides_[axis]; }  // in elements; 0 where broadcast
  DType dtype() const { return dtype_; }
  Device device() const { return buffer_->stream().device; }
  const Stream& stream() const { return buffer_->stream(); }
  bool is_contiguous() const;
  bool same_storage(const Tensor& other) const { return buffer_ == other.buffer_; }
  long use_count() const { return buffer_.use_count(); }
  std::size_t nbytes() const { return static_cast<std::size_t>(numel()) * size_of(dtype_); }

  // First element of the view, untyped and typed (the type is checked).
  void* raw() const {
    return static_cast<std::byte*>(buffer_->data()) + offset_ * static_cast<std::int64_t>(size_of(dtype_));
  }
  template <class T>
  T* data() const {
    require(defined(), "tensor", "data() of an undefined tensor");
    require(dtype_of<T> == dtype_, "tensor", "data<", name_of(dtype_of<T>), ">() of ", name_of(dtype_), " ", shape_);
    return static_cast<T*>(raw());
  }
  template <class T>
  std::span<T> span() const {  // contiguous only
    require(is_contiguous(), "tensor", "span() of a strided view ", shape_);
    return {data<T>(), static_cast<std::size_t>(numel())};
  }

  // Views: no data moves.
  Tensor reshape(const Shape& shape) const;  // one extent may be -1 through view(); contiguous only
  Tensor view(std::initializer_list<std::int64_t> extents) const;
  Tensor flatten() const { return reshape(Shape{numel()}); }
  Tensor slice(int axis, std::int64_t begin, std::int64_t end) const;
  Tensor transpose(int a, int b) const;
  Tensor expand(const Shape& shape) const;  // NumPy broadcasting, stride 0

  // Copies.
  Tensor contiguous() const;  // itself if it is already
  Tensor clone() const;
  Tensor to(DType dtype) const;           // itself if nothing changes
  Tensor to(const Stream& stream) const;  // itself if it is on that device; dense
  void copy_from(const Tensor& source);   // same shape; converts dtype; any strides on both sides; any devices
  void zero();
  void fill(double value);
  double item() const;  // the one element of a one-element tensor, as double; waits for a GPU

 private:
  void copy_across(const Tensor& source);

  std::shared_ptr<Buffer> buffer_;
  std::int64_t offset_ = 0;  // elements
  Shape shape_, strides_;
  DType dtype_ = DType::f32;
};

// Creation. Without a stream: the CPU.
Tensor empty(const Shape& shape, DType dtype, const Stream& stream = {});
Tensor zeros(const Shape& shape, DType dtype, const Stream& stream = {});
Tensor full(const Shape& shape, double value, DType dtype, const Stream& stream = {});
Tensor empty_pinned(const Shape& shape, DType dtype);  // CPU memory for copies that run beside the host's work
Tensor empty_like(const Tensor& t);
Tensor zeros_like(const Tensor& t);
template <class T>
Tensor from_values(std::span<const T> values, const Shape& shape) {
  Tensor t = empty(shape, dtype_of<T>);
  require(static_cast<std::int64_t>(values.size()) == t.numel(), "from_values", values.size(), " values for ", shape);
  std::copy(values.begin(), values.end(), t.data<T>());
  return t;
}
// Counter-based: the element's index is the counter (core/rng.h).
Tensor random_normal(const Shape& shape, double mean, double std, std::uint64_t seed, std::uint64_t stream,
                     DType dtype = DType::f32);
Tensor random_uniform(const Shape& shape, double low, double high, std::uint64_t seed, std::uint64_t stream,
                      DType dtype = DType::f32);

Shape broadcast_shape(const Shape& a, const Shape& b, std::string_view subject);
Shape contiguous_strides(const Shape& shape);

}  // namespace sieve
