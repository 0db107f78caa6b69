// layer_norm and rms_norm. R rows, D features. The normalised value is not kept: backward makes it again from x and two
// statistics.
#include "autograd/ops.h"
#include "autograd/ops/args.h"
#include "autograd/record.h"

namespace sieve {
namespace {

void check(const Tensor& x, const Tensor& w, std::string_view subject, std::string_view what) {
  require_float(x, subject);
  require_float(w, subject);
  require_same_dtype(x, w, subject);
  require(x.rank() >= 1 && w.shape() == Shape{x.size(-1)}, subject, "wants x (..., D) and ", what, " (D), got ",
          x.shape(), " and ", w.shape());
}

// For dx: what is added to it may be overwritten where nobody else holds it.
Tensor room_for(const Tensor& so_far, const Tensor& x) {
  return so_far.defined() && so_far.use_count() == 1 ? so_far : empty(x.shape(), x.dtype(), x.stream());
}

struct LayerNorm {
  static constexpr std::string_view name = "layer_norm";
  static constexpr std::size_t arity = 3;
  Needs<3> need{};
  Tensor x, w, mean, rstd;
  Tensor so_far;  // the gradient that came past the norm
  std::int64_t R = 0, D = 0;

  Tensor forward(const std::array<Tensor, 3>& in, double eps) {
    check(in[0], in[1], name, "w");
    if (in[2].defined()) check(in[0], in[2], name, "bias");
    const Tensor bias = in[2].defined() ? in[2].contiguous() : Tensor();
    x = in[0].contiguous();
    w = in[1].contiguous();
    R = rows_of(x);
    D = x.size(-1);
    mean = empty({R}, compute_dtype(x.dtype()), x.stream());
    rstd = empty_like(mean);
    Tensor y = empty(x.shape(), x.dtype(), x.stream());
    launch(y.stream(), LayerNormArgs{.x_RD = x.raw(),
                                     .w_D = w.raw(),
                                     .b_D = bias.defined() ? bias.raw() : nullptr,
                                     .y_RD = y.raw(),
                                     .mean_R = mean.raw(),
                                     .rstd_R = rstd.raw(),
                                     .R = R,
                                     .D = D,
                                     .eps = eps,
                                     .dtype = x.dtype()});
    return y;
  }
  std::array<Tensor, 3> backward(const Tensor& grad, Needs<3>) {
    std::array<Tensor, 3> out;
    if (need[0]) out[0] = room_for(so_far, x);
    if (need[1]) out[1] = empty({D}, compute_dtype(x.dtype()), x.stream());
    if (need[2]) out[2] = empty({D}, compute_dtype(x.dtype()), x.stream());
    const auto at = [&](int i) {
      return need[static_cast<std::size_t>(i)] ? out[static_cast<std::size_t>(i)].raw() : nullptr;
    };
    launch(grad.stream(), LayerNormBackwardArgs{.dy_RD = grad.raw(),
                                                .x_RD = x.raw(),
                                                .w_D = w.raw(),
                                                .mean_R = mean.raw(),
                                                .rstd_R = rstd.raw(),
                                                .dx_RD = at(0),
                                                .dw_D = at(1),
                                                .db_D = at(2),
                                                .R = R,
                                                .D = D,
                                                .dtype = x.dtype(),
                                                .dx_add_RD = so_far.defined() ? so_far.raw() : nullptr});
    return out;
  }
};

struct RmsNorm {
  static constexpr std::string_view name = "rms_norm";
  static constexpr std::size_t arity = 2;
  Tensor x, w, rstd;
  Tensor so_far;  // the gradient that came past the norm
  std::int64_t R = 0, D = 0;

  Tensor forward(const std::array<Tensor, 2>& in, double eps) {
    check(in[0], in[1], name, "w");
    x = in[0].contiguous();
    w = in[1].contiguous();
    R = rows_of(x);
    D = x.size(-1);
    rstd = empty({R}, compute_dtype(x.dtype()), x.stream());
    Tensor y = empty(x.shape(), x.dtype(), x.stream());
    launch(y.stream(), RmsNormArgs{.x_RD = x.raw(),
                                   .w_D = w.raw(),
                                   .y_RD = y.raw(),
                                   .rstd_R = rstd.raw(),
                                   .R = R,
                                   .D = D,
                                   .eps = eps,
                                   .dtype = x.dtype()});
    return y;
  }
  std::array<Tensor, 2> backward(const Tensor& grad, Needs<2> need) {
    std::array<Tensor, 2> out;
    if (need[0]) out[0] = room_for(so_far, x);
    if (need[1]) out[1] = empty({D}, compute_dtype(x.dtype()), x.stream());
    launch(grad.stream(), RmsNormBackwardArgs{.dy_RD = grad.raw(),
                                              .x_RD = x.raw(),
                                              .w_D = w.raw(),
                                              .rstd_R = rstd.raw(),
                                              .dx_RD = need[0] ? out[0].raw() : nullptr,
                                              .dw_D = need[1] ? out[1].raw() : nullptr,
                                              .R = R,
                                              .D = D,
                                              .dtype = x.dtype(),
                                              .dx_add_RD = so_far.defined() ? so_far.raw() : nullptr});
    return out;
  }
};

}  // namespace

Variable layer_norm(const Variable& x, const Variable& w, const Variable& bias, double eps) {
  return record<LayerNorm>({x, w, bias}, eps);
}
Variable rms_norm(const Variable& x, const Variable& w, double eps) { return record<RmsNorm>({x, w}, eps); }

}  // namespace sieve
