// Patterns that look at positions alone, against dense attention over the pairs of their definitions.
#include "attention/pattern.h"

#include <set>

#include "attention/attention_cost.h"
#include "attention/kernels/softmax.h"
#include "attention/pattern_cache.h"
#include "attention_cases.h"
#include "attention_ops.h"
#include "dense_oracle.h"
#include "support/catch.h"
#include "support/compare.h"

using namespace sieve;
using namespace sieve::test;

namespace {

// The keys that query i sees, docs/attention.md word for word; positions in the document. Which random blocks BigBird
// draws is asked of the code and judged by a test of its own.
std::vector<bool> defined_keys(const AttentionSpec& spec, std::int64_t h, std::int64_t i) {
  const PatternSpec& p = spec.pattern;
  std::vector<bool> first(static_cast<std::size_t>(i + 1)), second(first);
  const auto add = [i](std::vector<bool>& set, std::int64_t j) {
    if (j >= 0 && j <= i) set[static_cast<std::size_t>(j)] = true;
  };
  switch (spec.kind) {
    case AttentionKind::strided:
      for (std::int64_t x = i; x > i - p.stride; --x) add(first, x);
      for (std::int64_t x = i; x >= 0; x -= p.stride) add(second, x);
      break;
    case AttentionKind::fixed:
      for (std::int64_t x = i - i % p.stride; x <= i; ++x) add(first, x);
      for (std::int64_t block = 0; block <= i; block += p.stride)
        for (std::int64_t c = 1; c <= p.summary; ++c) add(second, block + p.stride - c);
      break;
    case AttentionKind::longformer:
      for (std::int64_t r = 0; r < spec.window; ++r) add(first, i - r * p.dilation);
      for (std::int64_t j = 0; j <= i; ++j)
        if (j < p.globals || i < p.globals) add(first, j);
      return first;
    default: {
      const std::int64_t own = i / p.block;
      for (std::int64_t j = 0; j <= i; ++j) {
        const std::int64_t block = j / p.block;
        if (block < p.global_blocks || block > own - p.window_blocks || is_random_block(p, h, own, block))
          add(first, j);
      }
      return first;
    }
  }
  if (p.part == PatternPart::local) return first;
  if (p.part == PatternPart::columns) return second;
  for (std::size_t j = 0; j < first.size(); ++j) first[j] = first[j] || second[j];
  return first;
}

std::int32_t start_of(const ReferenceInput& in, std::int64_t b, std::int64_t i) {
  return in.document_starts.empty() ? 0 : in.document_starts[static_cast<std::size_t>(b * in.T + i)];
}

Visible visible_in(const ReferenceInput& in) {
  std::vector<std::vector<bool>> keys;  // (H, T) of one document
  for (std::int64_t x = 0; x < in.spec.n_heads * in.T; ++x) keys.push_back(defined_keys(in.spec, x / in.T, x % in.T));
  return [&in, keys](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
    const std::int64_t start = start_of(in, b, i);
    return j >= start && keys[static_cast<std::size_t>(h * in.T + i - start)][static_cast<std::size_t>(j - start)];
  };
}

ReferenceInput draw_case(Draw& d, std::int64_t longest) {
  ReferenceInput in;
  in.spec = draw_static_pattern(d);
  PatternSpec& p = in.spec.pattern;
  if (d.chance(0.5)) {  // beyond a tile
    p.stride = d.integer(1, 90), p.summary = d.integer(1, p.stride);
    p.dilation = d.integer(1, 5), p.globals = d.integer(0, 70), in.spec.window = d.integer(1, 40);
    p.block = d.integer(1, 70), p.random_blocks = d.integer(0, 3);
  }
  in.spec.n_kv_heads = d.integer(1, 2), in.spec.n_heads = in.spec.n_kv_heads * d.integer(1, 3);
  in.spec.head_dim = 2 * d.integer(1, 10);
  in.rope.rotary_dims = d.chance(0.6) ? 2 * d.integer(1, in.spec.head_dim / 2) : 0;
  in.B = d.integer(1, 2), in.T = d.integer(1, longest);
  if (d.chance(0.4)) fill_documents(in, d);
  fill_values(in, d, "normal");
  return in;
}

std::string describe_pattern(const ReferenceInput& in) {
  const PatternSpec& p = in.spec.pattern;
  return cat(describe(in), " stride ", p.stride, " summary ", p.summary, " ",
             kPatternPartNames[static_cast<std::size_t>(p.part)], " dilation ", p.dilation, " globals ", p.globals,
             " block ", p.block, " ", p.global_blocks, " ", p.window_blocks, " ", p.random_blocks);
}

double norm(const std::vector<double>& x) {
  double sum = 0;
  for (const double v : x) sum += v * v;
  return std::sqrt(sum);
}

// Relative Frobenius errors of `got` and of `naive`, at least as if values were of size 1.
void check_twice_naive(const Tensor& got, const std::vector<double>& naive, const std::vector<double>& exact) {
  std::vector<double> ours = values_of(got), theirs = naive;
  for (std::size_t x = 0; x < exact.size(); ++x) ours[x] -= exact[x], theirs[x] -= exact[x];
  const double size = std::max(norm(exact), std::sqrt(static_cast<double>(exact.size())));
  CHECK(norm(ours) / size <= 2 * norm(theirs) / size + 2e-5);
}

}  // namespace

TEST_CASE("static patterns give what dense attention over their definitions gives: documents and grouped heads") {
  for (std::uint64_t c = 0; c < 112; ++c) {
    Draw d(61, c);
    const ReferenceInput in = draw_case(d, c % 8 == 0 ? 200 : 90);
    CAPTURE(c, describe_pattern(in));
    const std::vector<double> dout = draw_values(d, in.B * in.T * in.spec.n_heads * in.spec.head_dim);
    const Shape out_shape{in.B, in.T, in.spec.n_heads * in.spec.head_dim},
        qkv_shape{in.B, in.T, in.spec.qkv_features()};
    const Visible sees = visible_in(in);
    const DenseResult exact = DenseOracle(in, sees).run(dout);
    const Tensor out = from_values<double>(exact.out, out_shape), dqkv = from_values<double>(exact.dqkv, qkv_shape);
    for (const DType dtype : {DType::f64, DType::f32}) {
      const EngineRun run = run_engine(in, dtype, dout);
      CHECK(relative_difference(run.out, out) <= (dtype == DType::f64 ? 1e-12 : 1e-5));
      CHECK(relative_difference(run.dqkv, dqkv) <= (dtype == DType::f64 ? 1e-12 : 1e-5));
    }
    const DenseResult naive = DenseOracle(in, sees, true).run(dout);
    const EngineRun run = run_engine(in, DType::bf16, dout);
    check_twice_naive(run.out, naive.out, exact.out);
    check_twice_naive(run.dqkv, naive.dqkv, exact.dqkv);
  }
}

TEST_CASE("a window with sinks and the pattern that stands for it on a GPU are the same layer") {
  for (std::uint64_t c = 0; c < 40; ++c) {
    Draw d(67, c);
    ReferenceInput in = draw_input(d, 150, "normal");
    in.spec.kind = AttentionKind::sliding_window, in.spec.sinks = d.integer(1, d.chance(0.5) ? 5 : 80);
    in.scores.clear();
    CAPTURE(c, describe(in));
    const auto dout = draw_values(d, in.B * in.T * in.spec.n_heads * in.spec.head_dim);
    const EngineRun window = run_engine(in, DType::f64, dout);
    in.spec = sinks_as_pattern(in.spec);
    const EngineRun pattern = run_engine(in, DType::f64, dout);
    CHECK(relative_difference(pattern.out, window.out) <= 1e-12);
    CHECK(relative_difference(pattern.dqkv, window.dqkv) <= 1e-12);
  }
}

TEST_CASE("a pattern's plan visits every block that some query sees and no other") {
  for (std::uint64_t c = 0; c < 60; ++c) {
    Draw d(62, c);
    const ReferenceInput in = draw_case(d, 300);
    CAPTURE(c, describe_pattern(in));
    const Tensor starts = inputs_of(in).document_starts;
    const std::int64_t heads = differs_by_head(in.spec) ? in.spec.n_heads : 1;
    const TilePlan plan = make_pattern_plan(pattern_of(in.spec, {}, starts, in.T), in.B, heads, in.T);
    const Visible sees = visible_in(in);
    REQUIRE(plan.tile_first.size() == static_cast<std::size_t>(plan.batch_plans * heads * plan.tiles + 1));
    for (std::int64_t x = 0; x < plan.batch_plans * heads * plan.tiles; ++x) {
      const std::int64_t b = x / plan.tiles / heads, h = x / plan.tiles % heads, first = x % plan.tiles * kQueryTile;
      std::set<std::int64_t> wanted, visited;
      for (std::int64_t i = first; i < std::min(in.T, first + kQueryTile); ++i)
        for (std::int64_t j = 0; j <= i; ++j)
          if (sees(b, h, i, j)) wanted.insert(j / kKeyBlock);
      for (auto at = static_cast<std::size_t>(plan.tile_first[static_cast<std::size_t>(x)]);
           at < static_cast<std::size_t>(plan.tile_first[static_cast<std::size_t>(x) + 1]); ++at)
        CHECK(visited.insert(plan.blocks[at].first / kKeyBlock).second);
      CHECK(visited == wanted);
    }
  }
}

TEST_CASE("random blocks are past and distinct and as many as asked and a function of the seed and about uniform") {
  PatternSpec p;
  p.block = 4, p.global_blocks = 2, p.window_blocks = 3;
  std::vector<int> hits(64, 0);
  int differing = 0;
  for (p.random_blocks = 0; p.random_blocks <= 5; ++p.random_blocks) {
    for (std::int64_t own = 0; own < 70; ++own) {
      for (std::int64_t head = 0; head < 3; ++head) {
        std::int64_t drawn = 0, others = 0;
        PatternSpec other = p;
        other.seed = 1;
        const std::int64_t free = std::max<std::int64_t>(0, own - p.window_blocks + 1 - p.global_blocks);
        for (std::int64_t block = p.global_blocks; block < p.global_blocks + free; ++block) {
          const bool here = is_random_block(p, head, own, block);
          drawn += here, others += here != is_random_block(other, head, own, block);
          CHECK(here == is_random_block(p, head, own, block));
        }
        CHECK(drawn == std::min(free, p.random_blocks));
        differing += others > 0;
      }
    }
  }
  CHECK(differing > 400);
  p.random_blocks = 3;
  constexpr int kSeeds = 6000;
  for (p.seed = 0; p.seed < kSeeds; ++p.seed)  // 64 free blocks: blocks 2 .. 65 of block 68's queries
    for (std::int64_t block = 0; block < 64; ++block)
      hits[static_cast<std::size_t>(block)] += is_random_block(p, 0, 68, block + p.global_blocks);
  for (const int n : hits) CHECK(std::abs(n - kSeeds * 3 / 64.0) < 5 * std::sqrt(kSeeds * 3 / 64.0));  // 5 sigma
}

TEST_CASE("a pattern's cache gives what the forward gives: token by token and after a prompt") {
  for (std::uint64_t c = 0; c < 120; ++c) {
    Draw d(63, c);
    ReferenceInput in = draw_case(d, 150);
    in.document_starts.clear();
    CAPTURE(c, describe_pattern(in));
    const DType dtype = c % 3 == 0 ? DType::f32 : DType::f64;
    const Tensor qkv = tensor_of(in.qkv, {in.B, in.T, in.spec.qkv_features()}, dtype),
                 wanted = run_engine(in, dtype, {}).out;
    PatternCache cache(in.spec, in.rope, in.B, dtype, d.chance(0.5) ? in.T : 0);
    Tensor out = empty_like(wanted);
    const auto feed = [&](std::int64_t begin, std::int64_t end) {
      out.slice(1, begin, end).copy_from(cache.step(qkv.slice(1, begin, end)));
    };
    const std::int64_t prompt = d.integer(0, in.T), block = d.integer(1, 4);
    if (prompt > 0) feed(0, prompt);
    for (std::int64_t t = prompt; t < in.T; t += block) feed(t, std::min(in.T, t + block));
    CHECK(relative_difference(out, wanted) <= (dtype == DType::f64 ? 1e-12 : 1e-5));
    CHECK(cache.length() == in.T);
    CHECK(cache.rows() >= cached_rows(in.spec, in.T));
    CHECK(cache.rows() <= std::max<std::int64_t>(64, 2 * cached_rows(in.spec, in.T)));
  }
}

TEST_CASE("a pattern's cache overwrites what no later query sees and refuses more tokens than it was made for") {
  AttentionSpec spec = make_spec(AttentionKind::longformer, 2, 1, 4);
  spec.window = 8, spec.pattern.dilation = 3, spec.pattern.globals = 5;
  Draw d(64, 0);
  const auto rows_after = [&](std::int64_t tokens) {
    PatternCache cache(spec, {}, 1, DType::f32, 0);
    for (std::int64_t t = 0; t < tokens; ++t) cache.step(d.normal({1, 1, spec.qkv_features()}).to(DType::f32));
    return cache.rows();
  };
  CHECK(rows_after(500) == 5 + 7 * 3 + 1);
  spec.kind = AttentionKind::fixed, spec.pattern.stride = 50, spec.pattern.summary = 2;
  CHECK(cached_rows(spec, 500) == 48 + 20);
  CHECK(rows_after(500) == 128);
  spec.pattern.part = PatternPart::local;
  CHECK(rows_after(500) == 50);
  PatternCache cache(spec, {}, 1, DType::f32, 3);
  cache.step(d.normal({1, 3, spec.qkv_features()}).to(DType::f32));
  CHECK_THROWS_AS(cache.step(d.normal({1, 1, spec.qkv_features()}).to(DType::f32)), Error);
}
