// Attention by recurrences on a GPU against the CPU, which other tests hold against token-by-token oracles.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/error.h"
#include "linear_cases.h"
#include "support/catch.h"
#include "support/compare.h"
#include "support/gpu.h"
#include "tensor/runtime.h"

using namespace sieve;
using namespace sieve::test;

namespace {

LinearCase sized(bool gated, const LinearShape& shape, std::int64_t B, std::int64_t T, bool documents) {
  Draw d(91, static_cast<std::uint64_t>(T + 1000 * shape.D + gated));
  LinearCase in;
  in.gated = gated, in.shape = shape, in.B = B, in.T = T;
  if (documents) {
    ReferenceInput rows;
    rows.B = B, rows.T = T;
    fill_documents(rows, d);
    in.starts = rows.document_starts;
  }
  fill_linear(in, d);
  return in;
}

// Lengths around the edges of chunks (64) and stages (16), head sizes of every kernel: D up to 64 and 128, columns up
// to 64, 80, 128, 144 and 256.
std::vector<LinearCase> gpu_cases() {
  std::vector<LinearCase> cases;
  for (const std::int64_t T : {1, 15, 16, 63, 64, 65, 200})
    cases.push_back(sized(T % 2 == 0, {4, 2, 16, 24}, 2, T, T > 20));
  for (const bool documents : {false, true}) {
    cases.push_back(sized(false, {6, 6, 64, 64}, 2, 517, documents));
    cases.push_back(sized(false, {4, 1, 64, 64}, 1, 300, documents));
    cases.push_back(sized(false, {2, 2, 128, 128}, 1, 333, documents));
    cases.push_back(sized(false, {2, 1, 72, 72}, 1, 130, documents));
    cases.push_back(sized(true, {3, 3, 64, 128}, 2, 517, documents));
    cases.push_back(sized(true, {2, 1, 64, 64}, 1, 300, documents));
    cases.push_back(sized(true, {1, 1, 128, 256}, 1, 333, documents));
    cases.push_back(sized(true, {2, 2, 33, 66}, 1, 130, documents));
  }
  cases.push_back(sized(false, {2, 2, 1, 1}, 3, 70, false));
  cases.push_back(sized(true, {1, 1, 1, 1}, 3, 70, false));
  cases.push_back(sized(true, {2, 2, 64, 128}, 1, 4096, false));
  return cases;
}

// Keys that enter late: at random queries, many at one, at the first of a document, at their own, never.
std::vector<LinearCase> late_cases() {
  std::vector<LinearCase> cases;
  const LinearShape shapes[] = {{4, 2, 16, 24}, {6, 6, 64, 64}, {4, 1, 64, 64},  {2, 2, 128, 128},
                                {2, 1, 72, 72}, {2, 2, 1, 1},   {1, 1, 40, 100}, {1, 1, 64, 140}};
  std::uint64_t c = 0;
  for (const LinearShape& shape : shapes) {
    for (const std::int64_t T : {1, 16, 65, 333}) {
      Draw d(101, c++);
      LinearCase in = sized(false, shape, c % 2 == 0 ? 2 : 1, T, c % 3 == 0);
      draw_exits(in, d);
      for (std::size_t x = 0; x < in.exit.size(); ++x) {
        const std::int64_t j = static_cast<std::int64_t>(x) % T;
        if (c % 4 == 1 && d.chance(0.3)) in.exit[x] = j;
        if (c % 4 == 2 && in.starts.empty() && j < T / 2) in.exit[x] = T / 2;
        if (c % 8 == 7) in.exit[x] = T;
      }
      cases.push_back(in);
    }
  }
  return cases;
}

double error_of(const Tensor& got, const Tensor& wanted) { return relative_difference(got, wanted); }

double worst_of(const Tensor& got, const std::vector<double>& wanted) {
  const auto g = values_of(got);
  double worst = 0;
  for (std::size_t x = 0; x < wanted.size(); ++x) {
    const double e = std::abs(g[x] - wanted[x]);
    worst = e <= worst ? worst : (e == e ? e : 1e300);
  }
  return worst;
}

double worst_of(const std::vector<double>& got, const std::vector<double>& wanted) {
  double worst = 0;
  for (std::size_t x = 0; x < wanted.size(); ++x) worst = std::max(worst, std::abs(got[x] - wanted[x]));
  return worst;
}

}  // namespace

TEST_CASE("linear attentions on a GPU equal the CPU's in fp32", "[gpu]") {
  SIEVE_NEEDS_GPU();
  std::vector<LinearCase> cases = gpu_cases();
  for (const LinearCase& in : late_cases()) cases.push_back(in);
  for (const LinearCase& in : cases) {
    INFO(describe(in) << " Hs" << in.Hs);
    const LinearRun cpu = run_linear(in, DType::f32), gpu = run_linear(in, DType::f32, gpu_stream());
    CHECK(error_of(gpu.out, cpu.out) <= 1e-5);
    CHECK(error_of(gpu.dqkv, cpu.dqkv) <= 1e-5);
    if (in.gated) CHECK(error_of(gpu.dgates, cpu.dgates) <= 1e-5);
  }
}

namespace {

void check_bf16(const LinearCase& in) {
  INFO(describe(in) << " Hs" << in.Hs);
  const LinearOracle exact = linear_oracle(in), naive = linear_oracle(in, true);
  const LinearRun gpu = run_linear(in, DType::bf16, gpu_stream());
  CHECK(worst_of(gpu.out, exact.out) <= 2 * worst_of(naive.out, exact.out));
  // Of a lone position the linear form's gradients of query and key are 0: what is left is the rounding of fp32.
  CHECK(worst_of(gpu.dqkv, exact.dqkv) <= std::max(1e-5, 2 * worst_of(naive.dqkv, exact.dqkv)));
  if (in.gated) CHECK(worst_of(gpu.dgates, exact.dgates) <= 2 * worst_of(naive.dgates, exact.dgates));
}

}  // namespace

TEST_CASE("linear attentions on a GPU in bf16 are at most twice as far off as naive ones", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (const bool gated : {false, true}) {
    for (const std::int64_t T : {30, 64, 150, -150}) {  // negative: keys enter late
      LinearCase in = sized(gated, {2, 2, 64, gated ? 128 : 64}, 1, std::abs(T), false);
      Draw d(103, 0);
      if (T < 0 && !gated) draw_exits(in, d);
      check_bf16(in);
    }
  }
}

// Tensor cores take heads of 64 (gated: values of 128) with keys of their own, in chunks of 64; other sizes do not.
TEST_CASE("linear attentions on a GPU in bf16 keep chunks and documents and late keys apart", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (const bool gated : {false, true}) {
    for (const std::int64_t T : {1, 2, 63, 65, 128, 200, 333}) {
      for (const bool documents : {false, true})
        check_bf16(sized(gated, {2, 2, 64, gated ? 128 : 64}, T < 150 ? 2 : 1, T, documents));
    }
    check_bf16(sized(gated, {4, 2, 64, gated ? 128 : 64}, 1, 130, true));
    check_bf16(sized(gated, {2, 2, 64, 32}, 1, 130, true));
  }
  for (const int way : {0, 1, 2}) {  // at random; 130 or more keys in one chunk; never
    for (const bool documents : {false, true}) {
      LinearCase in = sized(false, {2, 2, 64, 64}, 1, 300, documents);
      Draw d(127, static_cast<std::uint64_t>(way));
      draw_exits(in, d);
      for (std::size_t x = 0; x < in.exit.size(); ++x) {
        const std::int64_t j = static_cast<std::int64_t>(x) % in.T;
        if (way == 1 && !documents) in.exit[x] = j < 150 ? 150 + j / 60 : j;
        if (way == 2) in.exit[x] = in.T;
      }
      check_bf16(in);
    }
  }
}

TEST_CASE("gated linear attention on a GPU in bf16 keeps gates near 0 and near 1", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (const double logit : {-1e30, -2000.0, -60.0, 40.0, 1e30}) {
    LinearCase in = sized(true, {2, 2, 64, 128}, 1, 200, false);
    for (std::size_t x = 0; x < in.gates.size(); ++x)
      in.gates[x] = static_cast<double>(static_cast<float>(bf16(static_cast<float>(x % 7 == 3 ? -logit : logit))));
    INFO(logit);
    const LinearOracle exact = linear_oracle(in), naive = linear_oracle(in, true);
    const LinearRun gpu = run_linear(in, DType::bf16, gpu_stream());
    CHECK(worst_of(gpu.out, exact.out) <= 2 * worst_of(naive.out, exact.out));
    CHECK(worst_of(gpu.dqkv, exact.dqkv) <= 2 * worst_of(naive.dqkv, exact.dqkv));
    // Slopes are 0 where decays are 1, and where decays are 0 nothing passes: what is left is the rounding of sums of
    // 64 terms of size 100.
    CHECK(worst_of(gpu.dgates, exact.dgates) <= std::max(1e-3, 2 * worst_of(naive.dgates, exact.dgates)));
  }
}

TEST_CASE("linear attentions on a GPU keep gates near 0 and near 1", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (const double logit : {-1e30, -2000.0, -60.0, 40.0, 1e30}) {
    LinearCase in = sized(true, {2, 2, 32, 32}, 1, 333, false);
    for (std::size_t x = 0; x < in.gates.size(); ++x)
      in.gates[x] = static_cast<double>(static_cast<float>(x % 7 == 3 ? -logit : logit));
    INFO(logit);
    const LinearRun cpu = run_linear(in, DType::f32), gpu = run_linear(in, DType::f32, gpu_stream());
    CHECK(error_of(gpu.out, cpu.out) <= 1e-5);
    CHECK(error_of(gpu.dqkv, cpu.dqkv) <= 1e-5);
    CHECK(error_of(gpu.dgates, cpu.dgates) <= 1e-5);
  }
}

TEST_CASE("linear attentions on a GPU give the same bits twice", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (const int way : {0, 1, 2, 3}) {
    const bool gated = way % 2 == 1;
    LinearCase in =
        way < 2 ? sized(gated, {4, 2, 64, 64}, 2, 700, true) : sized(gated, {4, 4, 64, gated ? 128 : 64}, 2, 700, true);
    Draw d(107, 0);
    if (!gated) draw_exits(in, d);
    const LinearRun one = run_linear(in, DType::bf16, gpu_stream()), two = run_linear(in, DType::bf16, gpu_stream());
    CHECK(same_bits(one.out, two.out));
    CHECK(same_bits(one.dqkv, two.dqkv));
    if (gated) CHECK(same_bits(one.dgates, two.dgates));
  }
}

TEST_CASE("linear attentions on a GPU carry a state from token to token", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (const bool gated : {false, true}) {
    const LinearCase in = sized(gated, {4, 2, 64, 64}, 2, 140, false);
    const Tensor whole = run_linear(in, DType::f32).out;
    const Tensor qkv = tensor_of(in.qkv, {2, 140, in.shape.features()}, DType::f32).to(gpu_stream());
    const Tensor gates = gated ? tensor_of(in.gates, {2, 140, 128}, DType::f32).to(gpu_stream()) : Tensor();
    Tensor state;
    for (std::int64_t t = 0; t < 140;) {
      const std::int64_t end = t == 0 ? 71 : t + 1;
      const Tensor part = qkv.slice(1, t, end);
      const Tensor out = gated ? gated_linear_attention_extend(part, gates.slice(1, t, end), in.shape, state)
                               : linear_attention_extend(part, in.shape, {}, state);
      INFO(t);
      CHECK(error_of(out.to(Stream{}), whole.slice(1, t, end)) <= 1e-5);
      t = end;
    }
  }
}

TEST_CASE("the output gate on a GPU equals the CPU's", "[gpu]") {
  SIEVE_NEEDS_GPU();
  Draw d(97, 0);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Tensor x = d.normal({3, 50, 7}).to(dtype), gate = d.normal({3, 50, 7}, 4).to(dtype),
                 grad = d.normal({3, 50, 7}).to(dtype);
    const auto run = [&](const Stream& stream) {
      const Variable a = Variable::leaf(x.to(stream)), b = Variable::leaf(gate.to(stream));
      const Variable y = silu_gate(a, b);
      backward(y, grad.to(stream));
      return std::vector<Tensor>{y.value().to(Stream{}), a.grad().to(Stream{}), b.grad().to(Stream{})};
    };
    const auto cpu = run({}), gpu = run(gpu_stream());
    for (std::size_t i = 0; i < cpu.size(); ++i) CHECK(error_of(gpu[i], cpu[i]) <= (dtype == DType::f32 ? 1e-6 : 0.01));
  }
}

TEST_CASE("what linear attentions cannot do on a GPU says so", "[gpu]") {
  SIEVE_NEEDS_GPU();
  const LinearCase in = sized(false, {1, 1, 8, 8}, 1, 20, false);
  CHECK_THROWS_AS(run_linear(in, DType::f64, gpu_stream()), Error);
  CHECK_THROWS_AS(run_linear(sized(true, {1, 1, 130, 8}, 1, 20, false), DType::f32, gpu_stream()), Error);
}

TEST_CASE("the exits of SparseK's keys on a GPU are the CPU's", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (std::uint64_t c = 0; c < 60; ++c) {
    Draw d(109, c);
    ReferenceInput in = draw_input(d, 300, kScoreKinds[c % kScoreKinds.size()]);
    in.spec.kind = AttentionKind::sparsek;
    in.spec.window = d.integer(1, c % 3 == 0 ? 200 : 9), in.spec.sparsek.k = d.integer(1, c % 3 == 0 ? 60 : 9);
    if (c % 10 == 0) in.B = 1, in.T = 9000 + static_cast<std::int64_t>(c), in.document_starts.clear();
    if (c % 20 == 0) fill_documents(in, d);
    fill_values(in, d, kScoreKinds[c % kScoreKinds.size()]);
    INFO(describe(in));
    SelectionLives lives;
    const AttentionInputs how = inputs_of(in);
    attention(Variable(tensor_of(in.qkv, {in.B, in.T, in.spec.qkv_features()}, DType::f32)),
              Variable(tensor_of(in.scores, {in.B, in.score_heads, in.T}, DType::f64)), how, nullptr, &lives);
    const Tensor starts = how.document_starts.defined() ? how.document_starts.to(gpu_stream()) : Tensor();
    const KeyExits wanted = key_exits(lives.from, lives.to, in.spec.window, how.document_starts),
                   there = key_exits(lives.from.to(gpu_stream()), lives.to.to(gpu_stream()), in.spec.window, starts);
    const Tensor first = there.first.to(Stream{}), keys = there.keys.to(Stream{});
    CHECK(same_bits(first, wanted.first));
    int wrong = 0;
    for (std::int64_t row = 0; row < in.B * in.score_heads; ++row) {
      for (std::int64_t x = 0; x < wanted.first.data<std::int32_t>()[row * (in.T + 1) + in.T]; ++x)
        wrong += keys.data<std::int32_t>()[row * in.T + x] != wanted.keys.data<std::int32_t>()[row * in.T + x];
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("keys that enter late cost a GPU at most twice what linear attention costs", "[gpu]") {
  SIEVE_NEEDS_GPU();
  const LinearShape shape{6, 6, 64, 64};
  const std::int64_t T = 65536, window = 512;
  const Stream stream = gpu_stream();
  Tensor from = zeros({1, 6, T}, DType::i32), to = zeros({1, 6, T}, DType::i32);
  for (std::int64_t x = 0; x < 6 * T; ++x) {  // every eighth key stays longer
    const auto j = static_cast<std::int32_t>(x % T), stays = j % 8 == 3 ? 4096 : 0;
    from.data<std::int32_t>()[x] = j, to.data<std::int32_t>()[x] = std::min(static_cast<std::int32_t>(T), j + stays);
  }
  from = from.to(stream), to = to.to(stream);
  const Variable qkv = Variable::leaf(full({1, T, shape.features()}, 0.5, DType::bf16, stream));
  const Tensor grad = full({1, T, 6 * 64}, 1, DType::bf16, stream);
  const auto seconds = [&](bool late) {
    std::vector<double> times;
    for (int pass = 0; pass < 7; ++pass) {
      Event begin(stream.device), end(stream.device);
      begin.record(stream);
      const KeyExits exits = late ? key_exits(from, to, window, {}) : KeyExits{};
      const Variable out = linear_attention(qkv, shape, {}, exits);
      out.node()->backward(grad);
      end.record(stream);
      synchronize(stream);
      times.push_back(end.seconds_since(begin));
    }
    return *std::min_element(times.begin(), times.end());
  };
  const double plain = seconds(false), late = seconds(true);
  INFO("seconds of forward and backward: linear " << plain << ", with exits " << late);
  CHECK(late <= 2 * plain);
}

TEST_CASE("linear attentions on a GPU run at least three times as fast on tensor cores", "[gpu]") {
  SIEVE_NEEDS_GPU();
  const Stream stream = gpu_stream();
  const auto seconds = [&](bool gated, DType dtype) {
    const LinearShape shape = gated ? LinearShape{3, 3, 64, 128} : LinearShape{6, 6, 64, 64};
    const std::int64_t B = 8, T = 4096;
    const Variable qkv = Variable::leaf(full({B, T, shape.features()}, 0.5, dtype, stream));
    const Variable gates = Variable::leaf(full({B, T, shape.Hkv * shape.D}, 2, dtype, stream));
    const Tensor grad = full({B, T, shape.H * shape.V}, 1, dtype, stream);
    std::vector<double> times;
    for (int pass = 0; pass < 5; ++pass) {
      Event begin(stream.device), end(stream.device);
      begin.record(stream);
      const Variable out = gated ? gated_linear_attention(qkv, gates, shape, {}) : linear_attention(qkv, shape, {});
      out.node()->backward(grad);
      end.record(stream);
      synchronize(stream);
      times.push_back(end.seconds_since(begin));
    }
    return *std::min_element(times.begin(), times.end());
  };
  for (const bool gated : {false, true}) {
    const double tensor = seconds(gated, DType::bf16), plain = seconds(gated, DType::f32);
    INFO((gated ? "gated" : "linear") << ", seconds of forward and backward: bf16 " << tensor << ", fp32 " << plain);
    CHECK(3 * tensor <= plain);
  }
}

TEST_CASE("heads added through their gates on a GPU equal the CPU's", "[gpu]") {
  SIEVE_NEEDS_GPU();
  Draw d(113, 0);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const std::int64_t T : {1, 50, 700}) {
      const Tensor base = d.normal({3, T, 28}).to(dtype), x = d.normal({3, T, 28}).to(dtype),
                   gate = d.normal({4}, 3).to(dtype), grad = d.normal({3, T, 28}).to(dtype);
      const auto run = [&](const Stream& stream) {
        const Variable a = Variable::leaf(base.to(stream)), b = Variable::leaf(x.to(stream)),
                       c = Variable::leaf(gate.to(stream));
        const Variable y = add_gated_heads(a, b, c);
        backward(y, grad.to(stream));
        return std::vector<Tensor>{y.value().to(Stream{}), a.grad().to(Stream{}), b.grad().to(Stream{}),
                                   c.grad().to(Stream{})};
      };
      const auto cpu = run({}), gpu = run(gpu_stream()), again = run(gpu_stream());
      INFO(name_of(dtype) << " T" << T);
      for (std::size_t i = 0; i < cpu.size(); ++i) {
        CHECK(error_of(gpu[i], cpu[i]) <= (dtype == DType::f32 ? 1e-5 : 0.01));
        CHECK(same_bits(gpu[i], again[i]));
      }
    }
  }
}
