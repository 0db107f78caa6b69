// The softmax engine against the O(T^2) oracle, and its promises: threads, NaN, equality with full attention, messages.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "attention/kernels/cpu/vec.h"
#include "attention/plan.h"
#include "attention_cases.h"
#include "core/parallel_for.h"
#include "support/catch.h"
#include "support/compare.h"

using namespace sieve;
using namespace sieve::test;

namespace {

double least(const std::vector<double>& v) {
  double m = std::numeric_limits<double>::infinity();
  for (double x : v) m = std::min(m, x);
  return m;
}

double largest(const std::vector<double>& v) {
  double m = 0;
  for (double x : v) m = std::max(m, std::abs(x));
  return m;
}

// max |got - wanted| / max(1, max |wanted|)
double error_of(const Tensor& got, const std::vector<double>& wanted) {
  const auto g = values_of(got);
  REQUIRE(g.size() == wanted.size());
  double worst = 0;
  for (std::size_t i = 0; i < g.size(); ++i) {
    const double e = std::abs(g[i] - wanted[i]);
    worst = e <= worst ? worst : (e == e ? e : std::numeric_limits<double>::infinity());
  }
  return worst / std::max(1.0, largest(wanted));
}

}  // namespace

TEST_CASE("the engine equals the oracle: every pattern, gate and position rule, fp64 and fp32") {
  int sparse = 0, with_score_gradient = 0;
  for (std::uint64_t c = 0; c < 260; ++c) {
    Draw d(11, c);
    const std::string kind = kScoreKinds[c % kScoreKinds.size()];
    const ReferenceInput in = draw_input(d, c % 10 == 0 ? 200 : 90, kind);
    CAPTURE(c, kind, describe(in));
    const auto dout = draw_values(d, in.B * in.T * in.spec.n_heads * in.spec.head_dim);
    const auto out = reference_forward(in);
    const auto grads = reference_backward(in, dout);
    // At a kink of the operator (a score at an end of the band) the two may take different sides of the derivative.
    const bool smooth = in.spec.kind != AttentionKind::sparsek || least(reference_masks(in).band_margin) > 1e-5;
    for (const DType dtype : {DType::f64, DType::f32}) {
      const double bound = dtype == DType::f64 ? 1e-12 : 1e-5;
      CAPTURE(name_of(dtype));
      const EngineRun run = run_engine(in, dtype, dout);
      CHECK(error_of(run.out, out) <= bound);
      CHECK(error_of(run.dqkv, grads.qkv) <= bound);
      if (in.spec.kind == AttentionKind::sparsek && smooth) {
        CHECK(error_of(run.dscores, grads.scores) <= bound);
        with_score_gradient += largest(grads.scores) > 1e-3;
      }
    }
    sparse += in.spec.kind == AttentionKind::sparsek;
  }
  CHECK(sparse > 120);
  CHECK(with_score_gradient > 60);
}

namespace {

ReferenceInput sized(AttentionKind kind, std::int64_t B, std::int64_t T, std::int64_t H, std::int64_t Hkv,
                     std::int64_t D, std::uint64_t seed) {
  ReferenceInput in;
  in.spec = make_spec(kind, H, Hkv, D);
  in.spec.window = 40;
  in.spec.sparsek.k = 50;
  in.B = B;
  in.T = T;
  in.score_heads = Hkv;
  in.rope.rotary_dims = D;
  Draw d(17, seed);
  fill_values(in, d, "normal");
  return in;
}

std::vector<double> draw_dout(const ReferenceInput& in, std::uint64_t seed) {
  Draw d(19, seed);
  return draw_values(d, in.B * in.T * in.spec.n_heads * in.spec.head_dim);
}

}  // namespace

TEST_CASE("where k + W covers the row, SparseK is full attention and no score has a gradient") {
  for (std::uint64_t c = 0; c < 40; ++c) {
    Draw d(51, c);
    ReferenceInput in = draw_input(d, 150, kScoreKinds[c % kScoreKinds.size()]);
    in.spec.kind = AttentionKind::sparsek;
    in.spec.sparsek.candidates = Candidates::on_exit;  // at once, slots would go to keys that the window shows anyway
    in.spec.sparsek.positions = PositionRule::absolute;
    in.spec.window = d.integer(1, in.T);
    in.spec.sparsek.k = std::max<std::int64_t>(1, in.T - in.spec.window);
    fill_values(in, d, kScoreKinds[c % kScoreKinds.size()]);
    CAPTURE(c, describe(in));
    const auto dout = draw_dout(in, c);
    ReferenceInput full = in;
    full.spec.kind = AttentionKind::full;
    const EngineRun a = run_engine(in, DType::f64, dout), b = run_engine(full, DType::f64, dout);
    CHECK(relative_difference(a.out, b.out) <= 1e-12);
    CHECK(relative_difference(a.dqkv, b.dqkv) <= 1e-12);
    CHECK(max_abs(a.dscores) == 0);
  }
}

TEST_CASE("fp32 keeps fp64's numbers at real sizes, in every gate and position rule") {
  for (int gate = 0; gate < 4; ++gate) {
    for (int rule = 0; rule < 3; ++rule) {
      ReferenceInput in =
          sized(AttentionKind::sparsek, 1, 700, 4, 2, gate == 3 ? 128 : 64, static_cast<std::uint64_t>(gate));
      in.spec.sparsek.gate = static_cast<GateMode>(gate);
      in.spec.sparsek.positions = static_cast<PositionRule>(rule);
      in.spec.sparsek.clamp_distance = 170;
      in.spec.sparsek.slope = 0.01;
      // Scores far from 0, on a grid that fp32 holds: z - tau must not lose the bits that they share.
      for (double& x : in.scores) x = 5000 + std::round(512 * x) / 512;
      CAPTURE(describe(in));
      const auto dout = draw_dout(in, 3);
      const EngineRun wide = run_engine(in, DType::f64, dout), narrow = run_engine(in, DType::f32, dout);
      CHECK(relative_difference(narrow.out, wide.out) <= 1e-5);
      CHECK(relative_difference(narrow.dqkv, wide.dqkv) <= 1e-5);
      CHECK(relative_difference(narrow.dscores, wide.dscores) <= 1e-5);
      CHECK(max_abs(wide.dscores) > 0.1);
    }
  }
}

TEST_CASE("the number of threads changes no bit") {
  const int before = num_threads();
  std::vector<ReferenceInput> inputs = {
      sized(AttentionKind::full, 1, 517, 2, 1, 32, 1), sized(AttentionKind::sliding_window, 2, 300, 3, 3, 24, 2),
      sized(AttentionKind::sparsek, 1, 517, 1, 1, 64, 3), sized(AttentionKind::sparsek, 2, 400, 4, 2, 16, 4),
      sized(AttentionKind::sparsek, 5, 130, 16, 8, 8, 5)};  // the last has enough heads for one task a head
  inputs[3].score_heads = 1;
  inputs[3].scores.resize(800);
  inputs[2].spec.sparsek.positions = PositionRule::clamp;
  inputs[2].spec.sparsek.clamp_distance = 100;
  for (const ReferenceInput& in : inputs) {
    CAPTURE(describe(in));
    const auto dout = draw_dout(in, 4);
    for (const DType dtype : {DType::f32, DType::bf16}) {
      set_num_threads(1);
      const EngineRun one = run_engine(in, dtype, dout);
      for (int n : {2, 4}) {
        set_num_threads(n);
        const EngineRun many = run_engine(in, dtype, dout);
        CHECK(same_bits(one.out, many.out));
        CHECK(same_bits(one.dqkv, many.dqkv));
        if (one.dscores.defined()) CHECK(same_bits(one.dscores, many.dscores));
      }
    }
  }
  set_num_threads(before);
}

TEST_CASE("NaN and infinity reach the queries that see them and nobody else, forward and backward") {
  for (const double poison : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    for (const AttentionKind kind : {AttentionKind::full, AttentionKind::sliding_window, AttentionKind::sparsek}) {
      ReferenceInput in = sized(kind, 1, 200, 2, 1, 16, 7);
      in.spec.window = 20;
      in.spec.sinks = kind == AttentionKind::sliding_window ? 3 : 0;
      in.spec.sparsek.k = 30;
      in.spec.sparsek.gate = GateMode::prob;
      in.document_starts.assign(200, 0);
      for (std::size_t t = 100; t < 200; ++t) in.document_starts[t] = 100;
      CAPTURE(describe(in), poison);
      const auto F = static_cast<std::size_t>(in.spec.qkv_features());
      auto dout = draw_dout(in, 5);
      const EngineRun clean = run_engine(in, DType::f32, dout);
      // Keys and values of 60 and 70, everything of 90: the tile 64..127 holds both documents.
      ReferenceInput bad = in;
      for (const std::size_t j : {std::size_t{60}, std::size_t{70}, std::size_t{90}}) {
        for (std::size_t f = j == 90 ? 0 : 32; f < F; ++f) bad.qkv[j * F + f] = poison;
      }
      for (std::size_t x = 0; x < 100 * 32; ++x)
        dout[x] = x % 3 == 0 ? poison : dout[x];  // gradients of the first document
      const EngineRun run = run_engine(bad, DType::f32, dout);
      const ReferenceMasks masks = reference_masks(in);
      long leaks = 0, hidden = 0, seen = 0;
      const auto got = values_of(run.out), wanted = values_of(clean.out);
      for (std::size_t i = 0; i < 200; ++i) {
        bool sees = i == 90;
        for (const std::size_t j : {60, 70, 90})
          sees = sees || masks.window[i * 200 + j] || masks.selected[i * 200 + j];
        seen += sees;
        for (std::size_t d = 0; d < 32; ++d) {
          const double x = got[i * 32 + d];
          if (sees) hidden += std::isfinite(x);
          else leaks += !(std::abs(x - wanted[i * 32 + d]) <= 1e-5);
        }
      }
      CHECK(seen > 20);
      CHECK(leaks == 0);
      CHECK(hidden == 0);
      const auto grad = values_of(run.dqkv), grad_wanted = values_of(clean.dqkv);
      long gradient_leaks = 0;
      for (std::size_t x = 100 * F; x < 200 * F; ++x) gradient_leaks += !(std::abs(grad[x] - grad_wanted[x]) <= 1e-4);
      CHECK(gradient_leaks == 0);
    }
  }
}

TEST_CASE("a masked key with a huge logit does not touch the maximum") {
  ReferenceInput in = sized(AttentionKind::full, 1, 70, 1, 1, 8, 8);
  in.rope.rotary_dims = 0;
  for (std::size_t d = 0; d < 8; ++d) in.qkv[69 * 24 + 8 + d] = 1e4;  // the last key: only the last query may see it
  const EngineRun run = run_engine(in, DType::f32, {});
  CHECK(error_of(run.out, reference_forward(in)) <= 1e-5);
}

namespace {

// Child et al. 2019, strided: the last l keys and every l-th before them.
bool strided(std::int64_t l, std::int64_t query, std::int64_t key) { return query - key < l || (query - key) % l == 0; }
std::uint64_t strided_bits(const void* context, std::int64_t, std::int64_t, std::int64_t query, std::int64_t first,
                           int count) {
  std::uint64_t bits = 0;
  for (int x = 0; x < count; ++x)
    bits |= static_cast<std::uint64_t>(strided(*static_cast<const std::int32_t*>(context), query, first + x)) << x;
  return bits;
}

}  // namespace

TEST_CASE("a new pattern is a plan and a predicate: strided attention, and a query that sees nothing") {
  const std::int32_t l = 7, T = 150, D = 8, blind = 77;
  TilePlan plan;
  plan.T = T;
  plan.tiles = 3;
  plan.span_begin.assign(1, std::vector<std::int32_t>(T, 0));
  plan.span_end.assign(1, {});
  for (std::int32_t i = 0; i < T; ++i) plan.span_end[0].push_back(i == blind ? i : i + 1);
  plan.tile_first.push_back(0);
  for (std::int64_t t = 0; t < 3; ++t) {
    append_span_blocks(plan.blocks, 0, plan.span_begin[0].data() + t * 64, plan.span_end[0].data() + t * 64,
                       std::min<std::int64_t>(64, T - t * 64));
    plan.tile_first.push_back(static_cast<std::int64_t>(plan.blocks.size()));
  }
  for (PlanBlock& b : plan.blocks) b.masked = 1;
  Draw d(3, 3);
  const Tensor qkv = d.normal({1, T, 3 * D});
  Tensor out = empty({1, T, D}, DType::f64);
  SoftmaxForwardArgs args;
  args.qkv_BTF = qkv.raw(), args.out_BTHD = out.raw();
  args.B = args.H = args.Hkv = 1, args.T = T, args.D = D, args.scale = 0.5, args.dtype = DType::f64;
  args.plan = plan.view();
  args.plan.pair_bits = strided_bits, args.plan.pair_context = &l;
  plan.span_end[0][blind] = 0;  // after the blocks were made: sees no key at all
  const Tensor workspace = empty({static_cast<std::int64_t>(cpu::workspace_bytes(args))}, DType::u8);
  args.workspace = workspace.raw();
  cpu::run(args);

  const double* x = qkv.data<double>();
  double worst = 0;
  for (std::int32_t i = 0; i < T; ++i) {
    std::vector<double> o(D);
    double sum = 0;
    for (std::int32_t j = 0; j <= i && i != blind; ++j) {
      if (!strided(l, i, j)) continue;
      double s = 0;
      for (int c = 0; c < D; ++c) s += 0.5 * x[i * 3 * D + c] * x[j * 3 * D + D + c];
      sum += std::exp(s);
      for (int c = 0; c < D; ++c) o[static_cast<std::size_t>(c)] += std::exp(s) * x[j * 3 * D + 2 * D + c];
    }
    for (int c = 0; c < D; ++c) {
      const double wanted = i == blind ? 0 : o[static_cast<std::size_t>(c)] / sum;
      worst = std::max(worst, std::abs(out.data<double>()[i * D + c] - wanted));
    }
  }
  CHECK(worst < 1e-13);
}

TEST_CASE("nothing to do is fine, one query is its own value") {
  for (const AttentionKind kind : {AttentionKind::full, AttentionKind::sliding_window, AttentionKind::sparsek}) {
    for (const auto& [B, T] : {std::pair{0, 5}, std::pair{2, 0}, std::pair{2, 1}}) {
      const ReferenceInput in = sized(kind, B, T, 2, 1, 4, 9);
      const EngineRun run = run_engine(in, DType::f32, {});
      CHECK(run.out.shape() == Shape{B, T, 8});
      if (T == 1)
        CHECK(max_difference(run.out.slice(2, 0, 4), tensor_of(in.qkv, {B, T, 16}, DType::f32).slice(2, 12, 16)) == 0);
    }
  }
}

TEST_CASE("statistics of the selection come on request") {
  const ReferenceInput in = sized(AttentionKind::sparsek, 1, 300, 2, 2, 8, 10);
  SelectionStats stats;
  run_engine(in, DType::f32, {}, &stats);
  CHECK(stats.band_over_k > 0.1);
  CHECK(stats.saturated_over_k > 0);
  CHECK(stats.ever_selected > 0.2);
  CHECK(stats.ever_selected <= 1);
  CHECK(stats.mean_lifetime > 1);
  CHECK(stats.score_std == Approx(1).margin(0.15));
}

TEST_CASE("messages say what is wrong with a spec or an input") {
  const auto message = [](auto&& change) {
    ReferenceInput in = sized(AttentionKind::sparsek, 1, 12, 4, 2, 8, 11);
    Tensor qkv = tensor_of(in.qkv, {1, 12, 64}, DType::f32), scores = tensor_of(in.scores, {1, 2, 12}, DType::f32);
    AttentionInputs how = inputs_of(in);
    change(how, qkv, scores);
    try {
      attention(Variable(qkv), Variable(scores), how);
    } catch (const Error& e) { return cat(static_cast<int>(e.code()), " ", e.what()); }
    return std::string("no error");
  };
  using In = AttentionInputs;
  const auto has = [](const std::string& text, const char* part) { return text.find(part) != std::string::npos; };
  CHECK(message([](In&, Tensor&, Tensor&) {}) == "no error");
  CHECK(has(message([](In& a, Tensor&, Tensor&) { a.spec.n_kv_heads = 3; }),
            "2 [attention] n_heads 4 is not a multiple of n_kv_heads 3"));
  CHECK(has(message([](In& a, Tensor&, Tensor&) { a.spec.head_dim = 0; }), "head_dim 0 must be at least 1"));
  CHECK(has(message([](In& a, Tensor&, Tensor&) { a.spec.window = 0; }), "window 0 must be at least 1"));
  CHECK(has(message([](In& a, Tensor&, Tensor&) { a.spec.sinks = -1; }), "sinks -1"));
  CHECK(has(message([](In& a, Tensor&, Tensor&) { a.spec.sparsek.k = 0; }), "sparsek k 0 must be at least 1"));
  CHECK(has(message([](In& a, Tensor&, Tensor&) { a.spec.sparsek.pool = -2; }), "pool -2"));
  CHECK(
      has(message([](In& a, Tensor&, Tensor&) { a.spec.sparsek.temperature = 0; }), "temperature 0 must be positive"));
  CHECK(has(message([](In& a, Tensor&, Tensor&) { a.spec.sparsek.slope = std::nan(""); }), "slope"));
  CHECK(has(message([](In& a, Tensor&, Tensor&) { a.spec.sparsek.positions = PositionRule::clamp; }),
            "clamp_distance 0"));
  CHECK(has(message([](In& a, Tensor&, Tensor&) { a.rope.rotary_dims = 3; }), "rotary_dims 3 must be even"));
  CHECK(has(message([](In& a, Tensor&, Tensor&) { a.rope.rotary_dims = 10; }), "at most head_dim 8"));
  CHECK(has(message([](In& a, Tensor&, Tensor&) { a.rope.theta = -1; }), "theta -1"));
  CHECK(has(message([](In&, Tensor& q, Tensor&) { q = q.slice(2, 0, 60); }),
            "1 [attention] wants qkv (B, T, 64), got (1, 12, 60)"));
  CHECK(has(message([](In&, Tensor&, Tensor& s) { s = Tensor(); }), "sparsek wants scores"));
  CHECK(has(message([](In& a, Tensor&, Tensor&) { a.spec.kind = AttentionKind::full; }), "only sparsek takes scores"));
  CHECK(has(message([](In&, Tensor&, Tensor& s) { s = s.to(DType::bf16); }), "wants scores f32 or f64"));
  CHECK(has(message([](In&, Tensor&, Tensor& s) { s = s.slice(2, 0, 11); }), "got f32 (1, 2, 11)"));
  const auto starts = [&](std::vector<std::int32_t> v) {
    return message([&](In& a, Tensor&, Tensor&) {
      a.document_starts = from_values<std::int32_t>(v, {1, static_cast<std::int64_t>(v.size())});
    });
  };
  CHECK(starts({0, 0, 0, 3, 3, 3, 3, 3, 3, 3, 3, 11}) == "no error");
  CHECK(has(starts({0, 0, 0, 3, 3, 3, 3, 3, 3, 3, 2, 2}), "document_starts[0, 10] = 2"));
  CHECK(has(starts({1, 1, 1, 3, 3, 3, 3, 3, 3, 3, 3, 3}), "document_starts[0, 0] = 1"));
  CHECK(has(starts({0, 0}), "wants document_starts i32 (1, 12)"));
}

namespace {

template <class T>
double worst_ulp(double low, double high) {
  constexpr int L = cpu::kLanes<T>;
  double worst = 0;
  for (int n = 0; n < 400000; n += L) {
    T x[L], y[L];
    for (int l = 0; l < L; ++l) x[l] = static_cast<T>(low + (high - low) * (n + l) / 400000);
    cpu::store(y, cpu::exp2_vec<T>(cpu::load(x)));
    for (int l = 0; l < L; ++l) {
      const long double wanted = std::exp2(static_cast<long double>(x[l]));
      const long double ulp = std::ldexp(1.0L, std::ilogb(wanted) - (sizeof(T) == 4 ? 23 : 52));
      worst = std::max(worst, static_cast<double>(std::abs(y[l] - wanted) / ulp));
    }
  }
  return worst;
}

}  // namespace

TEST_CASE("the vector exponential is within 2 ulp and keeps what is not finite") {
  CHECK(worst_ulp<float>(-125, 127) <= 2);
  CHECK(worst_ulp<float>(-1, 1) <= 2);
  CHECK(worst_ulp<double>(-1020, 1023) <= 2);
  CHECK(worst_ulp<double>(-1, 1) <= 2);
  float x[16] = {0, std::nanf(""), -1e30f, 1e30f, -INFINITY, INFINITY, -1000, -0.0f}, y[16];
  for (int l = 0; l < 16; l += cpu::kLanes<float>) cpu::store(y + l, cpu::exp2_vec<float>(cpu::load(x + l)));
  CHECK(y[0] == 1);
  CHECK(std::isnan(y[1]));
  CHECK(y[2] == 0);
  CHECK(std::isinf(y[3]));
  CHECK(y[4] == 0);
  CHECK(std::isinf(y[5]));
  CHECK(y[6] == 0);
  CHECK(y[7] == 1);
}
