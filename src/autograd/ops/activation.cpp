// gelu and swiglu. R rows, F features.
#include "autograd/ops.h"
#include "autograd/ops/args.h"
#include "autograd/record.h"

namespace sieve {
namespace {

struct GeluOp {
  static constexpr std::string_view name = "gelu";
  static constexpr std::size_t arity = 1;
  Tensor x;
  Gelu kind = Gelu::tanh;

  Tensor forward(const std::array<Tensor, 1>& in, Gelu form) {
    require_float(in[0], name);
    x = in[0].contiguous();
    kind = form;
    Tensor y = empty(x.shape(), x.dtype(), x.stream());
    launch(y.stream(),
           GeluArgs{.x = x.raw(), .y = y.raw(), .n = x.numel(), .tanh_form = kind == Gelu::tanh, .dtype = x.dtype()});
    return y;
  }
  std::array<Tensor, 1> backward(const Tensor& grad, Needs<1>) {
    Tensor dx = empty(x.shape(), x.dtype(), x.stream());
    launch(grad.stream(), GeluBackwardArgs{.dy = grad.raw(),
                                           .x = x.raw(),
                                           .dx = dx.raw(),
                                           .n = x.numel(),
                                           .tanh_form = kind == Gelu::tanh,
                                           .dtype = x.dtype()});
    return {dx};
  }
};

struct Swiglu {
  static constexpr std::string_view name = "swiglu";
  static constexpr std::size_t arity = 1;
  Tensor x;
  std::int64_t R = 0, F = 0;

  Tensor forward(const std::array<Tensor, 1>& in) {
    require_float(in[0], name);
    require(in[0].rank() >= 1 && in[0].size(-1) % 2 == 0, name, "wants x (..., 2F) = [gate | up], got ", in[0].shape());
    x = in[0].contiguous();
    R = rows_of(x);
    F = x.size(-1) / 2;
    Tensor y = empty(with_last(x.shape(), F), x.dtype(), x.stream());
    launch(y.stream(), SwigluArgs{.x_R2F = x.raw(), .y_RF = y.raw(), .R = R, .F = F, .dtype = x.dtype()});
    return y;
  }
  std::array<Tensor, 1> backward(const Tensor& grad, Needs<1>) {
    Tensor dx = empty(x.shape(), x.dtype(), x.stream());
    launch(grad.stream(),
           SwigluBackwardArgs{
               .dy_RF = grad.raw(), .x_R2F = x.raw(), .dx_R2F = dx.raw(), .R = R, .F = F, .dtype = x.dtype()});
    return {dx};
  }
};

}  // namespace

Variable gelu(const Variable& x, Gelu kind) { return record<GeluOp>({x}, kind); }
Variable swiglu(const Variable& x) { return record<Swiglu>({x}); }

}  // namespace sieve
