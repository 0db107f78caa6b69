// reshape and slice: the output shares the input's memory.
#include "autograd/ops.h"
#include "autograd/ops/args.h"
#include "autograd/record.h"

namespace sieve {
namespace {

struct Reshape {
  static constexpr std::string_view name = "reshape";
  static constexpr std::size_t arity = 1;
  Shape from;

  Tensor forward(const std::array<Tensor, 1>& in, const Shape& to) {
    require_float(in[0], name);
    require(in[0].numel() == to.numel(), name, in[0].shape(), " has ", in[0].numel(), " elements, ", to, " has ",
            to.numel());
    from = in[0].shape();
    return in[0].contiguous().reshape(to);
  }
  std::array<Tensor, 1> backward(const Tensor& grad, Needs<1>) { return {grad.reshape(from)}; }
};

struct Slice {
  static constexpr std::string_view name = "slice";
  static constexpr std::size_t arity = 1;
  Shape from;
  int axis = 0;
  std::int64_t begin = 0, end = 0;

  Tensor forward(const std::array<Tensor, 1>& in, int along, std::int64_t first, std::int64_t last) {
    require_float(in[0], name);
    from = in[0].shape();
    axis = along;
    begin = first;
    end = last;
    return in[0].slice(axis, begin, end);
  }
  std::array<Tensor, 1> backward(const Tensor& grad, Needs<1>) {
    Tensor out = zeros(from, grad.dtype(), grad.stream());
    out.slice(axis, begin, end).copy_from(grad);
    return {out};
  }
};

}  // namespace

Variable reshape(const Variable& x, const Shape& shape) { return record<Reshape>({x}, shape); }
Variable slice(const Variable& x, int axis, std::int64_t begin, std::int64_t end) {
  return record<Slice>({x}, axis, begin, end);
}

}  // namespace sieve
