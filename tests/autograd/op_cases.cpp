#include "op_cases.h"

#include "autograd/ops.h"
#include "core/error.h"

namespace sieve::test {
namespace {

using In = std::vector<Variable>;

// Rank 0 to 4, the last axis sometimes wide.
Shape any_shape(Draw& d, int least_rank = 0) {
  Shape s = d.shape(static_cast<int>(d.integer(least_rank, 4)), 4);
  if (s.rank() > 0 && s.rank() < 4) s.set(-1, d.width());
  return s;
}

// Shapes of two inputs that broadcast: both are cut out of one result shape.
std::pair<Shape, Shape> broadcasting(Draw& d) {
  const Shape out = any_shape(d);
  const auto cut = [&](const Shape& s) {
    const auto skip = static_cast<std::size_t>(d.chance(0.4) ? d.integer(0, s.rank()) : 0);
    Shape part(std::span(s.begin() + skip, s.end()));
    for (int i = 0; i < part.rank(); ++i)
      if (d.chance(0.3)) part.set(i, 1);
    return part;
  };
  return {cut(out), cut(out)};
}

OpCase binary_case(const char* name, Variable (*op)(const Variable&, const Variable&), Build naive) {
  return {.name = name, .draw = [=](Draw& d) {
            const auto [a, b] = broadcasting(d);
            return OpSample{
                cat(a, " ", b), {d.normal(a), d.normal(b)}, [op](const In& in) { return op(in[0], in[1]); }, naive};
          }};
}

// x of rank 1..3 whose last extent is `last`.
Tensor rows_by(Draw& d, std::int64_t last, bool may_be_empty = true) {
  Shape s = d.shape(static_cast<int>(d.integer(1, 3)), 4, may_be_empty);
  s.set(-1, last);
  return d.normal(s);
}

OpSample draw_scale(Draw& d) {
  const double factor = d.chance(0.1) ? 0 : 4 * d.uniform() - 2;
  return {cat(factor), {d.normal(any_shape(d))}, [=](const In& in) { return scale(in[0], factor); }, {}};
}

OpSample draw_sum(Draw& d) {
  return {"", {d.normal(any_shape(d))}, [](const In& in) { return sum(in[0]); }, {}};
}

OpSample draw_cast(Draw& d) {  // in fp64 a cast to fp64; the low-precision check goes through fp32
  return {"",
          {d.normal(any_shape(d))},
          [](const In& in) { return cast(in[0], in[0].dtype() == DType::bf16 ? DType::f32 : in[0].dtype()); },
          {}};
}

OpSample draw_reshape(Draw& d) {
  const Shape from = any_shape(d);
  Shape to{from.numel()};
  if (from.numel() % 2 == 0 && d.chance(0.5)) to = Shape{2, from.numel() / 2, 1};
  return {cat(from, " to ", to), {d.normal(from)}, [=](const In& in) { return reshape(in[0], to); }, {}};
}

OpSample draw_slice(Draw& d) {
  const Shape from = any_shape(d, 1);
  const int axis = static_cast<int>(d.integer(-from.rank(), from.rank() - 1));
  const std::int64_t begin = d.integer(0, from[axis]), end = d.integer(begin, from[axis]);
  return {cat(from, " axis ", axis, " [", begin, ", ", end, ")"),
          {d.normal(from)},
          [=](const In& in) { return slice(in[0], axis, begin, end); },
          {}};
}

OpSample draw_linear(Draw& d) {
  const std::int64_t I = d.width(), O = d.width();
  const Tensor bias = d.chance(0.6) ? d.normal({O}) : Tensor();
  return {cat("I ", I, " O ", O),
          {rows_by(d, I), d.normal({O, I}, 0.5), bias},
          [](const In& in) { return linear(in[0], in[1], in[2]); },
          {}};
}

// Where the inputs lie: ids are drawn on the CPU.
Tensor beside(const Variable& x, const Tensor& ids) { return ids.to(x.value().stream()); }

OpSample draw_linear_add(Draw& d) {
  const std::int64_t I = d.width(), O = d.width();
  const Tensor bias = d.chance(0.6) ? d.normal({O}) : Tensor(), x = rows_by(d, I);
  Shape result = x.shape();
  result.set(-1, O);
  return {cat("I ", I, " O ", O),
          {x, d.normal({O, I}, 0.5), bias, d.normal(result)},
          [](const In& in) { return linear_add(in[0], in[1], in[2], in[3]); },
          [](const In& in) { return add(linear(in[0], in[1], in[2]), in[3]); }};
}

OpSample draw_gelu_mlp(Draw& d) {
  const std::int64_t C = d.width(), F = d.width(), O = d.width();
  const Tensor b1 = d.chance(0.6) ? d.normal({F}) : Tensor(), b2 = d.chance(0.6) ? d.normal({O}) : Tensor();
  const Tensor x = rows_by(d, C);
  Shape result = x.shape();
  result.set(-1, O);
  const Tensor residual = d.chance(0.6) ? d.normal(result) : Tensor();
  const bool keep = d.chance(0.5);
  return {cat("C ", C, " F ", F, " O ", O, " keep ", keep),
          {x, d.normal({F, C}, 0.3), b1, d.normal({O, F}, 0.3), b2, residual},
          [=](const In& in) { return gelu_mlp(in[0], in[1], in[2], in[3], in[4], in[5], keep); },
          [](const In& in) {
            const Variable y = linear(gelu(linear(in[0], in[1], in[2]), Gelu::tanh), in[3], in[4]);
            return in[5].defined() ? add(y, in[5]) : y;
          }};
}

OpSample draw_embedding(Draw& d) {
  const std::int64_t V = d.extent(6, false), C = d.width();
  const Tensor ids = d.ids(d.shape(static_cast<int>(d.integer(0, 3)), 4), 0, V - 1);  // few rows: most ids repeat
  return {cat("w ", V, " x ", C, " ids ", ids.shape()),
          {d.normal({V, C})},
          [=](const In& in) { return embedding(in[0], beside(in[0], ids)); },
          {}};
}

OpSample draw_layer_norm(Draw& d) {
  const std::int64_t D = d.width(false);
  const Tensor bias = d.chance(0.7) ? d.normal({D}) : Tensor();
  const double eps =
      d.chance(0.5) ? 1e-2 : 0.3;  // two nearly equal features with a tiny eps would make 1 / std, and h, the problem
  return {cat("D ", D, " eps ", eps),
          {rows_by(d, D), d.normal({D}), bias},
          [=](const In& in) { return layer_norm(in[0], in[1], in[2], eps); },
          {}};
}

OpSample draw_rms_norm(Draw& d) {
  const std::int64_t D = d.width(false);
  const double eps = d.chance(0.5) ? 1e-2 : 0.3;
  return {cat("D ", D, " eps ", eps),
          {rows_by(d, D), d.normal({D})},
          [=](const In& in) { return rms_norm(in[0], in[1], eps); },
          {}};
}

OpSample draw_gelu(Draw& d) {
  const Gelu kind = d.chance(0.5) ? Gelu::tanh : Gelu::erf;
  return {kind == Gelu::tanh ? "tanh" : "erf",
          {d.normal(any_shape(d), 1.5)},
          [=](const In& in) { return gelu(in[0], kind); },
          {}};
}

OpSample draw_swiglu(Draw& d) {
  return {"", {rows_by(d, 2 * d.width())}, [](const In& in) { return swiglu(in[0]); }, {}};
}

OpSample draw_cross_entropy(Draw& d) {
  const std::int64_t N = d.extent(7), V = d.width(false);
  const Tensor targets = d.ids({N}, -1, V - 1);
  return {cat("N ", N, " V ", V),
          {d.normal({N, V}, 2)},
          [=](const In& in) { return cross_entropy(in[0], beside(in[0], targets)); },
          {}};
}

OpSample draw_linear_cross_entropy(Draw& d) {
  const std::int64_t N = d.extent(7), C = d.width(), V = d.width(false), chunk = d.integer(0, 4);
  const Tensor targets = d.ids({N}, -1, V - 1);
  return {cat("N ", N, " C ", C, " V ", V, " chunk ", chunk),
          {d.normal({N, C}), d.normal({V, C})},
          [=](const In& in) { return linear_cross_entropy(in[0], in[1], beside(in[0], targets), nullptr, chunk); },
          [=](const In& in) { return cross_entropy(linear(in[0], in[1], {}), beside(in[0], targets)); }};
}

OpSample draw_score(Draw& d) {
  const std::int64_t B = d.extent(3), T = d.extent(5), C = d.width(), H = d.extent(3);
  return {cat("B ", B, " T ", T, " C ", C, " H ", H),
          {d.normal({B, T, C}), d.normal({H, C})},
          [](const In& in) { return score(in[0], in[1]); },
          {}};
}

}  // namespace

std::vector<OpCase> autograd_op_cases() {
  return {
      binary_case("add", add, {}),
      binary_case("mul", mul, {}),
      {"scale", draw_scale},
      {"sum", draw_sum},
      {"cast", draw_cast},
      {"reshape", draw_reshape},
      {"slice", draw_slice},
      {"linear", draw_linear},
      {"linear_add", draw_linear_add},
      {"gelu_mlp", draw_gelu_mlp},
      {"embedding", draw_embedding},
      {"layer_norm", draw_layer_norm},
      {"rms_norm", draw_rms_norm},
      {"gelu", draw_gelu},
      {"swiglu", draw_swiglu},
      {"cross_entropy", draw_cross_entropy},
      {"linear_cross_entropy", draw_linear_cross_entropy},
      {"score", draw_score},
  };
}

}  // namespace sieve::test
