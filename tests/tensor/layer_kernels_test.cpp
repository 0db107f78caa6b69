// Norms and activations, forward and backward. Backward references are the derivatives written out in fp64; the
// autograd tests compare them with finite differences.
#include <cmath>

#include "tensor/kernel_case.h"

using namespace sieve;
using namespace sieve::test;

namespace {

constexpr double kEps = 1e-5;

struct NormSizes {
  std::int64_t R, D;
};
NormSizes norm_sizes(Draw& draw, bool large) {
  if (large) return {700, 230};
  return {draw.extent(40), draw.chance(0.3) ? draw.integer(60, 140) : draw.extent(40, false)};
}

struct Row {
  double mean = 0, rstd = 0;
  Values xhat;
};

Row normalise(const double* x, std::int64_t D, bool centred) {
  Row row;
  for (std::int64_t i = 0; centred && i < D; ++i) row.mean += x[i] / static_cast<double>(D);
  double square = 0;
  for (std::int64_t i = 0; i < D; ++i) square += (x[i] - row.mean) * (x[i] - row.mean);
  row.rstd = 1 / std::sqrt(square / static_cast<double>(D) + kEps);
  for (std::int64_t i = 0; i < D; ++i) row.xhat.push_back((x[i] - row.mean) * row.rstd);
  return row;
}

struct NormInputs {
  Tensor x, w, b, dy;
};

// {y, mean, rstd, dx, dw, db}
std::vector<Values> norm_reference(const NormInputs& in, bool centred, const Values& old_dw, const Values& old_db) {
  const std::int64_t R = in.x.size(0), D = in.x.size(1);
  const Values x = values_of(in.x), w = values_of(in.w), b = in.b.defined() ? values_of(in.b) : Values(idx(D), 0.0),
               dy = values_of(in.dy);
  Values y, mean, rstd, dx, dw = old_dw, db = old_db;
  for (std::int64_t r = 0; r < R; ++r) {
    const Row row = normalise(x.data() + r * D, D, centred);
    mean.push_back(row.mean);
    rstd.push_back(row.rstd);
    double mean_g = 0, mean_gx = 0;
    for (std::int64_t i = 0; i < D; ++i) {
      const double d = dy[idx(r * D + i)], g = d * w[idx(i)];
      y.push_back(row.xhat[idx(i)] * w[idx(i)] + b[idx(i)]);
      dw[idx(i)] += d * row.xhat[idx(i)];
      db[idx(i)] += d;
      mean_g += centred ? g / static_cast<double>(D) : 0;
      mean_gx += g * row.xhat[idx(i)] / static_cast<double>(D);
    }
    for (std::int64_t i = 0; i < D; ++i)
      dx.push_back(row.rstd * (dy[idx(r * D + i)] * w[idx(i)] - mean_g - row.xhat[idx(i)] * mean_gx));
  }
  return {y, mean, rstd, dx, dw, db};
}

}  // namespace

TEST_CASE("layer norm and its gradients") {
  check_family(
      [](Draw& draw, DType t, bool large) {
        const auto [R, D] = norm_sizes(draw, large);
        const DType c = compute_dtype(t);
        const bool accumulate = draw.chance(0.5), in_place = draw.chance(0.3), bias = draw.chance(0.7);
        const NormInputs in{input(draw, {R, D}, t, 3), input(draw, {D}, t), bias ? input(draw, {D}, t) : Tensor(),
                            input(draw, {R, D}, t)};
        const Tensor old_dw = input(draw, {D}, c), old_db = input(draw, {D}, c);
        const Tensor y = output({R, D}, t), mean = output({R}, c), rstd = output({R}, c);
        const Tensor dx = in_place ? in.dy.clone() : output({R, D}, t);
        const Tensor dw = accumulate ? old_dw.clone() : output({D}, c),
                     db = accumulate ? old_db.clone() : output({D}, c);
        launch({}, LayerNormArgs{.x_RD = in.x.raw(),
                                 .w_D = in.w.raw(),
                                 .b_D = bias ? in.b.raw() : nullptr,
                                 .y_RD = y.raw(),
                                 .mean_R = mean.raw(),
                                 .rstd_R = rstd.raw(),
                                 .R = R,
                                 .D = D,
                                 .eps = kEps,
                                 .dtype = t});
        launch({}, LayerNormBackwardArgs{.dy_RD = in_place ? dx.raw() : in.dy.raw(),
                                         .x_RD = in.x.raw(),
                                         .w_D = in.w.raw(),
                                         .mean_R = mean.raw(),
                                         .rstd_R = rstd.raw(),
                                         .dx_RD = dx.raw(),
                                         .dw_D = dw.raw(),
                                         .db_D = db.raw(),
                                         .R = R,
                                         .D = D,
                                         .accumulate = accumulate,
                                         .dtype = t});
        return Outcome{{y, mean, rstd, dx, dw, db},
                       [=, D = D] {
                         const Values zero(idx(D), 0.0);
                         return norm_reference(in, true, accumulate ? values_of(old_dw) : zero,
                                               accumulate ? values_of(old_db) : zero);
                       },
                       20};  // rstd may be near 1 / sqrt(eps) where all features are nearly equal: errors scale with it
      },
      200);
}

TEST_CASE("rms norm and its gradients") {
  check_family(
      [](Draw& draw, DType t, bool large) {
        const auto [R, D] = norm_sizes(draw, large);
        const DType c = compute_dtype(t);
        const bool accumulate = draw.chance(0.5), in_place = draw.chance(0.3);
        const NormInputs in{input(draw, {R, D}, t, 3), input(draw, {D}, t), {}, input(draw, {R, D}, t)};
        const Tensor old_dw = input(draw, {D}, c);
        const Tensor y = output({R, D}, t), rstd = output({R}, c), dx = in_place ? in.dy.clone() : output({R, D}, t);
        const Tensor dw = accumulate ? old_dw.clone() : output({D}, c);
        launch({}, RmsNormArgs{.x_RD = in.x.raw(),
                               .w_D = in.w.raw(),
                               .y_RD = y.raw(),
                               .rstd_R = rstd.raw(),
                               .R = R,
                               .D = D,
                               .eps = kEps,
                               .dtype = t});
        launch({}, RmsNormBackwardArgs{.dy_RD = in_place ? dx.raw() : in.dy.raw(),
                                       .x_RD = in.x.raw(),
                                       .w_D = in.w.raw(),
                                       .rstd_R = rstd.raw(),
                                       .dx_RD = dx.raw(),
                                       .dw_D = dw.raw(),
                                       .R = R,
                                       .D = D,
                                       .accumulate = accumulate,
                                       .dtype = t});
        return Outcome{{y, rstd, dx, dw},
                       [=, D = D] {
                         const Values zero(idx(D), 0.0);
                         const auto all = norm_reference(in, false, accumulate ? values_of(old_dw) : zero, zero);
                         return std::vector{all[0], all[2], all[3], all[4]};
                       },
                       20};
      },
      210);
}

TEST_CASE("norms keep no statistics and give no gradients that nobody asked for") {
  const Tensor x = random_normal({5, 33}, 0, 1, 1, 1), w = full({33}, 1, DType::f32), y = output({5, 33}, DType::f32);
  launch({}, LayerNormArgs{.x_RD = x.raw(), .w_D = w.raw(), .y_RD = y.raw(), .R = 5, .D = 33, .eps = kEps});
  launch({}, RmsNormArgs{.x_RD = x.raw(), .w_D = w.raw(), .y_RD = y.raw(), .R = 5, .D = 33, .eps = kEps});
  const Tensor mean = zeros({5}, DType::f32), rstd = full({5}, 1, DType::f32), dw = output({33}, DType::f32),
               dx = output({5, 33}, DType::f32);
  launch({}, LayerNormBackwardArgs{.dy_RD = x.raw(),
                                   .x_RD = x.raw(),
                                   .w_D = w.raw(),
                                   .mean_R = mean.raw(),
                                   .rstd_R = rstd.raw(),
                                   .dw_D = dw.raw(),
                                   .R = 5,
                                   .D = 33});
  CHECK_FALSE(std::isnan(max_abs(dw)));
  launch(
      {},
      RmsNormBackwardArgs{
          .dy_RD = x.raw(), .x_RD = x.raw(), .w_D = w.raw(), .rstd_R = rstd.raw(), .dx_RD = dx.raw(), .R = 5, .D = 33});
  CHECK(std::isfinite(max_abs(dx)));
}

TEST_CASE("gelu, both forms, and their slopes") {
  for (bool tanh_form : {true, false}) {
    check_family(
        [tanh_form](Draw& draw, DType t, bool large) {
          const std::int64_t n = large ? 100003 : draw.integer(0, 90);
          const bool in_place = draw.chance(0.5);
          const Tensor x = input(draw, {n}, t, 3), dy = input(draw, {n}, t), y = output({n}, t),
                       dx = in_place ? dy.clone() : output({n}, t);
          launch({}, GeluArgs{.x = x.raw(), .y = y.raw(), .n = n, .tanh_form = tanh_form, .dtype = t});
          launch({}, GeluBackwardArgs{.dy = in_place ? dx.raw() : dy.raw(),
                                      .x = x.raw(),
                                      .dx = dx.raw(),
                                      .n = n,
                                      .tanh_form = tanh_form,
                                      .dtype = t});
          return Outcome{{y, dx}, [=] {
                           Values u = values_of(x), d = values_of(dy);
                           for (std::size_t i = 0; i < u.size(); ++i) {
                             const double v = u[i], k = std::sqrt(2 / std::acos(-1.0));
                             if (tanh_form) {
                               const double th = std::tanh(k * (v + 0.044715 * v * v * v));
                               u[i] = 0.5 * v * (1 + th);
                               d[i] *= 0.5 * (1 + th) + 0.5 * v * (1 - th * th) * k * (1 + 3 * 0.044715 * v * v);
                             } else {
                               const double cdf = 0.5 * std::erfc(-v / std::sqrt(2.0));
                               u[i] = v * cdf;
                               d[i] *= cdf + v * std::exp(-v * v / 2) * k / 2;
                             }
                           }
                           return std::vector{u, d};
                         }};
        },
        tanh_form ? 220 : 221);
  }
}

TEST_CASE("gelu at the far ends: linear to the right, zero to the left, no NaN") {
  for (bool tanh_form : {true, false}) {
    const Tensor x = from_values<float>(std::array{-1e30f, -100.f, -20.f, 20.f, 100.f, 1e10f}, {6}),
                 y = output({6}, DType::f32);
    launch({}, GeluArgs{.x = x.raw(), .y = y.raw(), .n = 6, .tanh_form = tanh_form});
    const Values v = values_of(y);
    CHECK(std::abs(v[1]) < 1e-30);
    CHECK(std::abs(v[2]) < 1e-30);
    CHECK(Values(v.begin() + 3, v.end()) == Values{20, 100, 1e10f});
    CHECK(std::abs(v[0]) < 1);
  }
}

TEST_CASE("swiglu and its gradient") {
  check_family(
      [](Draw& draw, DType t, bool large) {
        const std::int64_t R = large ? 300 : draw.extent(12), F = large ? 333 : draw.width();
        const Tensor x = input(draw, {R, 2 * F}, t, 2), dy = input(draw, {R, F}, t), y = output({R, F}, t),
                     dx = output({R, 2 * F}, t);
        launch({}, SwigluArgs{.x_R2F = x.raw(), .y_RF = y.raw(), .R = R, .F = F, .dtype = t});
        launch({},
               SwigluBackwardArgs{.dy_RF = dy.raw(), .x_R2F = x.raw(), .dx_R2F = dx.raw(), .R = R, .F = F, .dtype = t});
        return Outcome{{y, dx}, [=] {
                         const Values v = values_of(x), d = values_of(dy);
                         Values out(idx(R * F)), grad(idx(R * 2 * F));
                         for (std::int64_t r = 0; r < R; ++r) {
                           for (std::int64_t f = 0; f < F; ++f) {
                             const double g = v[idx(r * 2 * F + f)], u = v[idx(r * 2 * F + F + f)],
                                          s = 1 / (1 + std::exp(-g));
                             out[idx(r * F + f)] = g * s * u;
                             grad[idx(r * 2 * F + f)] = d[idx(r * F + f)] * u * (s + g * s * (1 - s));
                             grad[idx(r * 2 * F + F + f)] = d[idx(r * F + f)] * g * s;
                           }
                         }
                         return std::vector{out, grad};
                       }};
      },
      230);
}
