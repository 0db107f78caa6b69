// Linear attention of queries and keys that are turned by their positions in the document, against the recurrence token
// by token with explicit angles in fp64.
#include "attention/rotate.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/error.h"
#include "linear_cases.h"
#include "support/catch.h"
#include "support/compare.h"
#include "support/gpu.h"

using namespace sieve;
using namespace sieve::test;

namespace {

struct TurnedCase {
  LinearCase rows;
  RopeSpec rope;

  std::int64_t heads() const { return rows.shape.H + 2 * rows.shape.Hkv; }
  std::int64_t turned() const { return rows.shape.H + rows.shape.Hkv; }
};

TurnedCase turned_case(std::uint64_t seed, const LinearShape& shape, std::int64_t B, std::int64_t T,
                       std::int64_t rotary, bool documents) {
  Draw d(seed, static_cast<std::uint64_t>(T + 1000 * shape.D));
  TurnedCase in{.rows = {.shape = shape, .B = B, .T = T, .qkv = {}, .gates = {}, .dout = {}, .starts = {}, .exit = {}},
                .rope = {.rotary_dims = rotary, .theta = d.chance(0.5) ? 100.0 : 10000.0}};
  if (documents) {
    ReferenceInput rows;
    rows.B = B, rows.T = T;
    fill_documents(rows, d);
    in.rows.starts = rows.document_starts;
  }
  fill_linear(in.rows, d);
  return in;
}

std::string describe(const TurnedCase& in) { return cat(describe(in.rows), " rotary ", in.rope.rotary_dims); }

// Queries and keys of (B, T, features) turned by (t - start) theta^(-r / R), or back.
std::vector<double> turn(const TurnedCase& in, std::vector<double> qkv, double sign) {
  const std::int64_t R = in.rope.rotary_dims / 2, D = in.rows.shape.D;
  for (std::int64_t row = 0; row < in.rows.B * in.rows.T; ++row) {
    const std::int64_t t = row % in.rows.T, position = t - start_of(in.rows, row / in.rows.T, t);
    for (std::int64_t x = 0; x < in.turned() * R; ++x) {
      const double angle =
          static_cast<double>(position) * std::pow(in.rope.theta, -static_cast<double>(x % R) / static_cast<double>(R));
      double* u = qkv.data() + row * in.rows.shape.features() + x / R * D + x % R;
      const double c = std::cos(angle), s = sign * std::sin(angle), first = u[0], second = u[R];
      u[0] = first * c - second * s;
      u[R] = second * c + first * s;
    }
  }
  return qkv;
}

std::vector<double> rounded_to_bf16(std::vector<double> values) {
  for (double& x : values) x = static_cast<double>(static_cast<float>(bf16(static_cast<float>(x))));
  return values;
}

// naive: what is turned is rounded to bf16, as a program does that stores it, and so are the gradients on both sides.
LinearOracle oracle_of(const TurnedCase& in, bool naive = false) {
  LinearCase rows = in.rows;
  rows.qkv = turn(in, rows.qkv, 1);
  if (naive) rows.qkv = rounded_to_bf16(rows.qkv);
  LinearOracle out = linear_oracle(rows, naive);
  out.dqkv = turn(in, out.dqkv, -1);
  if (naive) out.dqkv = rounded_to_bf16(out.dqkv);
  return out;
}

LinearRun run_turned(const TurnedCase& in, DType dtype, const Stream& stream = {}) {
  const LinearCase& rows = in.rows;
  const auto there = [&](const std::vector<double>& v, std::int64_t features) {
    return tensor_of(v, {rows.B, rows.T, features}, dtype).to(stream);
  };
  Tensor starts = starts_of(rows);
  if (starts.defined()) starts = starts.to(stream);
  const Variable qkv = Variable::leaf(there(rows.qkv, rows.shape.features()));
  const Variable seen = rotate_first_heads(qkv, in.heads(), in.turned(), in.rope, starts);
  const Variable out = linear_attention(seen, rows.shape, starts);
  backward(out, there(rows.dout, rows.shape.H * rows.shape.V));
  return {out.value().to(Stream{}), qkv.grad().to(Stream{}), {}};
}

double worst_of(const std::vector<double>& got, const std::vector<double>& wanted) {
  double worst = 0;
  for (std::size_t x = 0; x < wanted.size(); ++x) {
    const double e = std::abs(got[x] - wanted[x]);
    worst = e <= worst ? worst : (e == e ? e : 1e300);
  }
  return worst;
}

double error_of(const Tensor& got, const std::vector<double>& wanted) {
  double largest = 1;
  for (const double x : wanted) largest = std::max(largest, std::abs(x));
  return worst_of(values_of(got), wanted) / largest;
}

void check_turned_bf16(const TurnedCase& in, const Stream& stream) {
  INFO(describe(in));
  const LinearOracle exact = oracle_of(in), naive = oracle_of(in, true);
  const LinearRun run = run_turned(in, DType::bf16, stream);
  CHECK(worst_of(values_of(run.out), exact.out) <= 2 * worst_of(naive.out, exact.out));
  CHECK(worst_of(values_of(run.dqkv), exact.dqkv) <= 2 * worst_of(naive.dqkv, exact.dqkv));
}

}  // namespace

TEST_CASE("linear attention of turned queries and keys equals its recurrence with explicit angles") {
  for (std::uint64_t c = 0; c < 60; ++c) {
    Draw d(131, c);
    const std::int64_t Hkv = d.integer(1, 2), D = d.integer(1, 20);
    const TurnedCase in = turned_case(137 + c, {Hkv * d.integer(1, 3), Hkv, D, D}, d.integer(1, 2), d.integer(1, 150),
                                      2 * d.integer(0, D / 2), c % 2 == 0);
    CAPTURE(c, describe(in));
    const LinearOracle wanted = oracle_of(in);
    for (const DType dtype : {DType::f64, DType::f32}) {
      CAPTURE(name_of(dtype));
      const LinearRun run = run_turned(in, dtype);
      const double bound = dtype == DType::f64 ? 1e-12 : 1e-5;
      CHECK(error_of(run.out, wanted.out) <= bound);
      CHECK(error_of(run.dqkv, wanted.dqkv) <= bound);
    }
  }
}

TEST_CASE("linear attention of turned queries and keys in bf16 is at most twice as far off as a naive one") {
  for (const std::int64_t T : {30, 64, 150}) check_turned_bf16(turned_case(139, {2, 2, 32, 32}, 1, T, 32, T > 60), {});
}

TEST_CASE("heads of a packed document are turned bit for bit as alone and as from their first position on") {
  Draw d(149, 0);
  const RopeSpec rope{.rotary_dims = 6, .theta = 100};
  const Tensor x = d.normal({1, 90, 5 * 8}).to(DType::f32);
  Tensor starts = zeros({1, 90}, DType::i32);
  for (std::int64_t t = 37; t < 90; ++t) starts.data<std::int32_t>()[t] = 37;
  const auto turned = [&](std::int64_t begin, std::int64_t end, const Tensor& documents, std::int64_t first) {
    return rotate_first_heads(Variable(x.slice(1, begin, end)), 5, 3, rope, documents, first).value();
  };
  const Tensor packed = turned(0, 90, starts, 0), whole = turned(0, 90, {}, 0);
  CHECK(same_bits(packed.slice(1, 37, 90), turned(37, 90, {}, 0)));
  CHECK(same_bits(packed.slice(1, 0, 37), whole.slice(1, 0, 37)));
  CHECK(same_bits(whole.slice(1, 37, 90), turned(37, 90, {}, 37)));
  CHECK(same_bits(whole.slice(2, 3 * 8, 5 * 8), x.slice(2, 3 * 8, 5 * 8)));
  CHECK(!same_bits(whole.slice(1, 37, 90), packed.slice(1, 37, 90)));
}

TEST_CASE("what cannot be turned says so") {
  const Variable x(zeros({2, 5, 12}, DType::f32));
  CHECK_THROWS_AS(rotate_first_heads(x, 5, 1, {}, {}), Error);
  CHECK_THROWS_AS(rotate_first_heads(x, 3, 4, {}, {}), Error);
  CHECK_THROWS_AS(rotate_first_heads(x, 3, 2, {.rotary_dims = 6}, {}), Error);
  CHECK_THROWS_AS(rotate_first_heads(x, 3, 2, {.rotary_dims = 4}, zeros({2, 4}, DType::i32)), Error);
}

// 16 bytes an access where rows, heads and halves are multiples of that, single elements elsewhere.
TEST_CASE("GPU: linear attention of turned queries and keys is the CPU's", "[gpu]") {
  SIEVE_NEEDS_GPU();
  const Stream stream = gpu_stream();
  const auto check = [&](const TurnedCase& in) {
    INFO(describe(in));
    const LinearRun cpu = run_turned(in, DType::f32), gpu = run_turned(in, DType::f32, stream);
    CHECK(relative_difference(gpu.out, cpu.out) <= 1e-5);
    CHECK(relative_difference(gpu.dqkv, cpu.dqkv) <= 1e-5);
  };
  for (const bool documents : {false, true}) {
    for (const std::int64_t T : {1, 63, 65, 200}) check(turned_case(151, {4, 2, 16, 16}, 2, T, 16, documents));
    check(turned_case(151, {6, 6, 64, 64}, 2, 517, 64, documents));
    check(turned_case(151, {4, 1, 64, 64}, 1, 300, 32, documents));
    check(turned_case(151, {2, 2, 128, 128}, 1, 333, 128, documents));
    check(turned_case(151, {2, 1, 72, 72}, 1, 130, 36, documents));
    check(turned_case(151, {2, 1, 9, 9}, 3, 70, 6, documents));
    check(turned_case(151, {1, 1, 1, 1}, 3, 70, 0, documents));
    for (const std::int64_t rotary : {64, 32, 24}) {  // 24: 12 pairs are no whole pack of bf16
      check_turned_bf16(turned_case(157, {2, 2, 64, 64}, 1, 150, rotary, documents), stream);
      check_turned_bf16(turned_case(157, {2, 1, 64, 64}, 1, 70, rotary, documents), stream);
    }
  }
}

TEST_CASE("GPU: turned heads are the CPU's and the others keep their bits", "[gpu]") {
  SIEVE_NEEDS_GPU();
  Draw d(163, 0);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const std::int64_t D : {16, 64, 128, 20}) {
      const Tensor x = d.normal({2, 300, 5 * D}).to(dtype), there = x.to(gpu_stream());
      const double bound = dtype == DType::f32 ? 1e-6 : 1.0 / 128;  // a sum rounded to the neighbour
      for (const std::int64_t rotary : {D, D / 2}) {
        INFO(name_of(dtype) << " D " << D << " rotary " << rotary);
        const RopeSpec rope{.rotary_dims = rotary};
        const auto turned = [&](const Tensor& rows) {
          return rotate_first_heads(Variable(rows), 5, 3, rope, {}, 11).value().to(Stream{});
        };
        const auto heads = [&](const Tensor& rows) {  // from a slice that begins within a row
          return rotate_heads(Variable(rows.slice(2, D, 4 * D)), 3, rope, 11).value().to(Stream{});
        };
        const Tensor got = turned(there);
        CHECK(relative_difference(got, turned(x)) <= bound);
        CHECK(same_bits(got.slice(2, 3 * D, 5 * D), x.slice(2, 3 * D, 5 * D)));
        CHECK(relative_difference(heads(there), heads(x)) <= bound);
      }
    }
  }
}
