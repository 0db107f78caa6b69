// Elementwise kernels and reductions against loops in fp64.
#include <array>
#include <cmath>

#include "tensor/kernel_case.h"

using namespace sieve;
using namespace sieve::test;

namespace {

Extents extents_of(const Shape& s) {
  Extents e{};
  std::copy(s.begin(), s.end(), e.begin());
  return e;
}
Extents strides_of(const Tensor& t) {
  Extents e{};
  for (int axis = 0; axis < t.rank(); ++axis) e[idx(axis)] = t.stride(axis);
  return e;
}

// An operand that broadcasts to `shape`: some extents are 1, some leading axes are missing, some axes are swapped in
// memory.
Tensor broadcastable(Draw& draw, const Shape& shape, DType dtype) {
  Shape own = shape;
  for (int axis = 0; axis < own.rank(); ++axis)
    if (draw.chance(0.3)) own.set(axis, 1);
  if (own.rank() >= 2 && draw.chance(0.3)) {
    Shape swapped = own;
    swapped.set(0, own[-1]);
    swapped.set(-1, own[0]);
    return input(draw, swapped, dtype).transpose(0, -1).expand(shape);
  }
  return input(draw, own, dtype).expand(shape);
}

}  // namespace

TEST_CASE("add and mul broadcast") {
  for (Binary op : {Binary::add, Binary::mul}) {
    check_family(
        [op](Draw& draw, DType dtype, bool large) {
          const Shape shape = large ? Shape{70, 3, 401} : draw.shape(static_cast<int>(draw.integer(0, 4)), 6);
          const Tensor a = broadcastable(draw, shape, dtype), b = broadcastable(draw, shape, dtype),
                       out = output(shape, dtype);
          launch({}, BinaryArgs{.op = op,
                                .a = a.raw(),
                                .b = b.raw(),
                                .out = out.raw(),
                                .rank = shape.rank(),
                                .extents = extents_of(shape),
                                .a_strides = strides_of(a),
                                .b_strides = strides_of(b),
                                .dtype = dtype});
          return Outcome{{out}, [=] {
                           Values x = values_of(a), y = values_of(b);
                           for (std::size_t i = 0; i < x.size(); ++i)
                             x[i] = op == Binary::add ? x[i] + y[i] : x[i] * y[i];
                           return std::vector<Values>{x};
                         }};
        },
        op == Binary::add ? 100 : 101);
  }
}

TEST_CASE("add writes over its input") {
  const Tensor a = full({2000}, 1, DType::bf16), b = full({1}, 2, DType::bf16);
  launch({}, BinaryArgs{.a = a.raw(),
                        .b = b.raw(),
                        .out = a.raw(),
                        .rank = 1,
                        .extents = {2000},
                        .a_strides = {1},
                        .dtype = DType::bf16});
  CHECK(values_of(a) == Values(2000, 3.0));
}

TEST_CASE("y = alpha x + beta y, for every pair of dtypes, in place too") {
  for (DType to : kFloats) {
    check_family(
        [to](Draw& draw, DType from, bool large) {
          const std::int64_t n = large ? 200003 : draw.integer(0, 70);
          const double alpha = draw.chance(0.5) ? 1 : 0.75, beta = draw.chance(0.4) ? 0 : draw.chance(0.5) ? 1 : -2;
          const Tensor x = input(draw, {n}, from), old = input(draw, {n}, to);
          const Tensor y = beta == 0 ? output({n}, to) : old.clone();  // beta 0 must not read y
          launch({},
                 AxpbyArgs{
                     .x = x.raw(), .y = y.raw(), .n = n, .alpha = alpha, .beta = beta, .x_dtype = from, .y_dtype = to});
          const Tensor same = x.clone();
          launch({},
                 AxpbyArgs{.x = same.raw(), .y = same.raw(), .n = n, .alpha = alpha, .x_dtype = from, .y_dtype = from});
          return Outcome{{y, same}, [=] {
                           Values u = values_of(x), v = values_of(old), w = u;
                           for (std::size_t i = 0; i < u.size(); ++i) {
                             w[i] = alpha * u[i];
                             u[i] = alpha * u[i] + (beta == 0 ? 0 : beta * v[i]);
                           }
                           return std::vector{u, w};
                         }};
        },
        110 + static_cast<std::uint64_t>(to));
  }
}

TEST_CASE("reduce sums over any axes of any view") {
  check_family(
      [](Draw& draw, DType dtype, bool large) {
        const int rank = large ? 3 : static_cast<int>(draw.integer(0, 5));
        const int pattern = static_cast<int>(draw.integer(1, 6));
        const Shape shape = large ? Shape{60, 41, 130} : draw.shape(rank, 7);
        const Tensor x = broadcastable(draw, shape, dtype);
        std::array<bool, kMaxRank> reduce{};
        Shape kept = shape;
        for (int axis = 0; axis < rank; ++axis) {
          reduce[idx(axis)] = large ? (pattern >> axis & 1) : draw.chance(0.5);
          if (reduce[idx(axis)]) kept.set(axis, 1);
        }
        const DType to = draw.chance(0.5) ? dtype : compute_dtype(dtype);
        const Tensor out = output(kept, to);
        launch({}, ReduceArgs{.x = x.raw(),
                              .out = out.raw(),
                              .rank = rank,
                              .extents = extents_of(shape),
                              .x_strides = strides_of(x),
                              .reduce = reduce,
                              .dtype = dtype,
                              .out_dtype = to});
        return Outcome{{out}, [=] {
                         const Values v = values_of(x);
                         Values sums(idx(kept.numel()), 0.0);
                         for (std::size_t i = 0; i < v.size(); ++i) {
                           std::int64_t rest = static_cast<std::int64_t>(i), at = 0, step = 1;
                           for (int axis = rank - 1; axis >= 0; --axis) {
                             if (!reduce[idx(axis)]) at += rest % shape[axis] * step;
                             rest /= shape[axis];
                             step *= kept[axis];
                           }
                           sums[idx(at)] += v[i];
                         }
                         return std::vector<Values>{sums};
                       }};
      },
      120, 120);
}

TEST_CASE("reduce has the same bits on all threads for every set of axes") {
  const Tensor x = random_normal({60, 41, 130}, 0, 1, 3, 3);
  for (int pattern = 0; pattern < 8; ++pattern) {
    CAPTURE(pattern);
    CHECK(same_for_all_threads([&] {
      const Tensor out = zeros(x.shape(), DType::f32);
      launch({}, ReduceArgs{.x = x.raw(),
                            .out = out.raw(),
                            .rank = 3,
                            .extents = extents_of(x.shape()),
                            .x_strides = strides_of(x),
                            .reduce = {(pattern & 1) != 0, (pattern & 2) != 0, (pattern & 4) != 0}});
      return std::vector{out};
    }));
  }
}

TEST_CASE("sums and sums of squares are exact to fp64 rounding") {
  check_family(
      [](Draw& draw, DType dtype, bool large) {
        const std::int64_t n = large ? 1000003 : draw.integer(0, 200);
        const bool square = draw.chance(0.5);
        const Tensor x = input(draw, {n}, dtype);
        Tensor sum = output({}, DType::f64);
        launch({}, SumArgs{.x = x.raw(), .sum = sum.data<double>(), .n = n, .square = square, .dtype = dtype});
        return Outcome{{sum}, [=] {
                         long double total = 0;
                         for (double v : values_of(x)) total += square ? static_cast<long double>(v) * v : v;
                         return std::vector<Values>{{static_cast<double>(total)}};
                       }};
      },
      130);
  // A million terms that fp32 could not add up: 1 + 2^-24 * ones.
  Tensor x = full({1 << 20}, 0x1p-24, DType::f32);
  x.data<float>()[0] = 1;
  double sum = 0;
  launch({}, SumArgs{.x = x.raw(), .sum = &sum, .n = x.numel()});
  CHECK(sum == 1 + 0x1p-24 * ((1 << 20) - 1));
}

TEST_CASE("column sums add or overwrite") {
  check_family(
      [](Draw& draw, DType dtype, bool large) {
        const std::int64_t R = large ? 700 : draw.extent(150), N = large              ? 1100
                                                                   : draw.chance(0.2) ? 300
                                                                                      : draw.extent(40);
        const std::int64_t pad = draw.chance(0.3) ? 3 : 0;
        const bool accumulate = draw.chance(0.5);
        const Tensor x = input(draw, {R, N + pad}, dtype), old = input(draw, {N}, compute_dtype(dtype));
        const Tensor out = accumulate ? old.clone() : output({N}, compute_dtype(dtype));
        launch({}, ColumnSumArgs{.x_RN = x.raw(),
                                 .out_N = out.raw(),
                                 .R = R,
                                 .N = N,
                                 .ld = N + pad,
                                 .accumulate = accumulate,
                                 .dtype = dtype});
        return Outcome{{out}, [=] {
                         const Values v = values_of(x);
                         Values sums = accumulate ? values_of(old) : Values(idx(N), 0.0);
                         for (std::int64_t r = 0; r < R; ++r)
                           for (std::int64_t n = 0; n < N; ++n) sums[idx(n)] += v[idx(r * (N + pad) + n)];
                         return std::vector<Values>{sums};
                       }};
      },
      140);
}
