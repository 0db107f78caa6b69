#include "autograd/gradient.h"

#include <array>
#include <utility>

#include "core/error.h"
#include "tensor/kernels/kernels.h"

namespace sieve {
namespace {

bool only_reference(const Tensor& t) { return t.use_count() == 1 && t.is_contiguous(); }

void add_to(const Tensor& total, const Tensor& grad) {
  launch(total.stream(), AxpbyArgs{.x = grad.raw(),
                                   .y = total.raw(),
                                   .n = total.numel(),
                                   .alpha = 1,
                                   .beta = 1,
                                   .x_dtype = grad.dtype(),
                                   .y_dtype = total.dtype()});
}

}  // namespace

Tensor unbroadcast(const Tensor& grad, const Shape& shape) {
  if (grad.shape() == shape) return grad;
  const int added = grad.rank() - shape.rank();
  std::array<bool, kMaxRank> reduce{};
  bool fits = added >= 0, leading = true;
  for (int i = 0; i < grad.rank() && fits; ++i) {
    const bool summed = i < added || (shape[i - added] == 1 && grad.size(i) != 1);
    fits = summed || shape[i - added] == grad.size(i);
    leading = leading && summed == (i < added);
    reduce[static_cast<std::size_t>(i)] = summed;
  }
  require(fits, "backward", "a gradient of shape ", grad.shape(), " for an input of shape ", shape);
  Tensor out = empty(shape, compute_dtype(grad.dtype()), grad.stream());
  if (leading) {  // a bias: rows are added up
    const Tensor rows = grad.contiguous();
    const std::int64_t n = shape.numel();
    std::int64_t r = 1;
    for (int i = 0; i < added; ++i) r *= grad.size(i);
    launch(grad.stream(),
           ColumnSumArgs{.x_RN = rows.raw(), .out_N = out.raw(), .R = r, .N = n, .ld = n, .dtype = grad.dtype()});
    return out;
  }
  ReduceArgs args{.x = grad.raw(),
                  .out = out.raw(),
                  .rank = grad.rank(),
                  .reduce = reduce,
                  .dtype = grad.dtype(),
                  .out_dtype = out.dtype()};
  for (int i = 0; i < grad.rank(); ++i) {
    args.extents[static_cast<std::size_t>(i)] = grad.size(i);
    args.x_strides[static_cast<std::size_t>(i)] = grad.stride(i);
  }
  launch(grad.stream(), args);
  return out;
}

Tensor sum_of(Tensor total, Tensor grad, DType dtype) {
  if (!total.defined()) return grad;
  total = total.contiguous();
  grad = grad.contiguous();
  if (grad.dtype() == dtype && only_reference(grad)) std::swap(total, grad);
  if (total.dtype() != dtype || !only_reference(total)) {
    Tensor copy = empty(total.shape(), compute_dtype(dtype), total.stream());
    copy.copy_from(total);
    total = std::move(copy);
  }
  add_to(total, grad);
  return total;
}

void accumulate(Tensor& total, Tensor grad, DType dtype) {
  if (!total.defined()) {
    grad = grad.to(dtype);
    total = only_reference(grad) ? std::move(grad) : grad.clone();
    return;
  }
  require(total.is_contiguous() && total.dtype() == dtype && total.shape() == grad.shape(), "backward",
          "the gradient in place is ", name_of(total.dtype()), " ", total.shape(), ", wanted dense ", name_of(dtype),
          " ", grad.shape());
  add_to(total, grad.contiguous());
}

}  // namespace sieve
