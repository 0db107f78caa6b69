// add, mul, scale, sum, cast. Broadcasting is NumPy's; the engine sums gradients back (gradient.h).
#include "autograd/ops.h"
#include "autograd/ops/args.h"
#include "autograd/record.h"

namespace sieve {
namespace {

Tensor binary(Binary op, const Tensor& a, const Tensor& b, std::string_view subject) {
  require_float(a, subject);
  require_float(b, subject);
  require_same_dtype(a, b, subject);
  const Shape shape = broadcast_shape(a.shape(), b.shape(), subject);
  const Tensor wide_a = a.expand(shape), wide_b = b.expand(shape);
  Tensor out = empty(shape, a.dtype(), a.stream());
  launch(out.stream(), BinaryArgs{.op = op,
                                  .a = wide_a.raw(),
                                  .b = wide_b.raw(),
                                  .out = out.raw(),
                                  .rank = shape.rank(),
                                  .extents = extents_of(wide_a),
                                  .a_strides = strides_of(wide_a),
                                  .b_strides = strides_of(wide_b),
                                  .dtype = a.dtype()});
  return out;
}

struct Add {
  static constexpr std::string_view name = "add";
  static constexpr std::size_t arity = 2;

  Tensor forward(const std::array<Tensor, 2>& in) { return binary(Binary::add, in[0], in[1], name); }
  std::array<Tensor, 2> backward(const Tensor& grad, Needs<2> need) {
    return {need[0] ? grad : Tensor(), need[1] ? grad : Tensor()};
  }
};

struct Mul {
  static constexpr std::string_view name = "mul";
  static constexpr std::size_t arity = 2;
  Needs<2> need{};
  Tensor a, b;  // a where b's gradient is wanted, b where a's is
  Shape a_shape, b_shape;

  Tensor forward(const std::array<Tensor, 2>& in) {
    if (need[1]) a = in[0];
    if (need[0]) b = in[1];
    a_shape = in[0].shape();
    b_shape = in[1].shape();
    return binary(Binary::mul, in[0], in[1], name);
  }
  std::array<Tensor, 2> backward(const Tensor& grad, Needs<2>) {
    return {need[0] ? times(grad, b, a_shape) : Tensor(), need[1] ? times(grad, a, b_shape) : Tensor()};
  }
  // The engine will sum the products of a broadcast input: they must not be rounded to bf16 before.
  static Tensor times(const Tensor& grad, const Tensor& other, const Shape& wanted) {
    const DType dtype = grad.shape() == wanted ? grad.dtype() : compute_dtype(grad.dtype());
    return binary(Binary::mul, grad.to(dtype), other.to(dtype), name);
  }
};

Tensor scaled(const Tensor& x, double factor) {
  const Tensor dense = x.contiguous();
  Tensor out = empty(x.shape(), x.dtype(), x.stream());
  launch(out.stream(), AxpbyArgs{.x = dense.raw(),
                                 .y = out.raw(),
                                 .n = out.numel(),
                                 .alpha = factor,
                                 .beta = 0,
                                 .x_dtype = x.dtype(),
                                 .y_dtype = x.dtype()});
  return out;
}

struct Scale {
  static constexpr std::string_view name = "scale";
  static constexpr std::size_t arity = 1;
  double factor = 1;

  Tensor forward(const std::array<Tensor, 1>& in, double f) {
    require_float(in[0], name);
    factor = f;
    return scaled(in[0], factor);
  }
  std::array<Tensor, 1> backward(const Tensor& grad, Needs<1>) { return {scaled(grad, factor)}; }
};

struct Sum {
  static constexpr std::string_view name = "sum";
  static constexpr std::size_t arity = 1;
  Shape shape;

  Tensor forward(const std::array<Tensor, 1>& in) {
    require_float(in[0], name);
    shape = in[0].shape();
    const Tensor x = in[0].contiguous();
    Tensor total = empty({}, DType::f64, x.stream());
    launch(x.stream(), SumArgs{.x = x.raw(), .sum = total.data<double>(), .n = x.numel(), .dtype = x.dtype()});
    return total.to(compute_dtype(x.dtype()));
  }
  std::array<Tensor, 1> backward(const Tensor& grad, Needs<1>) { return {grad.expand(shape)}; }
};

struct Cast {
  static constexpr std::string_view name = "cast";
  static constexpr std::size_t arity = 1;

  Tensor forward(const std::array<Tensor, 1>& in, DType dtype) {
    require_float(in[0], name);
    require(is_float(dtype), name, "to ", name_of(dtype), ": only float dtypes have gradients");
    return in[0].to(dtype);
  }
  std::array<Tensor, 1> backward(const Tensor& grad, Needs<1>) { return {grad}; }  // the engine converts
};

}  // namespace

Variable add(const Variable& a, const Variable& b) { return record<Add>({a, b}); }
Variable mul(const Variable& a, const Variable& b) { return record<Mul>({a, b}); }
Variable scale(const Variable& x, double factor) { return record<Scale>({x}, factor); }
Variable sum(const Variable& x) { return record<Sum>({x}); }
Variable cast(const Variable& x, DType dtype) { return record<Cast>({x}, dtype); }

}  // namespace sieve
