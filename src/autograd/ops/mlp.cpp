// gelu_mlp: two products with GELU between them, all of whose elementwise work rides on the products. R rows, C
// features in, F hidden, O features out.
#include "autograd/ops.h"
#include "autograd/ops/linear.h"

namespace sieve {
namespace {

struct GeluMlp {
  static constexpr std::string_view name = "gelu_mlp";
  static constexpr std::size_t arity = 6;  // x, w1, b1, w2, b2, residual
  Needs<6> need{};
  Tensor x, w1, w2;
  Tensor pre;     // (R, F), GELU's input
  Tensor hidden;  // (R, F), its output, for dW2; undefined if backward makes it again
  LinearShape up, down;
  Shape x_shape;

  Tensor forward(const std::array<Tensor, 6>& in, bool keep_hidden) {
    up = LinearShape::of(name, in[0], in[1], in[2], {});
    const Tensor rows = in[0].contiguous(), first = in[1].contiguous(), second = in[3].contiguous();
    const Tensor b1 = in[2].defined() ? in[2].contiguous() : Tensor();
    const Tensor b2 = in[4].defined() ? in[4].contiguous() : Tensor();
    const Tensor residual = in[5].defined() ? in[5].contiguous() : Tensor();
    x_shape = in[0].shape();
    const bool through = need[0] || need[1] || need[2];
    Tensor h = empty(up.y, rows.dtype(), rows.stream());
    down = LinearShape::of(name, h, second, b2, residual);
    if (through || (need[3] && !keep_hidden)) pre = empty_like(h);
    multiply(rows, first, h,
             {.bias_N = raw(b1),
              .M = up.R,
              .N = up.O,
              .K = up.I,
              .transpose_b = true,
              .epilogue = Epilogue::gelu,
              .pre_MN = raw(pre)});
    Tensor y = empty(down.y, rows.dtype(), rows.stream());
    multiply(h, second, y,
             {.bias_N = raw(b2), .M = down.R, .N = down.O, .K = down.I, .transpose_b = true, .add_MN = raw(residual)});
    if (need[1]) x = rows;
    if (need[0]) w1 = first;
    if (through) w2 = second;
    if (need[3] && keep_hidden) hidden = h;
    return y;
  }

  std::array<Tensor, 6> backward(const Tensor& grad, Needs<6>) {
    std::array<Tensor, 6> out;
    if (need[3] && !hidden.defined()) {
      hidden = empty_like(pre);
      launch(grad.stream(), GeluArgs{.x = pre.raw(), .y = hidden.raw(), .n = pre.numel(), .dtype = pre.dtype()});
    }
    const auto [dw2, db2] = WeightGradients::of(grad, hidden, down, need[3], need[4]);
    hidden = Tensor();
    out[3] = dw2, out[4] = db2;
    if (need[5]) out[5] = grad;
    if (!(need[0] || need[1] || need[2])) return out;
    const Tensor dpre = empty_like(pre);  // (dy W2) GELU'(pre)
    multiply(grad, w2, dpre,
             {.M = down.R, .N = down.I, .K = down.O, .epilogue = Epilogue::gelu_backward, .pre_MN = pre.raw()});
    pre = Tensor();
    if (need[0]) {
      out[0] = empty(x_shape, grad.dtype(), grad.stream());
      multiply(dpre, w1, out[0], {.M = up.R, .N = up.I, .K = up.O});
    }
    const auto [dw1, db1] = WeightGradients::of(dpre, x, up, need[1], need[2]);
    out[1] = dw1, out[2] = db1;
    return out;
  }

  static void* raw(const Tensor& t) { return t.defined() ? t.raw() : nullptr; }
};

}  // namespace

Variable gelu_mlp(const Variable& x, const Variable& w1, const Variable& b1, const Variable& w2, const Variable& b2,
                  const Variable& residual, bool keep_hidden) {
  return record<GeluMlp>({x, w1, b1, w2, b2, residual}, keep_hidden);
}

}  // namespace sieve
