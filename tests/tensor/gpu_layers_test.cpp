// CUDA kernels against their CPU twins: norms and activations, forward and backward.
#include <cmath>

#include "tensor/gpu_case.h"

using namespace sieve;
using namespace sieve::test;

namespace {

constexpr double kEps = 1e-5;

struct Norm {
  Tensor x, w, b, dy, mean, rstd;
};
Norm norm_inputs(Draw& draw, Place& place, DType t, std::int64_t R, std::int64_t D) {
  const DType c = compute_dtype(t);
  return {place.in(input(draw, {R, D}, t)), place.in(input(draw, {D}, t)),
          place.in(input(draw, {D}, t)),    place.in(input(draw, {R, D}, t)),
          place.in(input(draw, {R}, c)),    place.in(draw.uniform({R}, 0.5, 2).to(c).clone())};
}

// dx lies in its own memory, or over dy, or over what is added to it.
struct Gradients {
  Tensor dy, add, dx, dw, db;
  bool accumulate;
};
Gradients norm_gradients(Draw& draw, Place& place, DType t, std::int64_t R, std::int64_t D) {
  const DType c = compute_dtype(t);
  Gradients g;
  g.accumulate = draw.chance(0.5);
  const Tensor host_dy = input(draw, {R, D}, t), host_add = input(draw, {R, D}, t);
  const std::int64_t over = draw.integer(0, 2);
  g.dy = over == 1 ? place.inout(host_dy) : place.in(host_dy);
  if (over == 2 || draw.chance(0.5)) g.add = over == 2 ? place.inout(host_add) : place.in(host_add);
  if (over != 0 || draw.chance(0.9)) g.dx = over == 0 ? place.out({R, D}, t) : over == 1 ? g.dy : g.add;
  const auto sums = [&] {
    const Tensor old = input(draw, {D}, c);
    return g.accumulate ? place.inout(old) : place.out({D}, c);
  };
  if (draw.chance(0.9)) g.dw = sums();
  if (draw.chance(0.8)) g.db = sums();
  return g;
}

void* raw(const Tensor& t) { return t.defined() ? t.raw() : nullptr; }

std::vector<Tensor> defined(std::initializer_list<Tensor> tensors) {
  std::vector<Tensor> out;
  for (const Tensor& t : tensors)
    if (t.defined()) out.push_back(t);
  return out;
}

}  // namespace

SIEVE_TWIN_CASE("layer norm equals its CPU twin") {
  check_twin(
      [](Draw& draw, DType t, Place& place, bool large) {
        const auto [R, D] = matrix(draw, large, 20480);
        const DType c = compute_dtype(t);
        const bool keep = draw.chance(0.8), bias = draw.chance(0.8);
        const Norm in = norm_inputs(draw, place, t, R, D);
        const Tensor y = place.out({R, D}, t), mean = place.out({R}, c), rstd = place.out({R}, c);
        launch(place.stream(), LayerNormArgs{.x_RD = in.x.raw(),
                                             .w_D = in.w.raw(),
                                             .b_D = bias ? in.b.raw() : nullptr,
                                             .y_RD = y.raw(),
                                             .mean_R = keep ? mean.raw() : nullptr,
                                             .rstd_R = keep ? rstd.raw() : nullptr,
                                             .R = R,
                                             .D = D,
                                             .eps = kEps,
                                             .dtype = t});
        return std::vector{y, mean, rstd};
      },
      1100, 10);  // rstd may be 300 where a row is nearly constant: errors scale with it
}

SIEVE_TWIN_CASE("rms norm equals its CPU twin") {
  check_twin(
      [](Draw& draw, DType t, Place& place, bool large) {
        const auto [R, D] = matrix(draw, large, 20480);
        const bool keep = draw.chance(0.8);
        const Norm in = norm_inputs(draw, place, t, R, D);
        const Tensor y = place.out({R, D}, t), rstd = place.out({R}, compute_dtype(t));
        launch(place.stream(), RmsNormArgs{.x_RD = in.x.raw(),
                                           .w_D = in.w.raw(),
                                           .y_RD = y.raw(),
                                           .rstd_R = keep ? rstd.raw() : nullptr,
                                           .R = R,
                                           .D = D,
                                           .eps = kEps,
                                           .dtype = t});
        return std::vector{y, rstd};
      },
      1110, 10);
}

SIEVE_TWIN_CASE("layer norm backward equals its CPU twin") {
  check_twin(
      [](Draw& draw, DType t, Place& place, bool large) {
        const auto [R, D] = matrix(draw, large, 12288);
        const Norm in = norm_inputs(draw, place, t, R, D);
        const Gradients g = norm_gradients(draw, place, t, R, D);
        launch(place.stream(), LayerNormBackwardArgs{.dy_RD = g.dy.raw(),
                                                     .x_RD = in.x.raw(),
                                                     .w_D = in.w.raw(),
                                                     .mean_R = in.mean.raw(),
                                                     .rstd_R = in.rstd.raw(),
                                                     .dx_RD = raw(g.dx),
                                                     .dw_D = raw(g.dw),
                                                     .db_D = raw(g.db),
                                                     .R = R,
                                                     .D = D,
                                                     .accumulate = g.accumulate,
                                                     .dtype = t,
                                                     .dx_add_RD = raw(g.add)});
        return defined({g.dx, g.dw, g.db});
      },
      1120, 3);
}

SIEVE_TWIN_CASE("rms norm backward equals its CPU twin") {
  check_twin(
      [](Draw& draw, DType t, Place& place, bool large) {
        const auto [R, D] = matrix(draw, large, 12288);
        const Norm in = norm_inputs(draw, place, t, R, D);
        const Gradients g = norm_gradients(draw, place, t, R, D);
        launch(place.stream(), RmsNormBackwardArgs{.dy_RD = g.dy.raw(),
                                                   .x_RD = in.x.raw(),
                                                   .w_D = in.w.raw(),
                                                   .rstd_R = in.rstd.raw(),
                                                   .dx_RD = raw(g.dx),
                                                   .dw_D = raw(g.dw),
                                                   .R = R,
                                                   .D = D,
                                                   .accumulate = g.accumulate,
                                                   .dtype = t,
                                                   .dx_add_RD = raw(g.add)});
        return defined({g.dx, g.dw});
      },
      1130, 3);
}

SIEVE_TWIN_CASE("gelu, both forms, and its slope equal their CPU twins") {
  for (bool tanh_form : {true, false}) {
    check_twin(
        [tanh_form](Draw& draw, DType t, Place& place, bool large) {
          const std::int64_t n = large ? 20011 : draw.integer(0, draw.chance(0.2) ? 20000 : 90);
          const Tensor x = place.in(input(draw, {n}, t, 3)), y = place.out({n}, t);
          const bool in_place = draw.chance(0.5);
          const Tensor dy = in_place ? place.inout(input(draw, {n}, t)) : place.in(input(draw, {n}, t));
          const Tensor dx = in_place ? dy : place.out({n}, t);
          launch(place.stream(), GeluArgs{.x = x.raw(), .y = y.raw(), .n = n, .tanh_form = tanh_form, .dtype = t});
          launch(place.stream(),
                 GeluBackwardArgs{
                     .dy = dy.raw(), .x = x.raw(), .dx = dx.raw(), .n = n, .tanh_form = tanh_form, .dtype = t});
          return std::vector{y, dx};
        },
        tanh_form ? 1140 : 1142);
  }
}

SIEVE_TWIN_CASE("swiglu and its gradient equal their CPU twins") {
  check_twin(
      [](Draw& draw, DType t, Place& place, bool large) {
        const auto [R, F] = matrix(draw, large);
        const Tensor x = place.in(input(draw, {R, 2 * F}, t, 2)), dy = place.in(input(draw, {R, F}, t)),
                     y = place.out({R, F}, t), dx = place.out({R, 2 * F}, t);
        launch(place.stream(), SwigluArgs{.x_R2F = x.raw(), .y_RF = y.raw(), .R = R, .F = F, .dtype = t});
        launch(place.stream(),
               SwigluBackwardArgs{.dy_RF = dy.raw(), .x_R2F = x.raw(), .dx_R2F = dx.raw(), .R = R, .F = F, .dtype = t});
        return std::vector{y, dx};
      },
      1150);
}

TEST_CASE("GPU: gelu at the far ends is finite", "[gpu][small]") {
  SIEVE_NEEDS_GPU();
  for (DType t : kFloats) {
    for (bool tanh_form : {true, false}) {
      const Tensor x = from_values<float>(std::array{-1e30f, -100.f, -20.f, 20.f, 100.f, 1e10f}, {6}).to(t),
                   there = x.to(gpu_stream()), y = empty({6}, t, gpu_stream());
      launch(gpu_stream(), GeluArgs{.x = there.raw(), .y = y.raw(), .n = 6, .tanh_form = tanh_form, .dtype = t});
      const Values v = values_of(y.to(Stream{})), u = values_of(x);
      CAPTURE(name_of(t), tanh_form);
      for (std::size_t i = 0; i < 3; ++i) CHECK(std::abs(v[i]) < 1e-30);
      for (std::size_t i = 3; i < 6; ++i) CHECK(v[i] == u[i]);
    }
  }
}
