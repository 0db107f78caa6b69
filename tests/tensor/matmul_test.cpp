// Matrix products against a triple loop in fp64.
#include <sstream>

#include "tensor/kernel_case.h"

using namespace sieve;
using namespace sieve::test;

namespace {

struct Types {
  DType in, out;
};
const Types kTypes[] = {
    {DType::f32, DType::f32}, {DType::bf16, DType::bf16}, {DType::bf16, DType::f32}, {DType::f64, DType::f64}};

struct Problem {
  std::int64_t M, N, K, pad = 0;  // pad: extra columns behind every row
  bool ta = false, tb = false, bias = false;
  double alpha = 1, beta = 0;
  bool add = false, keep = false, a_sum = false;  // keep: gelu's input is written out
  Epilogue epilogue = Epilogue::none;

  std::string str() const {
    return cat("(", M, ", ", K, ") x (", K, ", ", N, ") ta ", ta, " tb ", tb, " pad ", pad, " alpha ", alpha, " beta ",
               beta, " bias ", bias, " add ", add, " epilogue ", static_cast<int>(epilogue), " keep ", keep, " a_sum ",
               a_sum);
  }
};

struct Operands {
  Tensor a, b, c, bias, add, pre;
};

Operands operands(Draw& draw, const Problem& p, Types t) {
  return {input(draw, {p.ta ? p.K : p.M, (p.ta ? p.M : p.K) + p.pad}, t.in),
          input(draw, {p.tb ? p.N : p.K, (p.tb ? p.K : p.N) + p.pad}, t.in),
          input(draw, {p.M, p.N + p.pad}, t.out),
          p.bias ? input(draw, {p.N}, t.in) : Tensor(),
          p.add ? input(draw, {p.M, p.N + p.pad}, t.out) : Tensor(),
          p.epilogue == Epilogue::gelu_backward ? input(draw, {p.M, p.N + p.pad}, t.out) : Tensor()};
}

struct Product {
  Tensor c, pre, a_sum;
};

Product product(const Operands& o, const Problem& p, Types t) {
  Product out{o.c.clone(), o.pre, {}};
  Tensor& c = out.c;
  if (p.beta == 0) c.slice(1, 0, p.N).fill(std::nan(""));  // must not be read
  if (p.keep) out.pre = o.c.clone();                       // its padding must stay
  if (p.a_sum) out.a_sum = output({p.M}, compute_dtype(t.in));
  launch({}, MatmulArgs{.a = o.a.raw(),
                        .b = o.b.raw(),
                        .c = c.raw(),
                        .bias_N = p.bias ? o.bias.raw() : nullptr,
                        .M = p.M,
                        .N = p.N,
                        .K = p.K,
                        .lda = o.a.size(1),
                        .ldb = o.b.size(1),
                        .ldc = c.size(1),
                        .transpose_a = p.ta,
                        .transpose_b = p.tb,
                        .alpha = p.alpha,
                        .beta = p.beta,
                        .dtype = t.in,
                        .c_dtype = t.out,
                        .add_MN = p.add ? o.add.raw() : nullptr,
                        .epilogue = p.epilogue,
                        .pre_MN = out.pre.defined() ? out.pre.raw() : nullptr,
                        .a_sum_M = p.a_sum ? out.a_sum.raw() : nullptr});
  return out;
}

Tensor multiply(const Operands& o, const Problem& p, Types t) { return product(o, p, t).c; }

double gelu_of(double x) { return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))); }
double gelu_slope_of(double x) {
  const double u = 0.7978845608028654 * (x + 0.044715 * x * x * x), t = std::tanh(u);
  return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * 0.7978845608028654 * (1 + 3 * 0.044715 * x * x);
}

struct Expected {
  Values c, pre, a_sum;  // the whole storage of C and pre, padding included
};

Expected expected(const Operands& o, const Problem& p) {
  const Tensor a_view = p.ta ? o.a.slice(1, 0, p.M).transpose(0, 1) : o.a.slice(1, 0, p.K);  // (M, K)
  const Tensor b_view = p.tb ? o.b.slice(1, 0, p.K) : o.b.slice(1, 0, p.N).transpose(0, 1);  // (N, K)
  const Values a = values_of(a_view), b = values_of(b_view), bias = p.bias ? values_of(o.bias) : Values();
  const Values add = p.add ? values_of(o.add) : Values(), slope = o.pre.defined() ? values_of(o.pre) : Values();
  Values c = values_of(o.c), pre = c, a_sum(idx(p.M));
  for (std::int64_t m = 0; m < p.M; ++m) {
    for (std::int64_t k = 0; k < p.K; ++k) a_sum[idx(m)] += a[idx(m * p.K + k)];
    for (std::int64_t n = 0; n < p.N; ++n) {
      double sum = 0;
      for (std::int64_t k = 0; k < p.K; ++k) sum += a[idx(m * p.K + k)] * b[idx(n * p.K + k)];
      double& to = c[idx(m * o.c.size(1) + n)];
      to = p.alpha * sum + (p.beta == 0 ? 0 : p.beta * to) + (p.bias ? bias[idx(n)] : 0);
      const std::size_t at = idx(m * o.c.size(1) + n);
      if (p.add) to += add[at];
      pre[at] = to;
      if (p.epilogue == Epilogue::gelu) to = gelu_of(to);
      if (p.epilogue == Epilogue::gelu_backward) to *= gelu_slope_of(slope[at]);
    }
  }
  return {c, pre, a_sum};
}

Values reference(const Operands& o, const Problem& p) { return expected(o, p).c; }

}  // namespace

TEST_CASE("random products, all dtypes, transposes, paddings, alpha and beta") {
  int odd = 0;
  for (std::uint64_t round = 0; round < 60; ++round) {
    Draw draw(5, round);
    Problem p{draw.extent(70), draw.chance(0.3) ? draw.integer(60, 140) : draw.extent(70), draw.extent(90)};
    p.pad = draw.chance(0.3) ? draw.integer(1, 5) : 0;
    p.ta = draw.chance(0.5);
    p.tb = draw.chance(0.5);
    p.bias = draw.chance(0.4);
    p.alpha = !p.bias && draw.chance(0.4) ? 0.75 : 1;
    p.beta = draw.chance(0.3) ? 1 : draw.chance(0.3) ? -0.5 : 0;
    odd += p.M % 2 + p.N % 2 + p.K % 2 == 3;
    for (const Types t : kTypes) {
      const Operands o = operands(draw, p, t);
      CAPTURE(round, p.str(), name_of(t.in), name_of(t.out));
      CHECK(close_to(multiply(o, p, t), reference(o, p), t.in));
    }
  }
  CHECK(odd >= 3);
}

TEST_CASE("what is fused behind a product: residual, GELU with its input kept, GELU's gradient, sums of A") {
  for (std::uint64_t round = 0; round < 60; ++round) {
    Draw draw(9, round);
    Problem p{draw.extent(70), draw.chance(0.3) ? draw.integer(60, 140) : draw.extent(70), draw.extent(90)};
    if (round >= 58) p = {600, 800, 24};  // several pieces
    p.pad = draw.chance(0.3) ? draw.integer(1, 5) : 0;
    p.ta = draw.chance(0.5), p.tb = draw.chance(0.5), p.bias = draw.chance(0.5), p.add = draw.chance(0.5);
    p.alpha = p.bias ? 1 : 0.25;  // GELU is linear for large sums
    p.beta = draw.chance(0.3) ? 0.5 : 0;
    p.epilogue = static_cast<Epilogue>(draw.integer(0, 2));
    p.keep = p.epilogue == Epilogue::gelu && draw.chance(0.7);
    p.a_sum = draw.chance(0.5);
    for (const Types t : kTypes) {
      const Operands o = operands(draw, p, t);
      CAPTURE(round, p.str(), name_of(t.in), name_of(t.out));
      const Product got = product(o, p, t);
      const Expected wanted = expected(o, p);
      CHECK(close_to(got.c, wanted.c, t.in));
      if (p.keep) CHECK(close_to(got.pre, wanted.pre, t.in));
      if (p.a_sum) CHECK(close_to(got.a_sum, wanted.a_sum, t.in));
      if (round >= 58) CHECK(same_for_all_threads([&] { return std::vector{multiply(o, p, t)}; }));
    }
  }
}

TEST_CASE("products that are cut into pieces") {
  // Larger than one piece in M and in N, with ragged ends; long K.
  const Problem problems[] = {{.M = 530, .N = 801, .K = 33, .tb = true, .bias = true},
                              {.M = 530, .N = 801, .K = 40},
                              {.M = 1, .N = 1700, .K = 64, .tb = true},
                              {.M = 40, .N = 50, .K = 9001, .ta = true, .beta = 1},
                              {.M = 300, .N = 450, .K = 300, .ta = true, .beta = 1}};
  for (const Problem& p : problems) {
    for (const Types t : kTypes) {
      Draw draw(6, static_cast<std::uint64_t>(p.M));
      const Operands o = operands(draw, p, t);
      CAPTURE(p.str(), name_of(t.in), name_of(t.out));
      CHECK(close_to(multiply(o, p, t), reference(o, p), t.in, p.K > 1000 ? 5 : 1));
    }
  }
}

TEST_CASE("a product has the same bits on every number of threads") {
  const Problem problems[] = {{.M = 530, .N = 801, .K = 133, .tb = true, .bias = true},
                              {.M = 257, .N = 300, .K = 520},
                              {.M = 64, .N = 64, .K = 5000, .ta = true, .beta = 1},
                              {.M = 5, .N = 2100, .K = 3072, .tb = true},
                              {.M = 300, .N = 1000, .K = 400, .ta = true, .beta = 1}};
  for (const Problem& p : problems) {
    for (const Types t : kTypes) {
      Draw draw(7, static_cast<std::uint64_t>(p.M));
      const Operands o = operands(draw, p, t);
      CAPTURE(p.str(), name_of(t.in), name_of(t.out));
      CHECK(same_for_all_threads([&] { return std::vector{multiply(o, p, t)}; }));
    }
  }
}

TEST_CASE("a library may not split K among its threads") {
  // oneDNN 2.6 and 3.1 do so for these from about 8 threads on, where they are let.
  const Problem problems[] = {
      {.M = 16, .N = 16, .K = 4096}, {.M = 48, .N = 48, .K = 4096, .ta = true}, {.M = 16, .N = 16, .K = 50000}};
  for (const Problem& p : problems) {
    for (const Types t : kTypes) {
      Draw draw(8, static_cast<std::uint64_t>(p.K));
      const Operands o = operands(draw, p, t);
      CAPTURE(p.str(), name_of(t.in), name_of(t.out));
      // A product is planned once per shape, for the threads there are then. Another stride makes it be planned anew.
      const auto planned_anew = [&] {
        Operands wide = o;
        wide.c = zeros({p.M, p.N + 16 * num_threads()}, t.out);
        return std::vector{multiply(wide, p, t).slice(1, 0, p.N).contiguous()};
      };
      CHECK(same_for_all_threads(planned_anew, {1, 2, 4, 8, 16}));
    }
  }
}

TEST_CASE("products run inside parallel regions and from several threads, with the same bits") {
  const Problem p{.M = 300, .N = 400, .K = 200, .tb = true};
  for (const Types t : kTypes) {
    Draw draw(8, 0);
    const Operands o = operands(draw, p, t);
    const Tensor wanted = multiply(o, p, t);
    const Threads guard(4);
    std::vector<Tensor> got(4);
    parallel_for(4, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) got[idx(i)] = multiply(o, p, t);
    });
    for (const Tensor& g : got) CHECK(same_bits(g, wanted));
  }
}

TEST_CASE("an exact product of integers is exact in fp32, and a NaN stays in its row") {
  const std::int64_t n = 96;
  Tensor a = empty({n, n}, DType::f64), b = empty({n, n}, DType::f64);
  for (std::int64_t i = 0; i < n * n; ++i) {
    a.data<double>()[i] = static_cast<double>(i * 7 % 23 - 11);
    b.data<double>()[i] = static_cast<double>(i * 5 % 19 - 9);
  }
  const Problem p{.M = n, .N = n, .K = n};
  const Types narrow{DType::bf16, DType::f32}, wide{DType::f64, DType::f64};
  const Operands o64{a, b, zeros({n, n}, DType::f64), {}},
      o16{a.to(DType::bf16), b.to(DType::bf16), zeros({n, n}, DType::f32), {}};
  CHECK(values_of(multiply(o16, p, narrow)) == values_of(multiply(o64, p, wide)));

  for (const Types t : kTypes) {
    Tensor x = a.to(t.in).clone();
    x.slice(0, 3, 4).slice(1, 5, 6).fill(std::nan(""));
    const Tensor c = multiply({x, b.to(t.in), zeros({n, n}, t.out), {}}, p, t);
    for (std::int64_t row = 0; row < n; ++row) {
      const Values v = values_of(c.slice(0, row, row + 1));
      CHECK(std::all_of(v.begin(), v.end(), [row](double e) { return std::isnan(e) == (row == 3); }));
    }
  }
}

TEST_CASE("wrong products are refused with their numbers") {
  const Tensor t = zeros({8, 8}, DType::f32);
  MatmulArgs args{.a = t.raw(), .b = t.raw(), .c = t.raw(), .M = 2, .N = 4, .K = 8, .lda = 7, .ldb = 4, .ldc = 4};
  const auto text = [&] { return message_of([&] { launch({}, args); }, Exit::internal); };
  CHECK(text() == "[matmul] leading dimension 7 of A (2, 8)");
  args.lda = 8;
  args.dtype = DType::i32;
  CHECK(text() == "[matmul] i32 inputs and a f32 output");
  args.dtype = DType::f64;
  CHECK(text() == "[matmul] f64 inputs and a f32 output");
  args.dtype = DType::f32;
  args.M = -1;
  CHECK(text() == "[matmul] extents -1, 4, 8");
  args.M = 2;
  args.alpha = 2;
  args.bias_N = t.raw();
  CHECK(text() == "[matmul] alpha 2 together with a bias");
  args.alpha = 1;
  args.add_MN = args.c;
  CHECK(text() == "[matmul] what is added is C itself: that is beta");
  args.add_MN = nullptr;
  args.epilogue = Epilogue::gelu_backward;
  CHECK(text() == "[matmul] GELU's gradient without its input");
}
