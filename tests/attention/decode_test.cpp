// The generation cache against the full forward: same outputs, same selected sets, constant memory.
#include "attention/decode.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "attention/kernels/select.h"
#include "attention/sparsek.h"
#include "attention_cases.h"
#include "core/parallel_for.h"
#include "support/catch.h"
#include "support/compare.h"

using namespace sieve;
using namespace sieve::test;

namespace {

struct Problem {
  Tensor qkv, scores;
};

Problem tensors(const ReferenceInput& in, DType dtype) {
  Problem p{tensor_of(in.qkv, {in.B, in.T, in.spec.qkv_features()}, dtype), {}};
  if (in.spec.kind == AttentionKind::sparsek) {
    p.scores = tensor_of(in.scores, {in.B, in.score_heads, in.T}, dtype == DType::f64 ? DType::f64 : DType::f32);
  }
  return p;
}

Tensor part(const Tensor& t, int axis, std::int64_t begin, std::int64_t end) {
  return t.defined() ? t.slice(axis, begin, end) : t;
}

// Feeds positions [begin, end) in one call and keeps what comes out.
void feed(AttentionCache& cache, const Problem& p, std::int64_t begin, std::int64_t end, Tensor& out) {
  const Tensor y = cache.step(part(p.qkv, 1, begin, end), part(p.scores, 2, begin, end));
  out.slice(1, begin, end).copy_from(y);
}

struct Lives {
  Tensor from, to;
};
Lives lives_of(const ReferenceInput& in, const Tensor& scores) {
  Lives l{empty(scores.shape(), DType::i32), empty(scores.shape(), DType::i32)};
  SelectArgs args{};
  args.scores_BHT = scores.raw();
  args.dtype = scores.dtype();
  args.B = in.B, args.H = in.score_heads, args.T = in.T;
  args.k = in.spec.sparsek.k, args.pool = in.spec.sparsek.pool, args.delay = candidate_delay(in.spec);
  args.slope = in.spec.sparsek.slope, args.temperature = in.spec.sparsek.temperature;
  args.from_BHT = l.from.data<std::int32_t>(), args.to_BHT = l.to.data<std::int32_t>();
  cpu::select(args);
  return l;
}

std::vector<std::int64_t> members(const Lives& l, std::int64_t b, std::int64_t hs, std::int64_t i) {
  std::vector<std::int64_t> out;
  const std::int64_t T = l.from.size(2), base = (b * l.from.size(1) + hs) * T;
  for (std::int64_t j = 0; j <= i; ++j) {
    if (l.from.data<std::int32_t>()[base + j] <= i && i < l.to.data<std::int32_t>()[base + j]) out.push_back(j);
  }
  return out;
}

ReferenceInput long_input(std::int64_t T, GateMode gate, PositionRule positions) {
  ReferenceInput in;
  in.spec = make_spec(AttentionKind::sparsek, 2, 1, 32);
  in.spec.window = 32;
  in.spec.sparsek.k = 48;
  in.spec.sparsek.gate = gate;
  in.spec.sparsek.positions = positions;
  in.spec.sparsek.clamp_distance = 200;
  in.spec.sparsek.slope = 1.0 / 4096;
  in.rope.rotary_dims = 32;
  in.T = T;
  in.score_heads = 1;
  Draw d(5, static_cast<std::uint64_t>(T));
  fill_values(in, d, "normal");
  return in;
}

}  // namespace

TEST_CASE("one token at a time gives what the full forward gives: every pattern, fp64 and fp32") {
  int slots_seen = 0;
  for (std::uint64_t c = 0; c < 160; ++c) {
    Draw d(21, c);
    const std::string kind = kScoreKinds[c % kScoreKinds.size()];
    ReferenceInput in = draw_input(d, 100, kind);
    in.document_starts.clear();  // a cache holds one document
    CAPTURE(c, kind, describe(in));
    for (const DType dtype : {DType::f64, DType::f32}) {
      const Problem p = tensors(in, dtype);
      const Tensor wanted = run_engine(in, dtype, {}).out;
      AttentionCache cache(in.spec, in.rope, in.B, dtype, d.chance(0.5) ? in.T : 0, in.score_heads);
      const std::int64_t rows = cache.rows();
      Tensor out = empty_like(wanted);
      const std::int64_t prompt = d.integer(0, in.T),
                         block = d.integer(1, 5);  // a prompt, then blocks, some of one token
      if (prompt > 0) feed(cache, p, 0, prompt, out);
      for (std::int64_t t = prompt; t < in.T; t += block) feed(cache, p, t, std::min(in.T, t + block), out);
      CHECK(relative_difference(out, wanted) <= (dtype == DType::f64 ? 1e-12 : 1e-5));
      CHECK(cache.length() == in.T);
      if (in.spec.kind != AttentionKind::full) CHECK(cache.rows() == rows);
      if (in.spec.kind != AttentionKind::sparsek) continue;
      CHECK(rows == in.spec.window + in.spec.sparsek.k);
      const Lives lives = lives_of(in, p.scores);
      for (std::int64_t b = 0; b < in.B; ++b) {
        for (std::int64_t kv = 0; kv < in.spec.n_kv_heads; ++kv) {
          const auto got = cache.selected(b, kv);
          CHECK(got == members(lives, b, in.score_heads == 1 ? 0 : kv, in.T - 1));
          slots_seen += static_cast<int>(got.size());
        }
      }
    }
  }
  CHECK(slots_seen > 500);
}

TEST_CASE("at every one of 4,096 positions the outputs and the selected sets are those of the full forward") {
  for (const auto& [gate, rule] :
       {std::pair{GateMode::kv, PositionRule::absolute}, std::pair{GateMode::prob, PositionRule::clamp},
        std::pair{GateMode::hard, PositionRule::none}}) {
    const ReferenceInput in = long_input(4096, gate, rule);
    CAPTURE(describe(in));
    const Problem p = tensors(in, DType::f32);
    const Tensor wanted = run_engine(in, DType::f32, {}).out;
    const Lives lives = lives_of(in, p.scores);
    AttentionCache cache(in.spec, in.rope, 1, DType::f32, in.T, 1);
    Tensor out = empty_like(wanted);
    int different = 0;
    for (std::int64_t t = 0; t < in.T; ++t) {
      feed(cache, p, t, t + 1, out);
      different += cache.selected(0, 0) != members(lives, 0, 0, t);
    }
    CHECK(different == 0);
    CHECK(max_difference(out, wanted) <= 1e-5);
  }
}

TEST_CASE("rows and bytes of the sparse caches do not depend on the length") {
  ReferenceInput in = long_input(16384, GateMode::kv, PositionRule::absolute);
  in.spec.n_heads = 1;
  in.qkv.resize(static_cast<std::size_t>(in.T * in.spec.qkv_features()));
  const Problem p = tensors(in, DType::f32);
  for (const AttentionKind kind : {AttentionKind::sparsek, AttentionKind::sliding_window}) {
    AttentionSpec spec = in.spec;
    spec.kind = kind;
    spec.sinks = 4;
    const bool sparse = kind == AttentionKind::sparsek;
    AttentionCache cache(spec, in.rope, 1, DType::f32, 0, 1);
    const auto run = [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; t += 64)
        cache.step(p.qkv.slice(1, t, t + 64), sparse ? p.scores.slice(2, t, t + 64) : Tensor());
    };
    run(0, 1024);
    const std::int64_t rows = cache.rows(), bytes = cache.bytes(), live = memory_stats({}).current_bytes;
    run(1024, 16384);
    CHECK(cache.length() == 16384);
    CHECK(cache.rows() == rows);
    CHECK(rows == (sparse ? 32 + 48 : 32 + 4));
    CHECK(cache.bytes() == bytes);
    CHECK(memory_stats({}).current_bytes == live);
  }
  AttentionSpec full = in.spec;
  full.kind = AttentionKind::full;
  AttentionCache cache(full, in.rope, 1, DType::f32, 0);
  cache.step(p.qkv.slice(1, 0, 1024));
  CHECK(cache.rows() == 1024);
  cache.step(p.qkv.slice(1, 1024, 1025));
  CHECK(cache.rows() == 2048);
}

TEST_CASE("bf16 caches stay within the rounding of their rows") {
  for (const PositionRule rule : {PositionRule::absolute, PositionRule::clamp}) {
    const ReferenceInput in = long_input(300, GateMode::kv, rule);
    const Problem p = tensors(in, DType::bf16);
    AttentionCache cache(in.spec, in.rope, 1, DType::bf16, 300, 1);
    Tensor out = empty({1, 300, 64}, DType::bf16);
    for (std::int64_t t = 0; t < 300; ++t) feed(cache, p, t, t + 1, out);
    CHECK(max_difference(out, tensor_of(reference_forward(in), {1, 300, 64}, DType::f64)) < 0.02);
  }
}

TEST_CASE("a cache resets, and refuses what does not fit") {
  const ReferenceInput in = long_input(90, GateMode::kv, PositionRule::absolute);
  const Problem p = tensors(in, DType::f32);
  AttentionCache cache(in.spec, in.rope, 1, DType::f32, 90, 1);
  Tensor first = empty({1, 90, 64}, DType::f32), second = empty_like(first);
  for (Tensor* out : {&first, &second}) {
    for (std::int64_t t = 0; t < 90; ++t) feed(cache, p, t, t + 1, *out);
    CHECK(cache.selected(0, 0).size() == 48);
    cache.reset();
    CHECK(cache.length() == 0);
    CHECK(cache.selected(0, 0).empty());
  }
  CHECK(same_bits(first, second));

  const auto message = [&](auto&& f) {
    try {
      f();
    } catch (const Error& e) { return std::string(e.what()); }
    return std::string();
  };
  cache.step(p.qkv, p.scores);
  CHECK(message([&] { cache.step(p.qkv.slice(1, 0, 1), p.scores.slice(2, 0, 1)); }).find("exceeds the 90 tokens") !=
        std::string::npos);
  CHECK(message([&] { cache.step(p.qkv.slice(1, 0, 1)); }).find("wants scores") != std::string::npos);
  CHECK(message([&] { cache.step(p.qkv.slice(2, 0, 64), p.scores); }).find("wants qkv f32 (1, n >= 1, 128)") !=
        std::string::npos);
  CHECK(message([&] { cache.step(p.qkv.to(DType::f64), p.scores); }).find("got f64") != std::string::npos);
  AttentionSpec wide = in.spec;
  wide.sparsek.positions = PositionRule::clamp;
  wide.sparsek.clamp_distance = std::int64_t{1} << 40;
  CHECK(message([&] { AttentionCache(wide, in.rope, 1, DType::f32, 0, 1); }).find("bound the cache") !=
        std::string::npos);
  CHECK(message([&] { AttentionCache(wide, in.rope, 1, DType::f32, 100, 1); }).empty());
  CHECK(message([&] { (void)cache.selected(1, 0); }).find("no sequence 1") != std::string::npos);
}

TEST_CASE("what a cache hands over says where it stands: rows, slots, scores of the ring, thresholds") {
  for (const std::int64_t T : {20, 32, 70, 80, 81, 200}) {
    const ReferenceInput in = long_input(T, GateMode::kv, PositionRule::absolute);
    CAPTURE(T);
    const Problem p = tensors(in, DType::f32);
    AttentionCache cache(in.spec, in.rope, 1, DType::f32, 0, 1);
    cache.step(p.qkv, p.scores);
    const AttentionCache::Contents c = cache.contents();
    const std::int64_t W = in.spec.window, k = in.spec.sparsek.k;
    const auto ordered = [&](std::int64_t j) {
      return order_score(p.scores.data<float>()[j], in.spec.sparsek.slope, j);
    };
    CHECK(c.batch == 1);
    CHECK(c.length == T);
    CHECK(c.keys.size(2) == W + k);
    std::vector<std::int64_t> held;
    for (std::size_t slot = 0; slot < c.key.size(); ++slot) {
      if (c.key[slot] < 0) continue;
      held.push_back(c.key[slot]);
      CHECK(c.u[slot] == ordered(c.key[slot]));
    }
    std::sort(held.begin(), held.end());
    CHECK(held == cache.selected(0, 0));
    for (std::int64_t j = std::max<std::int64_t>(0, T - W); j < T; ++j)
      CHECK(c.ring[static_cast<std::size_t>(j % W)] == ordered(j));
    REQUIRE(c.tau.size() == 1);
    CHECK(static_cast<std::int64_t>(c.pool.size()) == in.spec.sparsek.pool * k);
    CHECK(std::isinf(c.tau[0]) == (T - W < k));
    double sum = 0;
    for (const double z : c.pool) sum += std::clamp(z - c.tau[0], 0.0, 1.0);
    if (T - W >= k) CHECK(sum == Approx(static_cast<double>(k)).epsilon(1e-12));
  }
}
