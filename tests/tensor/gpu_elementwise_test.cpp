// CUDA kernels against their CPU twins: elementwise, copies, random numbers, sums.
#include <cmath>

#include "tensor/gpu_case.h"

using namespace sieve;
using namespace sieve::test;

namespace {

// An operand in `place` that broadcasts to `shape`; some axes lie swapped in memory.
Tensor operand(Draw& draw, Place& place, const Shape& shape, DType dtype) {
  Shape own = shape;
  for (int axis = 0; axis < own.rank(); ++axis)
    if (draw.chance(0.3)) own.set(axis, 1);
  const bool leading = own.rank() >= 2 && draw.chance(0.3);
  if (leading) {  // a row for all rows, or a bias
    own = shape;
    own.set(0, 1);
  }
  if (!leading && own.rank() >= 2 && draw.chance(0.3)) {
    Shape swapped = own;
    swapped.set(0, own[-1]);
    swapped.set(-1, own[0]);
    return place.in(input(draw, swapped, dtype)).transpose(0, -1).expand(shape);
  }
  return place.in(input(draw, own, dtype)).expand(shape);
}

Shape any_shape(Draw& draw, bool large) {
  if (large) return {12, 11, 120};
  Shape shape = draw.shape(static_cast<int>(draw.integer(0, 5)), 7);
  if (shape.rank() > 0 && draw.chance(0.4)) shape.set(-1, 8 * draw.integer(1, 40));
  return shape;
}

}  // namespace

SIEVE_TWIN_CASE("add and mul equal their CPU twins") {
  check_twin(
      [](Draw& draw, DType t, Place& place, bool large) {
        const Shape shape = any_shape(draw, large);
        const bool dense = draw.chance(0.3), in_place = draw.chance(0.3);
        const Tensor a = dense || in_place ? place.inout(input(draw, shape, t)) : operand(draw, place, shape, t);
        const Tensor b = dense ? place.in(input(draw, shape, t)) : operand(draw, place, shape, t);
        const Tensor out = in_place ? a : place.out(shape, t);
        launch(place.stream(), BinaryArgs{.op = draw.chance(0.5) ? Binary::add : Binary::mul,
                                          .a = a.raw(),
                                          .b = b.raw(),
                                          .out = out.raw(),
                                          .rank = shape.rank(),
                                          .extents = extents_of(shape),
                                          .a_strides = strides_of(a),
                                          .b_strides = strides_of(b),
                                          .dtype = t});
        return std::vector{out};
      },
      1000);
}

SIEVE_TWIN_CASE("axpby equals its CPU twin for every pair of dtypes") {
  for (DType to : kFloats) {
    check_twin(
        [to](Draw& draw, DType from, Place& place, bool large) {
          const std::int64_t n = large ? 20011 : draw.integer(0, draw.chance(0.2) ? 20000 : 90);
          const double beta = draw.chance(0.4) ? 0 : draw.chance(0.5) ? 1 : -2;
          const bool in_place = from == to && draw.chance(0.3);
          const Tensor y = beta == 0 && !in_place ? place.out({n}, to) : place.inout(input(draw, {n}, to));
          const Tensor x = in_place ? y : place.in(input(draw, {n}, from));
          const Tensor factor = place.in(input(draw, {1}, compute_dtype(from)));
          launch(place.stream(), AxpbyArgs{.x = x.raw(),
                                           .y = y.raw(),
                                           .n = n,
                                           .alpha = draw.chance(0.5) ? 1 : 0.75,
                                           .beta = beta,
                                           .x_dtype = from,
                                           .y_dtype = to,
                                           .alpha_factor = draw.chance(0.5) ? factor.raw() : nullptr});
          return std::vector{y};
        },
        1010 + 2 * static_cast<std::uint64_t>(to));
  }
}

SIEVE_TWIN_CASE("copies of any strides and dtypes equal their CPU twins") {
  const DType all[] = {DType::f32, DType::bf16, DType::f64, DType::i32, DType::i64, DType::u8};
  for (DType from : all) {
    check_twin(
        [from](Draw& draw, DType to, Place& place, bool large) {
          Shape shape = any_shape(draw, large);
          if (draw.chance(0.3)) shape = Shape{draw.extent(3), draw.integer(8, 90), draw.integer(8, 90)};
          // Small whole numbers, which every dtype holds.
          const Tensor host = draw.uniform(shape, 0, 100).to(DType::i32).to(from).clone();
          Tensor src = place.in(host), dst = place.out(shape, to);
          if (shape.rank() >= 2 && draw.chance(0.5)) {  // both walk the axes in another order in memory
            const int a = static_cast<int>(draw.integer(0, shape.rank() - 1));
            src = src.transpose(a, -1);
            Shape swapped = shape;
            swapped.set(a, shape[-1]);
            swapped.set(-1, shape[a]);
            dst = dst.reshape(swapped);
          } else if (shape.rank() >= 2 && draw.chance(0.3)) {
            src = src.transpose(0, 1);
            dst = dst.transpose(0, 1);
          }
          launch(place.stream(), CopyArgs{.src = src.raw(),
                                          .dst = dst.raw(),
                                          .rank = src.rank(),
                                          .extents = extents_of(src.shape()),
                                          .src_strides = strides_of(src),
                                          .dst_strides = strides_of(dst),
                                          .src_dtype = from,
                                          .dst_dtype = to});
          return std::vector{dst.contiguous()};
        },
        1020 + 2 * static_cast<std::uint64_t>(from), 0);
  }
}

SIEVE_TWIN_CASE("copies into integers equal their CPU twins") {
  for (DType to : {DType::i32, DType::i64, DType::u8}) {
    check_twin(
        [to](Draw& draw, DType from, Place& place, bool large) {
          const std::int64_t n = large ? 20011 : draw.integer(0, 300);
          const Tensor src = place.in(draw.uniform({n}, 0, 100).to(from).clone());
          const Tensor dst = place.in(zeros({n}, to)), wide = place.in(zeros({n}, to));
          launch(place.stream(), CopyArgs{.src = src.raw(),
                                          .dst = dst.raw(),
                                          .rank = 1,
                                          .extents = {n},
                                          .src_strides = {1},
                                          .dst_strides = {1},
                                          .src_dtype = from,
                                          .dst_dtype = to});
          launch(place.stream(), FillArgs{.dst = wide.raw(), .n = n, .value = 7, .dtype = to});
          return std::vector{dst, wide};
        },
        1040 + 2 * static_cast<std::uint64_t>(to), 0);
  }
}

SIEVE_TWIN_CASE("fills equal their CPU twins") {
  check_twin(
      [](Draw& draw, DType t, Place& place, bool large) {
        const std::int64_t n = large ? 20011 : draw.integer(0, 300);
        const Tensor dst = place.out({n}, t);
        launch(place.stream(),
               FillArgs{.dst = dst.raw(), .n = n, .value = draw.chance(0.3) ? 0 : draw.uniform(), .dtype = t});
        return std::vector{dst};
      },
      1050, 0);
}

SIEVE_TWIN_CASE("random numbers are those of the CPU") {
  // 0.1: a normal may round to the other side in its last bit, since two libraries take its logarithm and cosine.
  for (Random kind : {Random::uniform, Random::normal}) {
    check_twin(
        [kind](Draw& draw, DType t, Place& place, bool large) {
          const std::int64_t n = large ? 20011 : draw.integer(0, 300);
          const Tensor dst = place.out({n}, t);
          launch(place.stream(), RandomArgs{.dst = dst.raw(),
                                            .n = n,
                                            .kind = kind,
                                            .a = draw.chance(0.5) ? 0.0 : -1.0,
                                            .b = draw.chance(0.5) ? 1.0 : 0.5,
                                            .seed = static_cast<std::uint64_t>(draw.integer(0, 1 << 30)),
                                            .philox_stream = static_cast<std::uint64_t>(draw.integer(0, 1 << 30)),
                                            .dtype = t});
          return std::vector{dst};
        },
        kind == Random::uniform ? 1060 : 1062, 0.1);
  }
  const std::int64_t n = 1 << 20;
  const Tensor there = empty({n}, DType::f32, gpu_stream());
  launch(gpu_stream(), RandomArgs{.dst = there.raw(), .n = n, .kind = Random::uniform, .seed = 5, .philox_stream = 6});
  CHECK(same_bits(there.to(Stream{}), random_uniform({n}, 0, 1, 5, 6)));
}

SIEVE_TWIN_CASE("reductions over any axes equal their CPU twins") {
  check_twin(
      [](Draw& draw, DType t, Place& place, bool large) {
        Shape shape = any_shape(draw, large);
        if (!large && draw.chance(0.1)) shape = Shape{draw.integer(500, 3000), draw.integer(1, 40)};
        const Tensor x = operand(draw, place, shape, t);
        std::array<bool, kMaxRank> reduce{};
        Shape kept = shape;
        for (int axis = 0; axis < shape.rank(); ++axis) {
          reduce[idx(axis)] = large ? axis == 0 : draw.chance(0.5);
          if (reduce[idx(axis)]) kept.set(axis, 1);
        }
        const DType to = draw.chance(0.5) ? t : compute_dtype(t);
        const Tensor out = place.out(kept, to);
        launch(place.stream(), ReduceArgs{.x = x.raw(),
                                          .out = out.raw(),
                                          .rank = shape.rank(),
                                          .extents = extents_of(shape),
                                          .x_strides = strides_of(x),
                                          .reduce = reduce,
                                          .dtype = t,
                                          .out_dtype = to});
        return std::vector{out};
      },
      1070);
}

SIEVE_TWIN_CASE("sums equal their CPU twins") {
  const Twin sums = [](Draw& draw, DType t, Place& place, bool large) {
    const std::int64_t n = large ? 100003 : draw.integer(0, draw.chance(0.2) ? 100000 : 600);
    const Tensor x = place.in(input(draw, {n}, t)), sum = place.out({}, DType::f64), square = place.out({}, DType::f64);
    launch(place.stream(), SumArgs{.x = x.raw(), .sum = sum.data<double>(), .n = n, .dtype = t});
    launch(place.stream(), SumArgs{.x = x.raw(), .sum = square.data<double>(), .n = n, .square = true, .dtype = t});
    return std::vector{sum, square};
  };
  check_twin(sums, 1080, 1e-4, {DType::f32, DType::bf16});  // the sums are fp64: 1e-9
  check_twin(sums, 1080, 1, {DType::f64});
}

SIEVE_TWIN_CASE("column sums equal their CPU twins") {
  check_twin(
      [](Draw& draw, DType t, Place& place, bool large) {
        const auto [R, N] = matrix(draw, large);
        const std::int64_t pad = draw.chance(0.3) ? draw.integer(1, 16) : 0;
        const bool accumulate = draw.chance(0.5);
        const Tensor x = place.in(input(draw, {R, N + pad}, t));
        const Tensor out =
            accumulate ? place.inout(input(draw, {N}, compute_dtype(t))) : place.out({N}, compute_dtype(t));
        launch(place.stream(), ColumnSumArgs{.x_RN = x.raw(),
                                             .out_N = out.raw(),
                                             .R = R,
                                             .N = N,
                                             .ld = N + pad,
                                             .accumulate = accumulate,
                                             .dtype = t});
        return std::vector{out};
      },
      1090);
}

TEST_CASE("GPU: more than 2^31 elements", "[gpu]") {
  SIEVE_NEEDS_GPU();
  const Stream stream = gpu_stream();
  const std::int64_t n = (std::int64_t{1} << 31) + 7;
  if (free_memory_bytes(stream.device) < 3 * n) {
    WARN("not enough memory");
    return;
  }
  const Tensor x = empty({n}, DType::bf16, stream), sum = zeros({}, DType::f64, stream);
  launch(stream, FillArgs{.dst = x.raw(), .n = n, .value = 0.5, .dtype = DType::bf16});
  launch(stream,
         AxpbyArgs{.x = x.raw(), .y = x.raw(), .n = n, .alpha = 3, .x_dtype = DType::bf16, .y_dtype = DType::bf16});
  for (std::int64_t at : {std::int64_t{0}, n / 2, (std::int64_t{1} << 31) - 1, std::int64_t{1} << 31, n - 1})
    CHECK(x.slice(0, at, at + 1).to(Stream{}).item() == 1.5);
  launch(stream, SumArgs{.x = x.raw(), .sum = sum.data<double>(), .n = n, .dtype = DType::bf16});
  CHECK(sum.to(Stream{}).item() == 1.5 * static_cast<double>(n));
}
