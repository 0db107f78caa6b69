// y = x W^T + b + residual with its gradients: the part that linear, linear_add and gelu_mlp share. R rows of x, I
// features in, O features out.
#pragma once

#include "autograd/ops/args.h"
#include "autograd/record.h"

namespace sieve {

struct LinearShape {
  std::int64_t R = 0, I = 0, O = 0;
  Shape y;

  // Checks x (..., I), w (O, I), b (O) or undefined, residual (..., O) or undefined.
  static LinearShape of(std::string_view subject, const Tensor& x, const Tensor& w, const Tensor& bias,
                        const Tensor& residual) {
    require_float(x, subject);
    require_float(w, subject);
    require_same_dtype(x, w, subject);
    require(x.rank() >= 1 && w.rank() == 2 && x.size(-1) == w.size(1), subject, "wants x (..., I) and w (O, I), got ",
            x.shape(), " and ", w.shape());
    const LinearShape out{rows_of(x), w.size(1), w.size(0), with_last(x.shape(), w.size(0))};
    if (bias.defined()) {
      require_same_dtype(w, bias, subject);
      require(bias.shape() == Shape{out.O}, subject, "wants a bias of shape (", out.O, "), got ", bias.shape());
    }
    if (residual.defined()) {
      require_same_dtype(w, residual, subject);
      require(residual.shape() == out.y, subject, "wants a residual of shape ", out.y, ", got ", residual.shape());
    }
    return out;
  }
};

// dW (O, I) = dy^T (O, R) x (R, I), in fp32 whatever the dtype of W; db, the sum of dy over rows, comes out of the same
// product. Where only db is wanted it is dy itself: the engine sums it.
struct WeightGradients {
  Tensor dw, db;

  static WeightGradients of(const Tensor& dy, const Tensor& x, const LinearShape& shape, bool need_w, bool need_b) {
    const DType exact = compute_dtype(dy.dtype());
    if (!need_w) return {{}, need_b ? dy : Tensor()};
    WeightGradients out;
    out.dw = empty({shape.O, shape.I}, exact, dy.stream());
    if (need_b) out.db = empty({shape.O}, exact, dy.stream());
    multiply(
        dy, x, out.dw,
        {.M = shape.O, .N = shape.I, .K = shape.R, .transpose_a = true, .a_sum_M = need_b ? out.db.raw() : nullptr});
    return out;
  }
};

struct LinearProduct {
  Tensor x, w;  // x for dW, w for dx
  LinearShape shape;
  Shape x_shape;

  // in: x, w, bias, residual. keep: whether dx and dW will be asked for.
  Tensor forward(std::string_view subject, const std::array<Tensor, 4>& in, std::array<bool, 2> keep) {
    shape = LinearShape::of(subject, in[0], in[1], in[2], in[3]);
    x_shape = in[0].shape();
    const Tensor rows = in[0].contiguous(), weight = in[1].contiguous();
    const Tensor bias = in[2].defined() ? in[2].contiguous() : Tensor();
    const Tensor residual = in[3].defined() ? in[3].contiguous() : Tensor();
    if (keep[1]) x = rows;
    if (keep[0]) w = weight;
    Tensor y = empty(shape.y, rows.dtype(), rows.stream());
    multiply(rows, weight, y,
             {.bias_N = bias.defined() ? bias.raw() : nullptr,
              .M = shape.R,
              .N = shape.O,
              .K = shape.I,
              .transpose_b = true,
              .add_MN = residual.defined() ? residual.raw() : nullptr});
    return y;
  }

  std::array<Tensor, 3> backward(const Tensor& grad, std::array<bool, 3> need) const {
    Tensor dx;
    if (need[0]) {  // dx (R, I) = dy (R, O) W (O, I)
      dx = empty(x_shape, grad.dtype(), grad.stream());
      multiply(grad, w, dx, {.M = shape.R, .N = shape.I, .K = shape.O});
    }
    const auto [dw, db] = WeightGradients::of(grad, x, shape, need[1], need[2]);
    return {dx, dw, db};
  }
};

}  // namespace sieve
