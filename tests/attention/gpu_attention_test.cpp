// The GPU's attention against the CPU's, which other tests hold against the O(T^2) oracle: same inputs, every pattern,
// gate, position rule and kind of scores. fp32 is compared at 1e-5 of the largest value, the bound that the CPU's fp32
// keeps against fp64; bf16 by its error against fp64.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "attention/decode.h"
#include "attention/kernels/select.h"
#include "attention/sparsek.h"
#include "attention/timestep_norm.h"
#include "attention_cases.h"
#include "support/catch.h"
#include "support/compare.h"
#include "support/gpu.h"

using namespace sieve;
using namespace sieve::test;

namespace {

Tensor on_gpu(const Tensor& t) { return t.defined() ? t.to(gpu_stream()) : t; }
Tensor on_host(const Tensor& t) { return t.defined() ? t.to(Stream{}) : t; }

// run_engine() on the GPU; the results come back to the host.
EngineRun run_on_gpu(const ReferenceInput& in, DType dtype, const std::vector<double>& dout,
                     SelectionStats* stats = nullptr) {
  const Variable qkv = Variable::leaf(on_gpu(tensor_of(in.qkv, {in.B, in.T, in.spec.qkv_features()}, dtype)));
  Variable scores;
  if (in.spec.kind == AttentionKind::sparsek) {
    scores = Variable::leaf(
        on_gpu(tensor_of(in.scores, {in.B, in.score_heads, in.T}, dtype == DType::f64 ? DType::f64 : DType::f32)));
  }
  AttentionInputs how = inputs_of(in);
  how.document_starts = on_gpu(how.document_starts);
  const Variable out = attention(qkv, scores, how, stats);
  EngineRun run{on_host(out.value()), {}, {}};
  if (dout.empty()) return run;
  backward(out, on_gpu(tensor_of(dout, out.shape(), dtype)));
  run.dqkv = on_host(qkv.grad());
  if (scores.defined()) run.dscores = on_host(scores.grad());
  return run;
}

// Lengths around the edges of tiles (64 queries) and of the lists of backward (512), head sizes of both kinds of
// kernels.
ReferenceInput draw_gpu_input(Draw& d, const std::string& kind, bool tensor_cores) {
  ReferenceInput in = draw_input(d, 150, kind);
  constexpr std::int64_t kLengths[] = {1, 63, 64, 65, 130, 513}, kHeadSizes[] = {1, 7, 33, 64, 72, 96, 128};
  if (d.chance(0.6)) in.T = kLengths[d.integer(0, d.chance(0.3) ? 5 : 4)];
  if (d.chance(0.6) || tensor_cores) in.spec.head_dim = kHeadSizes[d.integer(0, 6)];
  if (tensor_cores) in.spec.head_dim = d.chance(0.5) ? 64 : 128;
  in.rope.rotary_dims = std::min(in.rope.rotary_dims * d.integer(1, 4), in.spec.head_dim / 2 * 2);
  if (in.T > 150) {
    in.B = 1;
    if (d.chance(0.5)) in.spec.window = d.integer(1, 40), in.spec.sparsek.k = d.integer(1, 100);
  }
  if (!in.document_starts.empty()) fill_documents(in, d);
  fill_values(in, d, kind);
  return in;
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

// bf16 rounds P and dS on the way to the tensor cores as any bf16 attention does; the CPU's computes in fp32 inside.
TEST_CASE("the GPU's bf16 is at most twice as far from fp64 as the CPU's", "[gpu]") {
  SIEVE_NEEDS_GPU();
  double gpu_worst[3] = {}, cpu_worst[3] = {};
  std::string where[3];
  for (std::uint64_t c = 0; c < 120; ++c) {
    Draw d(112, c);
    const std::string kind = kScoreKinds[c % kScoreKinds.size()];
    const ReferenceInput in = draw_gpu_input(d, kind, c % 4 != 0);
    const auto dout = draw_values(d, in.B * in.T * in.spec.n_heads * in.spec.head_dim);
    const EngineRun exact = run_engine(in, DType::f64, dout), cpu = run_engine(in, DType::bf16, dout),
                    gpu = run_on_gpu(in, DType::bf16, dout);
    const Tensor* wanted[] = {&exact.out, &exact.dqkv, &exact.dscores};
    const Tensor* host[] = {&cpu.out, &cpu.dqkv, &cpu.dscores};
    const Tensor* device[] = {&gpu.out, &gpu.dqkv, &gpu.dscores};
    for (int x = 0; x < 3; ++x) {
      if (!wanted[x]->defined()) continue;
      const double g = relative_difference(*device[x], *wanted[x]);
      cpu_worst[x] = std::max(cpu_worst[x], relative_difference(*host[x], *wanted[x]));
      if (!(g <= gpu_worst[x])) gpu_worst[x] = g, where[x] = cat("case ", c, ": ", describe(in));
    }
  }
  for (int x = 0; x < 3; ++x) {
    CAPTURE(x, where[x], cpu_worst[x]);
    CHECK(gpu_worst[x] <= 2 * cpu_worst[x]);
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

namespace {

// The arrays of a selection, on the device where it runs.
struct DeviceSelection {
  Tensor from, to, z, tau, band, band_from, band_to, nan;

  DeviceSelection(const SelectArgs& how, const Tensor& scores, const Tensor& starts) {
    const Stream stream = scores.stream();
    for (Tensor* t : {&from, &to, &band, &band_from, &band_to}) *t = empty(scores.shape(), DType::i32, stream);
    for (Tensor* t : {&z, &tau}) *t = empty(scores.shape(), DType::f64, stream);
    nan = empty({1}, DType::i64, stream);
    SelectArgs a = how;
    a.scores_BHT = scores.raw(), a.dtype = scores.dtype();
    if (starts.defined()) a.document_starts_BT = starts.data<std::int32_t>();
    a.from_BHT = from.data<std::int32_t>(), a.to_BHT = to.data<std::int32_t>();
    a.z_BHT = z.data<double>(), a.tau_BHT = tau.data<double>();
    a.band_BHT = band.data<std::int32_t>();
    a.band_from_BHT = band_from.data<std::int32_t>(), a.band_to_BHT = band_to.data<std::int32_t>();
    a.nan_count = nan.data<std::int64_t>();
    launch(stream, a);
    for (Tensor* t : {&from, &to, &z, &tau, &band, &band_from, &band_to, &nan}) *t = on_host(*t);
  }
};

// |F_i| is the number of keys whose interval holds i.
bool counts_agree(const DeviceSelection& s) {
  const std::int64_t T = s.band.size(2), rows = s.band.numel() / std::max<std::int64_t>(1, T);
  for (std::int64_t row = 0; row < rows; ++row) {
    std::vector<std::int32_t> count(static_cast<std::size_t>(T) + 1, 0);
    for (std::int64_t j = row * T; j < (row + 1) * T; ++j) {
      ++count[static_cast<std::size_t>(s.band_from.data<std::int32_t>()[j])];
      --count[static_cast<std::size_t>(s.band_to.data<std::int32_t>()[j])];
    }
    std::int32_t sum = 0;
    for (std::int64_t i = 0; i < T; ++i) {
      sum += count[static_cast<std::size_t>(i)];
      if (sum != s.band.data<std::int32_t>()[row * T + i]) return false;
    }
  }
  return true;
}

double tau_error(const Tensor& got, const Tensor& wanted) {
  double worst = 0;
  const auto g = values_of(got), w = values_of(wanted);
  for (std::size_t x = 0; x < g.size(); ++x) {
    if (g[x] == w[x]) continue;
    const double e = std::abs(g[x] - w[x]) / std::max(1.0, std::abs(w[x]));
    worst = e <= worst ? worst : (e == e ? e : std::numeric_limits<double>::infinity());
  }
  return worst;
}

}  // namespace

TEST_CASE("the GPU selects what the CPU selects", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (std::uint64_t c = 0; c < 260; ++c) {
    Draw d(115, c);
    const std::string kind = kScoreKinds[c % kScoreKinds.size()];
    ReferenceInput in = draw_input(d, 90, kind);
    in.spec.kind = AttentionKind::sparsek;
    in.T = c % 9 == 0 ? d.integer(1500, 4000) : (c % 3 == 0 ? d.integer(60, 600) : in.T);
    if (!in.document_starts.empty()) fill_documents(in, d);
    SelectArgs how{};
    how.B = in.B, how.H = in.score_heads, how.T = in.T;
    how.k = c % 9 == 0 ? d.integer(1, 700) : in.spec.sparsek.k;
    how.pool = c % 4 == 0 ? 0 : d.integer(1, 5);
    how.delay = d.chance(0.3) ? 0 : d.integer(1, in.T);
    how.slope = in.spec.sparsek.slope, how.temperature = in.spec.sparsek.temperature;
    how.thresholds = true;
    std::vector<double> values;
    for (std::int64_t x = 0; x < in.B * in.score_heads; ++x) {
      const auto s = make_scores(kind, in.T, static_cast<std::uint64_t>(d.integer(0, 1 << 30)));
      values.insert(values.end(), s.begin(), s.end());
    }
    if (c % 7 == 0) {
      for (double& v : values) v = d.chance(0.05) ? std::numeric_limits<double>::quiet_NaN() : v;
    }
    const Tensor scores = tensor_of(values, {in.B, in.score_heads, in.T}, c % 2 == 0 ? DType::f32 : DType::f64);
    const Tensor starts = inputs_of(in).document_starts;
    CAPTURE(c, kind, in.B, in.score_heads, in.T, how.k, how.pool, how.delay, how.slope, how.temperature,
            starts.defined());
    const DeviceSelection cpu(how, scores, starts), gpu(how, on_gpu(scores), on_gpu(starts));
    CHECK(same_bits(gpu.from, cpu.from));
    CHECK(same_bits(gpu.to, cpu.to));
    CHECK(same_bits(gpu.z, cpu.z));
    CHECK(same_bits(gpu.nan, cpu.nan));
    CHECK(tau_error(gpu.tau, cpu.tau) <= 1e-12);
    CHECK(counts_agree(gpu));
    if (!same_bits(gpu.tau, cpu.tau)) continue;  // a threshold that moved by an ulp may move an end of a band
    CHECK(same_bits(gpu.band, cpu.band));
    CHECK(same_bits(gpu.band_from, cpu.band_from));
    CHECK(same_bits(gpu.band_to, cpu.band_to));
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

TEST_CASE("a cache on the GPU generates what one on the CPU does", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (std::uint64_t c = 0; c < 60; ++c) {
    Draw d(118, c);
    const std::string kind = kScoreKinds[c % kScoreKinds.size()];
    ReferenceInput in = draw_input(d, 100, kind);
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
      const Tensor a = cpu.step(x, s),
                   b = on_host(gpu.step(on_gpu(x.contiguous()), on_gpu(sparse ? s.contiguous() : s)));
      worst = std::max(worst, relative_difference(b, a));
      for (std::int64_t row = 0; row < in.B; ++row) {
        for (std::int64_t kv = 0; kv < in.spec.n_kv_heads; ++kv)
          different += cpu.selected(row, kv) != gpu.selected(row, kv);
      }
    }
    CHECK(
        worst <=
        (dtype == DType::bf16 ? 0.02 : 1e-5));  // bf16: roundings of the output and of P, 2^-8 each, of values up to 4
    CHECK(different == 0);
  }
}

TEST_CASE("timestep normalisation on the GPU equals the CPU's", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (std::uint64_t c = 0; c < 60; ++c) {
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
}
