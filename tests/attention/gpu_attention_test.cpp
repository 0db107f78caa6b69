// The GPU's attention against the CPU's, which other tests hold against the O(T^2) oracle: same inputs, every pattern,
// gate, position rule and kind of scores. fp32 is compared at 1e-5 of the largest value, the bound that the CPU's fp32
// keeps against fp64; bf16 by its error against fp64.
#include "gpu_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "attention/decode.h"
#include "attention/pattern.h"
#include "attention/timestep_norm.h"
#include "support/catch.h"
#include "support/compare.h"

using namespace sieve;
using namespace sieve::test;

namespace {

// Positions that rotating q and k beforehand gives: not those of clamped distances.
bool positions_are_absolute(const ReferenceInput& in) {
  return in.spec.kind != AttentionKind::sparsek || in.spec.sparsek.positions == PositionRule::absolute;
}

// The naive bf16 attention: q and k rotated and rounded, everything else in fp32, results rounded.
EngineRun run_naive(const ReferenceInput& in, const std::vector<double>& dout) {
  ReferenceInput plain = in;
  plain.qkv = turned(in.qkv, in, 1);
  plain.rope.rotary_dims = 0;
  EngineRun run = run_engine(plain, DType::bf16, dout);
  if (run.dqkv.defined()) run.dqkv = tensor_of(turned(values_of(run.dqkv), in, -1), run.dqkv.shape(), DType::bf16);
  return run;
}

}  // namespace

TEST_CASE("the GPU's engine equals the CPU's: fp32 and fp64, output and gradients", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (std::uint64_t c = 0; c < 220; ++c) {
    Draw d(111, c);
    const std::string kind = kScoreKinds[c % kScoreKinds.size()];
    const ReferenceInput in = draw_gpu_input(d, kind, c % 5 == 0);
    CAPTURE(c, kind, describe(in));
    const auto dout = draw_values(d, in.B * in.T * in.spec.n_heads * in.spec.head_dim);
    const DType dtype = c % 6 == 1 ? DType::f64 : DType::f32;
    const double bound = dtype == DType::f64 ? 1e-11 : 1e-5;
    const EngineRun cpu = run_engine(in, dtype, dout), gpu = run_on_gpu(in, dtype, dout);
    CHECK(relative_difference(gpu.out, cpu.out) <= bound);
    CHECK(relative_difference(gpu.dqkv, cpu.dqkv) <= bound);
    if (cpu.dscores.defined()) CHECK(relative_difference(gpu.dscores, cpu.dscores) <= bound);
  }
}

TEST_CASE("the naive bf16 attention, the yardstick of the GPU's, is close to fp64") {
  Worst naive;
  for (std::uint64_t c = 0; c < 26; ++c) {
    Draw d(112, c);
    const ReferenceInput in = draw_input(d, 60, kScoreKinds[c % kScoreKinds.size()]);
    if (!positions_are_absolute(in)) continue;
    const auto dout = draw_values(d, in.B * in.T * in.spec.n_heads * in.spec.head_dim);
    naive.add(run_naive(in, dout), run_engine(in, DType::f64, dout), describe(in));
  }
  for (int x = 0; x < 3; ++x) {
    CAPTURE(x, naive.where[x]);
    CHECK(naive.error[x] <= 0.03);
    CHECK(naive.error[x] > 1e-4);
  }
}

// The GPU rounds rotated q and k, P and dS to bf16 on the way to the tensor cores, as naive bf16 attention does; the
// CPU's bf16 keeps all of them in fp32 and is a yardstick only where distances are clamped. Both yardsticks are pooled
// over all cases: the largest error of a single case is a matter of luck.
TEST_CASE("the GPU's bf16 is at most twice as far from fp64 as naive bf16 attention", "[gpu]") {
  SIEVE_NEEDS_GPU();
  Worst gpu, yardstick;
  for (std::uint64_t c = 0; c < 120; ++c) {
    Draw d(112, c);
    const ReferenceInput in = draw_gpu_input(d, kScoreKinds[c % kScoreKinds.size()], c % 4 != 0);
    const auto dout = draw_values(d, in.B * in.T * in.spec.n_heads * in.spec.head_dim);
    const EngineRun exact = run_engine(in, DType::f64, dout);
    const std::string what = cat("case ", c, ": ", describe(in));
    gpu.add(run_on_gpu(in, DType::bf16, dout), exact, what);
    yardstick.add(run_engine(in, DType::bf16, dout), exact, what);
    if (positions_are_absolute(in)) yardstick.add(run_naive(in, dout), exact, what);
  }
  for (int x = 0; x < 3; ++x) {
    CAPTURE(x, gpu.where[x], yardstick.error[x], yardstick.where[x]);
    CHECK(gpu.error[x] <= 2 * yardstick.error[x]);
  }
}

// Both kinds of kernels (D = 64: tensor cores), every gate and position rule, in seconds even under a sanitizer.
TEST_CASE("the GPU's engine: a few short rows", "[gpu][small]") {
  SIEVE_NEEDS_GPU();
  for (std::uint64_t c = 0; c < 9; ++c) {
    ReferenceInput in;
    const auto kind = c == 0 ? AttentionKind::full : c == 1 ? AttentionKind::sliding_window : AttentionKind::sparsek;
    in.spec = make_spec(kind, 4, 2, c % 2 == 0 ? 64 : 24);
    in.spec.window = 9, in.spec.sinks = c == 1 ? 3 : 0;
    in.spec.sparsek.k = 11;
    in.spec.sparsek.gate = static_cast<GateMode>(c % 4);
    in.spec.sparsek.positions = static_cast<PositionRule>(c % 3);
    in.spec.sparsek.candidates = static_cast<Candidates>(c / 4 % 2);
    in.spec.sparsek.clamp_distance = 20;
    in.T = c % 3 == 0 ? 130 : 70;
    in.score_heads = c % 2 == 0 ? 2 : 1;
    in.rope.rotary_dims = c == 5 ? 0 : 16;
    Draw d(120, c);
    if (c % 4 == 3) fill_documents(in, d);
    fill_values(in, d, "normal");
    const auto dout = draw_values(d, in.T * in.spec.n_heads * in.spec.head_dim);
    CAPTURE(c, describe(in));
    for (const DType dtype : {DType::f32, DType::bf16}) {
      CAPTURE(name_of(dtype));
      const double bound = dtype == DType::f32 ? 1e-5 : 0.03;  // bf16 is measured above; here a crash or worse shows
      const EngineRun cpu = run_engine(in, dtype, dout), gpu = run_on_gpu(in, dtype, dout);
      CHECK(relative_difference(gpu.out, cpu.out) <= bound);
      CHECK(relative_difference(gpu.dqkv, cpu.dqkv) <= bound);
      if (cpu.dscores.defined()) CHECK(relative_difference(gpu.dscores, cpu.dscores) <= bound);
    }
  }
}

// bf16 at head sizes 64 and 128 goes to the pattern's kernels, the rest to the general ones.
TEST_CASE("a window with sinks on the GPU equals the CPU's: many shapes and documents", "[gpu]") {
  SIEVE_NEEDS_GPU();
  constexpr std::int64_t kLengths[] = {1, 63, 65, 200, 700, 1500};
  for (std::uint64_t c = 0; c < 36; ++c) {
    Draw d(121, c);
    ReferenceInput in;
    in.spec = make_spec(AttentionKind::sliding_window, 4, c % 2 == 0 ? 4 : 2, c % 3 == 0 ? 128 : c % 3 == 1 ? 64 : 40);
    in.T = kLengths[c / 3 % 6], in.B = in.T < 500 ? 2 : 1;
    in.spec.window = d.chance(0.5) ? d.integer(1, 30) : d.integer(1, 300);
    in.spec.sinks = d.chance(0.5) ? d.integer(1, 8) : d.integer(1, 150);
    in.rope.rotary_dims = c % 4 == 0 ? 0 : c % 4 == 1 ? 10 : 32;
    if (c / 3 % 4 >= 2) fill_documents(in, d);
    if (c / 3 % 4 >= 2 && in.T > 500) {  // long ones too
      for (std::int64_t t = 0; t < in.T; ++t) in.document_starts[static_cast<std::size_t>(t)] = t < 90 ? 0 : 90;
    }
    fill_values(in, d, "normal");
    const auto dout = draw_values(d, in.B * in.T * in.spec.n_heads * in.spec.head_dim);
    const DType dtype = c % 3 == 2 || c % 5 == 0 ? DType::f32 : DType::bf16;
    CAPTURE(c, describe(in), name_of(dtype));
    const EngineRun cpu = run_engine(in, dtype, dout), gpu = run_on_gpu(in, dtype, dout);
    CHECK(relative_difference(gpu.out, cpu.out) <= (dtype == DType::f32 ? 1e-5 : 0.03));
    CHECK(relative_difference(gpu.dqkv, cpu.dqkv) <= (dtype == DType::f32 ? 1e-5 : 0.06));
    if (dtype == DType::f32) continue;
    ReferenceInput pattern = in;
    pattern.spec = sinks_as_pattern(in.spec);
    const EngineRun asked = run_on_gpu(pattern, dtype, dout);
    CHECK(same_bits(gpu.out, asked.out));
    CHECK(same_bits(gpu.dqkv, asked.dqkv));
  }
}

TEST_CASE("a long SparseK row: many tiles and lists, packed documents", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (const bool documents : {false, true}) {
    ReferenceInput in;
    in.spec = make_spec(AttentionKind::sparsek, 4, 2, 64);
    in.spec.window = 100;
    in.spec.sparsek.k = 200;
    in.spec.sparsek.slope = 1e-4;
    in.spec.sparsek.positions = PositionRule::clamp;
    in.spec.sparsek.clamp_distance = 300;
    in.T = 3000;
    in.score_heads = 2;
    in.rope.rotary_dims = 64;
    Draw d(113, documents);
    if (documents) {
      for (std::int64_t t = 0; t < in.T; ++t) in.document_starts.push_back(t < 1111 ? 0 : (t < 1200 ? 1111 : 1200));
    }
    fill_values(in, d, "normal");
    const auto dout = draw_values(d, in.T * in.spec.n_heads * in.spec.head_dim);
    const EngineRun cpu = run_engine(in, DType::f32, dout), gpu = run_on_gpu(in, DType::f32, dout);
    CAPTURE(documents);
    CHECK(relative_difference(gpu.out, cpu.out) <= 1e-5);
    CHECK(relative_difference(gpu.dqkv, cpu.dqkv) <= 1e-5);
    CHECK(relative_difference(gpu.dscores, cpu.dscores) <= 1e-5);
  }
}

TEST_CASE("100 runs of the GPU's attention give the same bits", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (const DType dtype : {DType::bf16, DType::f32}) {
    ReferenceInput in;
    in.spec = make_spec(AttentionKind::sparsek, 4, 2, 64);
    in.spec.window = 30;
    in.spec.sparsek.k = 70;
    in.spec.sparsek.positions = PositionRule::clamp;
    in.spec.sparsek.clamp_distance = 90;
    in.T = 600;
    in.B = 2;
    in.score_heads = 1;
    in.rope.rotary_dims = 32;
    Draw d(114, 0);
    fill_values(in, d, "normal");
    const auto dout = draw_values(d, in.B * in.T * in.spec.n_heads * in.spec.head_dim);
    const EngineRun first = run_on_gpu(in, dtype, dout);
    int different = 0;
    for (int run = 1; run < 100; ++run) {
      const EngineRun again = run_on_gpu(in, dtype, dout);
      different += !same_bits(again.out, first.out) || !same_bits(again.dqkv, first.dqkv) ||
                   !same_bits(again.dscores, first.dscores);
    }
    CAPTURE(name_of(dtype));
    CHECK(different == 0);
  }
}

TEST_CASE("NaN scores on the GPU: the output of a recorded step is NaN, an evaluation ends", "[gpu]") {
  SIEVE_NEEDS_GPU();
  ReferenceInput in;
  in.spec = make_spec(AttentionKind::sparsek, 2, 1, 64);
  in.spec.window = 4;
  in.spec.sparsek.k = 5;
  in.T = 70;
  in.score_heads = 1;
  Draw d(116, 0);
  fill_values(in, d, "normal");
  CHECK(std::isfinite(max_abs(run_on_gpu(in, DType::bf16, {}).out)));
  in.scores[17] = std::numeric_limits<double>::quiet_NaN();
  for (const double v : values_of(run_on_gpu(in, DType::bf16, {}).out)) {
    if (!std::isnan(v)) {
      FAIL_CHECK("an output is " << v);
      break;
    }
  }
  const Tensor qkv = on_gpu(tensor_of(in.qkv, {1, in.T, in.spec.qkv_features()}, DType::bf16)),
               scores = on_gpu(tensor_of(in.scores, {1, 1, in.T}, DType::f32));
  try {
    attention(Variable(qkv), Variable(scores), inputs_of(in));
    FAIL_CHECK("no error");
  } catch (const Error& e) { CHECK(e.code() == Exit::nonfinite); }
}

TEST_CASE("statistics of a selection on the GPU are those of the CPU", "[gpu]") {
  SIEVE_NEEDS_GPU();
  ReferenceInput in;
  in.spec = make_spec(AttentionKind::sparsek, 2, 2, 16);
  in.spec.window = 20;
  in.spec.sparsek.k = 30;
  in.T = 700;
  in.score_heads = 2;
  Draw d(117, 0);
  fill_values(in, d, "normal");
  SelectionStats cpu, gpu;
  run_engine(in, DType::f32, {}, &cpu);
  run_on_gpu(in, DType::f32, {}, &gpu);
  CHECK(gpu.band_over_k == Approx(cpu.band_over_k));
  CHECK(gpu.saturated_over_k == Approx(cpu.saturated_over_k));
  CHECK(gpu.ever_selected == cpu.ever_selected);
  CHECK(gpu.mean_lifetime == cpu.mean_lifetime);
  CHECK(gpu.score_std == Approx(cpu.score_std));
}

namespace {

// A prompt, then a few positions at a time.
void check_cache(std::uint64_t c, std::int64_t longest) {
  Draw d(118, c);
  const std::string kind = kScoreKinds[c % kScoreKinds.size()];
  ReferenceInput in = draw_input(d, longest, kind);
  in.document_starts.clear();  // a cache holds one document
  const DType dtype = c % 3 == 0 ? DType::bf16 : DType::f32;
  CAPTURE(c, kind, describe(in), name_of(dtype));
  const Tensor qkv = tensor_of(in.qkv, {in.B, in.T, in.spec.qkv_features()}, dtype);
  const bool sparse = in.spec.kind == AttentionKind::sparsek;
  const Tensor scores = sparse ? tensor_of(in.scores, {in.B, in.score_heads, in.T}, DType::f32) : Tensor();
  AttentionCache cpu(in.spec, in.rope, in.B, dtype, in.T, in.score_heads),
      gpu(in.spec, in.rope, in.B, dtype, in.T, in.score_heads);
  const std::int64_t prompt = d.integer(0, in.T), block = d.integer(1, 5);
  double worst = 0;
  int different = 0;
  for (std::int64_t begin = 0, end; begin < in.T; begin = end) {
    end = begin == 0 && prompt > 0 ? prompt : std::min(in.T, begin + block);
    const Tensor x = qkv.slice(1, begin, end), s = sparse ? scores.slice(2, begin, end) : Tensor();
    const Tensor a = cpu.step(x, s), b = on_host(gpu.step(on_gpu(x.contiguous()), on_gpu(sparse ? s.contiguous() : s)));
    worst = std::max(worst, relative_difference(b, a));
    for (std::int64_t row = 0; row < in.B; ++row) {
      for (std::int64_t kv = 0; kv < in.spec.n_kv_heads; ++kv)
        different += cpu.selected(row, kv) != gpu.selected(row, kv);
    }
  }
  CHECK(worst <=
        (dtype == DType::bf16 ? 0.02 : 1e-5));  // bf16: roundings of the output and of P, 2^-8 each, of values up to 4
  CHECK(different == 0);
}

}  // namespace

TEST_CASE("a cache on the GPU generates what one on the CPU does", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (std::uint64_t c = 0; c < 60; ++c) check_cache(c, 100);
}

TEST_CASE("a cache on the GPU: a few short generations", "[gpu][small]") {
  SIEVE_NEEDS_GPU();
  for (std::uint64_t c = 0; c < 6; ++c) check_cache(c, 24);
}

namespace {

void check_timestep_norm(std::uint64_t c) {
  Draw d(119, c);
  ReferenceInput in;
  in.B = d.integer(1, 3), in.T = c % 5 == 0 ? d.integer(31, 700) : d.integer(1, 100);
  const std::int64_t H = d.integer(1, 4);
  if (d.chance(0.5)) fill_documents(in, d);
  const Tensor starts = inputs_of(in).document_starts;
  const DType dtype = c % 2 == 0 ? DType::f32 : DType::f64;
  const Tensor s = d.normal({in.B, H, in.T}).to(dtype), gain = d.normal({H}).to(dtype),
               g = d.normal({in.B, H, in.T}).to(dtype);
  const auto run = [&](bool gpu) {
    const auto place = [&](const Tensor& t) { return gpu ? on_gpu(t) : t; };
    const Variable x = Variable::leaf(place(s)), w = Variable::leaf(place(gain));
    const Variable y = timestep_norm(x, w, place(starts));
    backward(y, place(g));
    RunningScore running;
    const Tensor first = timestep_norm_extend(place(s), place(gain), running),
                 second = timestep_norm_extend(place(s), place(gain), running);
    return std::vector<Tensor>{on_host(y.value()), on_host(x.grad()), on_host(w.grad()), on_host(first),
                               on_host(second)};
  };
  const auto cpu = run(false), gpu = run(true);
  CAPTURE(c, in.B, H, in.T, starts.defined(), name_of(dtype));
  for (std::size_t x = 0; x < cpu.size(); ++x) {
    CAPTURE(x);
    CHECK(relative_difference(gpu[x], cpu[x]) <= (dtype == DType::f64 ? 1e-11 : 1e-5));
  }
}

}  // namespace

TEST_CASE("timestep normalisation on the GPU equals the CPU's", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (std::uint64_t c = 0; c < 60; ++c) check_timestep_norm(c);
}

TEST_CASE("timestep normalisation on the GPU: a few", "[gpu][small]") {
  SIEVE_NEEDS_GPU();
  for (std::uint64_t c = 0; c < 6; ++c) check_timestep_norm(c);
}
