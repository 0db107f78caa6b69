// The cost formulas against counts of what a pattern shows, pair by pair.
#include <algorithm>
#include <set>

#include "attention/attention_cost.h"
#include "attention/kernels/pattern.h"
#include "attention_ops.h"
#include "support/catch.h"

using namespace sieve;
using namespace sieve::test;

namespace {

double counted_keys(const PairPattern& p) {
  double n = 0;
  for (std::int64_t i = 0; i < p.T; ++i)
    for (std::int64_t j = 0; j <= i; ++j) n += sees(p, 0, 0, i, j);
  return n / static_cast<double>(p.T);
}

PairPattern pattern(const AttentionSpec& spec, std::int64_t T) {
  PairPattern p;
  p.kind = spec.kind, p.spec = spec.pattern, p.window = spec.window, p.T = T;
  return p;
}

// A legal choice of every query: any keys of the past, or its own block and any earlier ones.
std::vector<std::int32_t> draw_choice(Draw& d, std::int64_t T, std::int64_t size, std::int64_t block) {
  std::vector<std::int32_t> lists;
  for (std::int64_t i = 0; i < T; ++i) {
    std::set<std::int32_t> list;
    const std::int64_t last = i / block;
    if (block > 1) list.insert(static_cast<std::int32_t>(last));
    while (static_cast<std::int64_t>(list.size()) < std::min(size, last + 1))
      list.insert(static_cast<std::int32_t>(d.integer(0, last)));
    lists.insert(lists.end(), list.begin(), list.end());
    lists.insert(lists.end(), static_cast<std::size_t>(size) - list.size(), kNoChoice);
  }
  return lists;
}

}  // namespace

TEST_CASE("visited keys of static patterns are what their predicate shows when counted") {
  for (std::uint64_t c = 0; c < 300; ++c) {
    Draw d(71, c);
    AttentionSpec spec = draw_static_pattern(d);
    const std::int64_t T = d.integer(1, 120);
    if (c % 2 == 0) {
      spec.pattern.stride = d.integer(1, 40), spec.pattern.summary = d.integer(1, spec.pattern.stride);
      spec.window = d.integer(1, 30), spec.pattern.globals = d.integer(0, 130), spec.pattern.block = d.integer(1, 20);
    }
    CAPTURE(c, kAttentionKindNames[static_cast<std::size_t>(spec.kind)], T);
    CHECK(mean_keys(spec, T) == Approx(counted_keys(pattern(spec, T))).epsilon(1e-12));
    CHECK(mean_scored_pairs(spec, T) == 0);
  }
}

TEST_CASE("visited keys of kinds that choose are those of any choice they can make and hash's are its expectation") {
  for (std::uint64_t c = 0; c < 60; ++c) {
    Draw d(72, c);
    AttentionSpec spec;
    const std::int64_t T = d.integer(1, 90);
    spec.kind = c % 2 == 0 ? AttentionKind::top_k : AttentionKind::moba;
    PatternSpec& s = spec.pattern;
    s.k = d.integer(1, 30), s.block = d.integer(2, 9), s.blocks = d.integer(1, 8);
    const bool blocks = spec.kind == AttentionKind::moba;
    const auto choice = draw_choice(d, T, blocks ? s.blocks : s.k, blocks ? s.block : 1);
    PairPattern p = pattern(spec, T);
    p.choice_BHTN = choice.data(), p.choice_size = blocks ? s.blocks : s.k;
    CAPTURE(c, T, s.k, s.block, s.blocks);
    CHECK(mean_keys(spec, T) == Approx(counted_keys(p)).epsilon(1e-12));
    double scored = 0;
    for (std::int64_t i = 0; i < T; ++i) scored += static_cast<double>(blocks ? i / s.block : i + 1);
    CHECK(mean_scored_pairs(spec, T) == Approx(scored / static_cast<double>(T)));
  }
  AttentionSpec spec;
  spec.kind = AttentionKind::hash, spec.pattern.buckets = 8;
  Draw d(73, 0);
  std::vector<std::int32_t> buckets;
  for (int i = 0; i < 3000; ++i) buckets.push_back(static_cast<std::int32_t>(d.integer(0, 7)));
  PairPattern p = pattern(spec, 3000);
  p.choice_BHTN = buckets.data(), p.choice_size = 1;
  CHECK(mean_keys(spec, 3000) == Approx(counted_keys(p)).epsilon(0.02));
}

TEST_CASE("visited keys of windows and of nsa's branches against a count") {
  AttentionSpec spec{.kind = AttentionKind::sparsek, .window = 5, .sparsek = {.k = 7}};
  double n = 0;
  for (int i = 0; i < 40; ++i) n += std::min(i + 1, 12);
  CHECK(mean_keys(spec, 40) == Approx(n / 40));
  spec.kind = AttentionKind::full;
  CHECK(mean_keys(spec, 40) == Approx(20.5));
  spec.kind = AttentionKind::nsa;
  spec.pattern.block = 8, spec.pattern.blocks = 3, spec.pattern.compress_block = 6, spec.pattern.compress_stride = 2;
  n = 0;
  for (int i = 0; i < 41; ++i) {
    n += std::min(i + 1, 5) + std::min(2, i / 8) * 8 + i % 8 + 1;
    for (int first = 0; first + 6 <= i + 1; first += 2) ++n;
  }
  CHECK(mean_keys(spec, 41) == Approx(n / 41));
}

TEST_CASE("cached rows are exactly those that some later query will see") {
  for (std::uint64_t c = 0; c < 200; ++c) {
    Draw d(74, c);
    AttentionSpec spec = draw_static_pattern(d);
    if (spec.kind == AttentionKind::bigbird) continue;  // keeps all: what is drawn later is not known before
    if (spec.kind == AttentionKind::longformer) spec.pattern.dilation = 1;  // holes of a dilated window are kept
    const std::int64_t tokens = d.integer(1, 60), T = tokens + 2 * spec.pattern.stride + 20;
    const PairPattern p = pattern(spec, T);
    std::int64_t wanted = 0;
    for (std::int64_t j = 0; j < tokens; ++j) {
      bool seen = false;  // by the newest token or a later one
      for (std::int64_t i = tokens - 1; i < T && !seen; ++i) seen = i >= j && sees(p, 0, 0, i, j);
      wanted += seen;
    }
    CAPTURE(c, kAttentionKindNames[static_cast<std::size_t>(spec.kind)], tokens);
    CHECK(cached_rows(spec, tokens) >= wanted);
    const std::int64_t slack = spec.kind == AttentionKind::fixed ? spec.pattern.stride : 0;  // of the block before
    CHECK(cached_rows(spec, tokens) <= wanted + slack);
  }
}

TEST_CASE("operations and bytes of ten tokens by hand: keys and scored pairs and states and index keys") {
  AttentionSpec spec{.kind = AttentionKind::full, .n_heads = 2, .n_kv_heads = 1, .head_dim = 4};
  PatternSpec& p = spec.pattern;
  p.k = 3, p.index_heads = 2, p.index_dim = 4, p.buckets = 2;
  const double visited = (1 + 2 + 8 * 3) / 10.0, all = 5.5;
  CHECK(attention_flops(spec, 10) == Approx(12 * 8 * all));
  CHECK(cache_bytes(spec, 10, 2) == 10 * 2 * 4 * 2);
  spec.kind = AttentionKind::top_k;
  CHECK(attention_flops(spec, 10) == Approx(12 * 8 * visited + 2 * 8 * all));
  spec.kind = AttentionKind::dsa;
  CHECK(attention_flops(spec, 10) == Approx(12 * 8 * visited + 2 * 8 * all + (2 * 8 + 6 * 8) * visited));
  CHECK(cache_bytes(spec, 10, 2) == (10 * 2 * 4 + 10 * 4) * 2);
  spec.kind = AttentionKind::hash;
  CHECK(cache_bytes(spec, 10, 2) == 2 * 10 * 2 * 4 * 2);  // every query head has its own key
  spec.kind = AttentionKind::linear;  // S (4, 5) of one head: written once, read by two, backward twice as much
  CHECK(attention_flops(spec, 10) == Approx(3 * (2 + 2 * 2) * 4 * 5));
  CHECK(cache_bytes(spec, 10, 2) == 4 * 4 * 5);
  spec.kind = AttentionKind::gla;  // one head of (4, 8): decayed, written, read
  CHECK(attention_flops(spec, 10) == Approx(3 * 5 * 4 * 8));
  CHECK(cache_bytes(spec, 10, 2) == 4 * 4 * 8);
  // Two rows of the window and three slots; beside them fp64 scores of the ring, 8 + 8 + 4 bytes a slot (score, key,
  // weight), and two times three scores that thresholds see, fp64.
  spec.kind = AttentionKind::sparsek, spec.window = 2, spec.sparsek.k = 3, spec.sparsek.pool = 2;
  CHECK(cache_bytes(spec, 10, 2) == 5 * 2 * 4 * 2 + 2 * 8 + 3 * 20 + 6 * 8);
  spec.sparsek.gate = GateMode::hard, spec.sparsek.candidates = Candidates::at_once;
  CHECK(cache_bytes(spec, 10, 2) == 5 * 2 * 4 * 2 + 3 * 20);
}
