// Pattern attention on a GPU against the CPU's, which other tests hold against dense oracles: same inputs, every kind,
// by tensor cores (bf16, head sizes 64 and 128) and without. Bounds as in gpu_attention_test.cpp.
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "attention/pattern.h"
#include "gpu_attention.h"
#include "support/catch.h"
#include "support/compare.h"

using namespace sieve;
using namespace sieve::test;

namespace {

constexpr AttentionKind kKinds[] = {AttentionKind::strided, AttentionKind::fixed, AttentionKind::longformer,
                                    AttentionKind::bigbird, AttentionKind::hash,  AttentionKind::top_k,
                                    AttentionKind::moba,    AttentionKind::dsa};

struct PatternInput {
  ReferenceInput in;
  Tensor choice;

  std::int64_t start_of(std::int64_t b, std::int64_t i) const {
    return in.document_starts.empty() ? 0 : in.document_starts[static_cast<std::size_t>(b * in.T + i)];
  }
  std::string describe() const {
    const PatternSpec& p = in.spec.pattern;
    return cat(sieve::test::describe(in), " stride ", p.stride, " summary ", p.summary, " ",
               kPatternPartNames[static_cast<std::size_t>(p.part)], " dilation ", p.dilation, " globals ", p.globals,
               " block ", p.block, " ", p.global_blocks, " ", p.window_blocks, " ", p.random_blocks, " choice ",
               choice.defined() ? choice.shape().str() : "none");
  }
};

// What queries might choose: buckets, or an ascending list that ends with kNoChoice, at times an empty one.
void fill_choice(PatternInput& x, Draw& d) {
  const AttentionSpec& spec = x.in.spec;
  const bool hash = spec.kind == AttentionKind::hash, moba = spec.kind == AttentionKind::moba;
  const bool groups = moba && d.chance(0.4);  // query heads of a group choose together
  const std::int64_t heads = spec.kind == AttentionKind::dsa ? 1 : groups ? spec.n_kv_heads : spec.n_heads;
  const std::int64_t most = hash ? 1 : d.integer(1, d.chance(0.5) ? 4 : 60);
  x.choice = empty({x.in.B, heads, x.in.T, most}, DType::i32);
  std::int32_t* list = x.choice.data<std::int32_t>();
  const double none = d.chance(0.3) ? 0.3 : 0;
  for (std::int64_t row = 0; row < x.in.B * heads * x.in.T; ++row, list += most) {
    if (hash) {
      *list = static_cast<std::int32_t>(d.integer(0, spec.pattern.buckets - 1));
      continue;
    }
    const std::int64_t i = row % x.in.T, start = x.start_of(row / x.in.T / heads, i);
    const std::int64_t first = moba ? 0 : start, last = moba ? (i - start) / spec.pattern.block : i;
    std::int64_t n = 0, wanted = d.chance(none) ? 0 : std::min(most, last - first + 1);
    for (std::int64_t at = first; at <= last && n < wanted; ++at) {  // each with the chance that fills the list
      if (d.uniform() * static_cast<double>(last - at + 1) < static_cast<double>(wanted - n))
        list[n++] = static_cast<std::int32_t>(at);
    }
    std::fill(list + n, list + most, kNoChoice);
  }
}

PatternInput draw_pattern_input(Draw& d, AttentionKind kind, bool tensor_cores) {
  PatternInput x;
  x.in = draw_gpu_input(d, "normal", tensor_cores);
  if (!tensor_cores && d.chance(0.05)) x.in.spec.head_dim = 200;
  AttentionSpec& spec = x.in.spec;
  PatternSpec& p = spec.pattern;
  const bool wide = d.chance(0.5);  // beyond a tile
  spec.kind = kind, spec.sparsek = {}, spec.sinks = 0;
  spec.window = d.integer(1, wide ? 90 : 20);
  p.stride = d.integer(1, wide ? 140 : 20), p.summary = d.integer(1, p.stride);
  p.part = static_cast<PatternPart>(d.integer(0, 2));
  p.dilation = d.chance(0.5) ? 1 : d.integer(2, 7), p.globals = d.integer(0, wide ? 70 : 3);
  p.block = d.chance(0.3) ? 64 : d.integer(1, wide ? 100 : 20);
  p.global_blocks = d.integer(0, 2), p.window_blocks = d.integer(1, 3), p.random_blocks = d.integer(0, 3);
  p.buckets = d.integer(1, wide ? 5 : 40);
  p.seed = static_cast<std::uint64_t>(d.integer(0, 1 << 20));
  fill_values(x.in, d, "normal");
  if (kind >= AttentionKind::hash) fill_choice(x, d);
  return x;
}

// Output and gradient (none without dout), on the host.
EngineRun run_pattern(const PatternInput& x, DType dtype, const std::vector<double>& dout, bool gpu) {
  const ReferenceInput& in = x.in;
  const auto place = [&](const Tensor& t) { return gpu ? on_gpu(t) : t; };
  const Variable qkv = Variable::leaf(place(tensor_of(in.qkv, {in.B, in.T, in.spec.qkv_features()}, dtype)));
  AttentionInputs how = inputs_of(in);
  how.document_starts = place(how.document_starts);
  const Variable out = pattern_attention(qkv, place(x.choice), how);
  EngineRun run{on_host(out.value()), {}, {}};
  if (dout.empty()) return run;
  backward(out, place(tensor_of(dout, out.shape(), dtype)));
  run.dqkv = on_host(qkv.grad());
  return run;
}

EngineRun run_naive_pattern(const PatternInput& x, const std::vector<double>& dout) {
  PatternInput plain = x;
  plain.in.qkv = turned(x.in.qkv, x.in, 1);
  plain.in.rope.rotary_dims = 0;
  EngineRun run = run_pattern(plain, DType::bf16, dout, false);
  run.dqkv = tensor_of(turned(values_of(run.dqkv), x.in, -1), run.dqkv.shape(), DType::bf16);
  return run;
}

std::vector<double> draw_dout(Draw& d, const ReferenceInput& in) {
  return draw_values(d, in.B * in.T * in.spec.n_heads * in.spec.head_dim);
}

void check_parity(std::uint64_t seed, std::uint64_t c, DType dtype) {
  Draw d(seed, c);
  const PatternInput x = draw_pattern_input(d, kKinds[c % std::size(kKinds)], c % 5 == 0);
  CAPTURE(c, x.describe(), name_of(dtype));
  const auto dout = draw_dout(d, x.in);
  const double bound = dtype == DType::f64 ? 1e-11 : dtype == DType::f32 ? 1e-5 : 0.03;
  const EngineRun cpu = run_pattern(x, dtype, dout, false), gpu = run_pattern(x, dtype, dout, true);
  CHECK(relative_difference(gpu.out, cpu.out) <= bound);
  CHECK(relative_difference(gpu.dqkv, cpu.dqkv) <= bound);
}

}  // namespace

TEST_CASE("patterns on the GPU equal the CPU's: fp32 and fp64", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (std::uint64_t c = 0; c < 240; ++c) check_parity(310, c, c % 6 == 1 ? DType::f64 : DType::f32);
}

TEST_CASE("patterns on the GPU: a few short rows", "[gpu][small]") {
  SIEVE_NEEDS_GPU();
  for (std::uint64_t c = 0; c < 16; ++c) check_parity(311, c, c % 2 == 0 ? DType::bf16 : DType::f32);
}

// Errors are pooled over all cases: the largest of a single one is a matter of luck.
TEST_CASE("patterns on the GPU: bf16 is at most twice as far from fp64 as naive bf16 attention", "[gpu]") {
  SIEVE_NEEDS_GPU();
  Worst gpu, yardstick;
  for (std::uint64_t c = 0; c < 160; ++c) {
    Draw d(312, c);
    const PatternInput x = draw_pattern_input(d, kKinds[c % std::size(kKinds)], c % 4 != 0);
    const auto dout = draw_dout(d, x.in);
    const EngineRun exact = run_pattern(x, DType::f64, dout, false);
    const std::string what = cat("case ", c, ": ", x.describe());
    const EngineRun got = run_pattern(x, DType::bf16, dout, true);
    CAPTURE(what);
    CHECK(relative_difference(got.out, exact.out) <= 0.03);  // where a kernel is wrong, this tells the case
    CHECK(relative_difference(got.dqkv, exact.dqkv) <= 0.06);
    gpu.add(got, exact, what);
    yardstick.add(run_pattern(x, DType::bf16, dout, false), exact, what);
    yardstick.add(run_naive_pattern(x, dout), exact, what);
  }
  for (int x = 0; x < 2; ++x) {
    CAPTURE(x, gpu.where[x], yardstick.error[x], yardstick.where[x]);
    CHECK(gpu.error[x] <= 2 * yardstick.error[x]);
  }
}

TEST_CASE("patterns on the GPU: many tiles, documents, query heads that share keys", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (std::uint64_t c = 0; c < 2 * std::size(kKinds); ++c) {
    Draw d(313, c);
    PatternInput x = draw_pattern_input(d, kKinds[c % std::size(kKinds)], true);
    ReferenceInput& in = x.in;
    in.B = 1, in.T = 1500, in.spec.n_heads = 4, in.spec.n_kv_heads = 2, in.spec.head_dim = 64, in.rope.rotary_dims = 32;
    in.spec.pattern.stride = 128, in.spec.pattern.summary = 8, in.spec.pattern.block = 64;
    in.spec.pattern.buckets = 8, in.spec.window = 200, in.spec.pattern.part = PatternPart::merged;
    in.document_starts.clear();
    for (std::int64_t t = 0; c >= std::size(kKinds) && t < in.T; ++t)
      in.document_starts.push_back(t < 555 ? 0 : (t < 600 ? 555 : 600));
    fill_values(in, d, "normal");
    if (in.spec.kind >= AttentionKind::hash) fill_choice(x, d);
    CAPTURE(c, x.describe());
    const auto dout = draw_dout(d, in);
    const EngineRun cpu = run_pattern(x, DType::bf16, dout, false), gpu = run_pattern(x, DType::bf16, dout, true);
    CHECK(relative_difference(gpu.out, cpu.out) <= 0.03);
    CHECK(relative_difference(gpu.dqkv, cpu.dqkv) <= 0.06);
  }
}

TEST_CASE("patterns on the GPU: a query that sees nothing gives 0 and gets no gradient", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (const DType dtype : {DType::bf16, DType::f32}) {
    for (const AttentionKind kind : {AttentionKind::hash, AttentionKind::top_k}) {
      PatternInput x;
      x.in.spec = make_spec(kind, 2, 2, 64);
      x.in.T = 140, x.in.rope.rotary_dims = 16, x.in.spec.pattern.buckets = 140;
      x.choice = empty({1, 2, 140, 1}, DType::i32);
      for (std::int64_t row = 0; row < 2 * 140; ++row)  // nobody shares a bucket; nobody chose
        x.choice.data<std::int32_t>()[row] = kind == AttentionKind::hash ? static_cast<std::int32_t>(row) : kNoChoice;
      Draw d(314, 0);
      fill_values(x.in, d, "normal");
      const EngineRun run = run_pattern(x, dtype, draw_dout(d, x.in), true);
      CAPTURE(name_of(dtype), x.describe());
      CHECK(max_abs(run.out) == 0);
      CHECK(max_abs(run.dqkv) == 0);
    }
  }
}

TEST_CASE("patterns on the GPU: every run gives the same bits", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (std::uint64_t c = 0; c < std::size(kKinds); ++c) {
    Draw d(315, c);
    const PatternInput x = draw_pattern_input(d, kKinds[c], true);
    const auto dout = draw_dout(d, x.in);
    const EngineRun first = run_pattern(x, DType::bf16, dout, true);
    int different = 0;
    for (int run = 0; run < 5; ++run) {
      const EngineRun again = run_pattern(x, DType::bf16, dout, true);
      different += !same_bits(again.out, first.out) || !same_bits(again.dqkv, first.dqkv);
    }
    CAPTURE(x.describe());
    CHECK(different == 0);
  }
}

// Nine heads of 16,384 positions have more tiles than are listed at a time; one head alone does not.
TEST_CASE("patterns on the GPU: a head's result does not depend on how many others there are", "[gpu]") {
  SIEVE_NEEDS_GPU();
  constexpr std::int64_t T = 16384, H = 9, D = 64;
  Draw d(316, 0);
  const Tensor all = on_gpu(d.normal({1, T, 3 * H * D}).to(DType::bf16)),
               grad = on_gpu(d.normal({1, T, H * D}).to(DType::bf16));
  for (const AttentionKind kind : {AttentionKind::hash, AttentionKind::moba}) {
    AttentionInputs how{make_spec(kind, H, H, D), {32, 10000}, {}};
    how.spec.pattern.block = 512, how.spec.pattern.buckets = 16;
    const bool hash = kind == AttentionKind::hash;
    const Tensor choice = d.ids({1, H, T, 1}, 0, hash ? 15 : 31);  // a block that is not there yet shows nothing
    const auto run = [&](const Tensor& x, const Tensor& chosen, const Tensor& g, std::int64_t heads) {
      how.spec.n_heads = how.spec.n_kv_heads = heads;
      const Variable qkv = Variable::leaf(x), out = pattern_attention(qkv, on_gpu(chosen), how);
      backward(out, g);
      return EngineRun{out.value(), qkv.grad(), {}};
    };
    const EngineRun together = run(all, choice, grad, H);
    const auto head_of = [&](const Tensor& t, std::int64_t h) { return t.slice(2, h * D, (h + 1) * D).contiguous(); };
    for (const std::int64_t h : {std::int64_t{0}, std::int64_t{7}, H - 1}) {
      Tensor one = empty({1, T, 3 * D}, DType::bf16, gpu_stream());
      for (std::int64_t part = 0; part < 3; ++part)
        one.slice(2, part * D, (part + 1) * D).copy_from(head_of(all, part * H + h));
      const EngineRun alone = run(one, choice.slice(1, h, h + 1).contiguous(), head_of(grad, h), 1);
      CAPTURE(h, hash);
      CHECK(same_bits(on_host(alone.out), on_host(head_of(together.out, h))));
      for (std::int64_t part = 0; part < 3; ++part)
        CHECK(same_bits(on_host(head_of(alone.dqkv, part)), on_host(head_of(together.dqkv, part * H + h))));
    }
  }
}
