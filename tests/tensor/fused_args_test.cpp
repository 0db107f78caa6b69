// What kernels take along: a factor that lies in memory, a gradient that comes past a norm, parameters side by side in
// one AdamW call. Each is compared with the plain kernel and fp64 arithmetic around it.
#include <array>
#include <cmath>

#include "tensor/kernel_case.h"

using namespace sieve;
using namespace sieve::test;

TEST_CASE("alpha of axpby may be multiplied with a number in memory") {
  for (DType to : kFloats) {
    check_family(
        [to](Draw& draw, DType from, bool large) {
          const std::int64_t n = large ? 100003 : draw.integer(0, 70);
          const double alpha = draw.chance(0.5) ? 1 : 0.75, beta = draw.chance(0.5) ? 0 : 1;
          const Tensor x = input(draw, {n}, from), old = input(draw, {n}, to),
                       factor = input(draw, {1}, from == DType::f64 ? DType::f64 : DType::f32);
          const Tensor y = beta == 0 ? output({n}, to) : old.clone();
          launch({}, AxpbyArgs{.x = x.raw(),
                               .y = y.raw(),
                               .n = n,
                               .alpha = alpha,
                               .beta = beta,
                               .x_dtype = from,
                               .y_dtype = to,
                               .alpha_factor = factor.raw()});
          return Outcome{{y}, [=] {
                           Values u = values_of(x), v = values_of(old);
                           for (std::size_t i = 0; i < u.size(); ++i)
                             u[i] = alpha * factor.item() * u[i] + (beta == 0 ? 0 : beta * v[i]);
                           return std::vector<Values>{u};
                         }};
        },
        400 + static_cast<std::uint64_t>(to));
  }
}

namespace {

// dx of a norm in `t`, with `add` if it is defined; `out` may be `add` or dy.
void norm_dx(bool centred, DType t, const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& mean,
             const Tensor& rstd, const Tensor& out, const Tensor& add) {
  const void* past = add.defined() ? add.raw() : nullptr;
  const std::int64_t R = x.size(0), D = x.size(1);
  if (centred) {
    launch({}, LayerNormBackwardArgs{.dy_RD = dy.raw(),
                                     .x_RD = x.raw(),
                                     .w_D = w.raw(),
                                     .mean_R = mean.raw(),
                                     .rstd_R = rstd.raw(),
                                     .dx_RD = out.raw(),
                                     .R = R,
                                     .D = D,
                                     .dtype = t,
                                     .dx_add_RD = past});
  } else {
    launch({}, RmsNormBackwardArgs{.dy_RD = dy.raw(),
                                   .x_RD = x.raw(),
                                   .w_D = w.raw(),
                                   .rstd_R = rstd.raw(),
                                   .dx_RD = out.raw(),
                                   .R = R,
                                   .D = D,
                                   .dtype = t,
                                   .dx_add_RD = past});
  }
}

}  // namespace

TEST_CASE("the gradient past a norm is added before the one rounding, in place too") {
  for (bool centred : {true, false}) {
    check_family(
        [centred](Draw& draw, DType t, bool large) {
          const std::int64_t R = large ? 300 : draw.extent(20), D = large ? 130 : draw.width(false);
          const DType c = compute_dtype(t);
          const Tensor x = input(draw, {R, D}, t), w = input(draw, {D}, t), dy = input(draw, {R, D}, t),
                       add = input(draw, {R, D}, t), mean = input(draw, {R}, c),
                       rstd = draw.uniform({R}, 0.5, 2).to(c).clone();
          const int place = static_cast<int>(draw.integer(0, 2));
          const Tensor dx = place == 0 ? output({R, D}, t) : place == 1 ? add.clone() : dy.clone();
          norm_dx(centred, t, place == 2 ? dx : dy, x, w, mean, rstd, dx, place == 1 ? dx : add);
          return Outcome{{dx},
                         [=] {
                           const auto wide = [](const Tensor& u) { return u.to(DType::f64).clone(); };
                           const Tensor plain = output({R, D}, DType::f64);
                           norm_dx(centred, DType::f64, wide(dy), wide(x), wide(w), wide(mean), wide(rstd), plain, {});
                           Values sum = values_of(plain);
                           const Values past = values_of(add);
                           for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += past[i];
                           return std::vector<Values>{sum};
                         },
                         20};
        },
        centred ? 410 : 411);
  }
}

namespace {

struct AdamState {
  Tensor p, m, v, g, copy;
  AdamWArgs args(std::int64_t begin, std::int64_t n) const {
    return {.p = p.data<float>() + begin,
            .m = m.data<float>() + begin,
            .v = v.data<float>() + begin,
            .g = g.data<float>() + begin,
            .copy_bf16 = copy.data<bf16>() + begin,
            .n = n,
            .step = 3,
            .lr = 0.1,
            .weight_decay = 0.5,
            .grad_scale = 0.5};
  }
  std::vector<Tensor> written() const { return {p, m, v, copy}; }
};
AdamState adam_state(std::int64_t n) {
  return {random_normal({n}, 0, 1, 1, 1), random_normal({n}, 0, 1, 1, 2), random_uniform({n}, 0, 1, 1, 3),
          random_normal({n}, 0, 1, 1, 4), zeros({n}, DType::bf16)};
}

}  // namespace

TEST_CASE("AdamW over segments is AdamW on each of them with its own decay") {
  // Empty segments, one of one element, ends on and off multiples of 1024.
  const std::vector<std::int64_t> ends{0, 1, 1024, 1024, 2500, 2501, 70000, 100003};
  const std::vector<float> decay{7, 1, 0, 9, 0.25f, 1, 0, 1};
  const AdamState one = adam_state(ends.back()), each = adam_state(ends.back());
  const auto fused = [&](const AdamState& state) {
    AdamWArgs args = state.args(0, ends.back());
    args.segment_end = ends.data();
    args.segment_decay = decay.data();
    args.segments = static_cast<std::int64_t>(ends.size());
    launch({}, args);
    return state.written();
  };
  fused(one);
  for (std::size_t s = 0; s < ends.size(); ++s) {
    const std::int64_t begin = s == 0 ? 0 : ends[s - 1];
    AdamWArgs args = each.args(begin, ends[s] - begin);
    args.weight_decay *= static_cast<double>(decay[s]);
    launch({}, args);
  }
  for (std::size_t i = 0; i < 3; ++i)
    CHECK(max_difference(one.written()[i], each.written()[i]) < 1e-6);  // vector bodies and rests may round differently
  CHECK(same_bits(one.copy, one.p.to(DType::bf16)));
  CHECK(same_for_all_threads([&] { return fused(adam_state(ends.back())); }));
  CHECK(has(message_of(
                [&] {
                  AdamWArgs args = one.args(0, ends.back());
                  args.segment_end = ends.data();
                  args.segment_decay = decay.data();
                  args.segments = 7;
                  launch({}, args);
                },
                Exit::internal),
            "segments end before element 100003"));
}

TEST_CASE("control scales the gradient of AdamW or stops it") {
  const AdamState plain = adam_state(1000), scaled = adam_state(1000), stopped = adam_state(1000);
  AdamWArgs args = plain.args(0, 1000);
  args.grad_scale = 0.125;
  launch({}, args);
  const std::array<float, 2> quarter{0.25f, 0}, stop{1, 1}, broken{1, std::nanf("")};
  args = scaled.args(0, 1000);
  args.control = quarter.data();
  launch({}, args);
  for (std::size_t i = 0; i < 4; ++i) CHECK(same_bits(plain.written()[i], scaled.written()[i]));
  for (const auto& control : {stop, broken}) {
    args = stopped.args(0, 1000);
    args.control = control.data();
    launch({}, args);
  }
  for (std::size_t i = 0; i < 4; ++i) CHECK(same_bits(stopped.written()[i], adam_state(1000).written()[i]));
}
