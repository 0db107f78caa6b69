// Interval arithmetic and plans against brute force: every query, key, window, sink count and document start of small
// cases.
#include "attention/spans.h"

#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include "attention/kernels/select.h"
#include "attention/plan.h"
#include "attention/sparsek.h"
#include "attention_cases.h"
#include "support/catch.h"

using namespace sieve;
using namespace sieve::test;

namespace {

static_assert(spans::window_keys(9, 4, 0) == Interval{6, 10});
static_assert(spans::window_keys(2, std::int64_t{1} << 40, 0) == Interval{0, 3});
static_assert(spans::sink_keys(9, 4, 2, 0) == Interval{0, 2});

// Counts a failure without the cost of an assertion per case.
struct Tally {
  long cases = 0, wrong = 0;
  void check(bool ok) {
    ++cases;
    wrong += !ok;
  }
};

}  // namespace

TEST_CASE("intervals of one query equal the predicate they stand for") {
  Tally tally;
  for (std::int32_t d = 0; d < 12; ++d) {
    for (std::int32_t i = d; i < 24; ++i) {
      for (std::int64_t W : {1, 2, 3, 5, 8, 23, 24, 30}) {
        for (std::int32_t j = 0; j < 26; ++j) {
          const bool causal = j >= d && j <= i, near = causal && i - j < W;
          tally.check(spans::causal_keys(i, d).contains(j) == causal);
          tally.check(spans::window_keys(i, W, d).contains(j) == near);
          tally.check(spans::candidate_keys(i, W, d, true).contains(j) == (causal && !near));
          tally.check(spans::candidate_keys(i, W, d, false).contains(j) == causal);
          for (std::int64_t s : {0, 1, 2, 7, 40}) {
            tally.check(spans::sink_keys(i, W, s, d).contains(j) == (causal && !near && j - d < s));
          }
        }
      }
    }
  }
  CHECK(tally.cases > 100000);
  CHECK(tally.wrong == 0);
}

TEST_CASE("queries that see a selected key: members, without those whose window still shows it") {
  Tally tally;
  for (std::int32_t j = 0; j < 8; ++j) {
    for (std::int32_t from = j; from < 14; ++from) {
      for (std::int32_t to = from; to < 14; ++to) {
        for (std::int64_t W : {1, 2, 4, 9, 20}) {
          const Interval seen = spans::selected_queries(j, {from, to}, W);
          for (std::int32_t i = 0; i < 16; ++i) tally.check(seen.contains(i) == (i >= from && i < to && i - j >= W));
          tally.check(seen.begin <= seen.end);
        }
      }
    }
  }
  CHECK(tally.cases > 10000);
  CHECK(tally.wrong == 0);
}

TEST_CASE("covers of a tile hold every key that some query sees, the common part only keys that all see") {
  Tally tally;
  for (std::int64_t W : {1, 3, 6, 40}) {
    for (std::int64_t s : {0, 2, 5}) {
      for (std::int32_t q0 = 0; q0 < 20; ++q0) {
        for (std::int32_t n = 1; n < 9; ++n) {
          for (std::int32_t d = 0; d <= q0; d += 3) {
            const auto interval = [&](std::int32_t i, int what) {
              return what == 0   ? spans::causal_keys(i, d)
                     : what == 1 ? spans::window_keys(i, W, d)
                                 : spans::sink_keys(i, W, s, d);
            };
            for (int what = 0; what < 3; ++what) {
              const Interval first = interval(q0, what), last = interval(q0 + n - 1, what);
              const Interval any = spans::any_of(first, last), all = spans::all_of(first, last);
              for (std::int32_t j = 0; j < 32; ++j) {
                int seen = 0;
                for (std::int32_t i = q0; i < q0 + n; ++i) seen += interval(i, what).contains(j);
                tally.check(seen == 0 || any.contains(j));
                tally.check(all.contains(j) == (seen == n));
              }
              tally.check(spans::is_clean({4, 8}, all) == (all.contains(4) && all.contains(7)));
            }
          }
        }
      }
    }
  }
  CHECK(tally.cases > 50000);
  CHECK(tally.wrong == 0);
  CHECK(spans::tile_queries(2, 64, 150) == Interval{128, 150});
  CHECK(spans::tile_queries(1, 64, 150) == Interval{64, 128});
  CHECK(spans::align_down(130, 64) == 128);
}

namespace {

// Every pair that a plan visits, with the intervals applied; counts pairs that are visited twice or lie in blocks
// without any.
struct Visits {
  std::set<std::pair<std::int32_t, std::int32_t>> window, gathered;
  long twice = 0, idle_blocks = 0, false_clean = 0, widest_list = 0;
};

Visits visit(const TilePlan& plan, std::int64_t b, std::int64_t h) {
  Visits out;
  const PlanView v = plan.view();
  const std::int64_t row = v.batch_plans == 1 ? 0 : b, p = row * v.head_plans + (v.head_plans == 1 ? 0 : h);
  for (std::int64_t t = 0; t < plan.tiles; ++t) {
    const Interval queries = spans::tile_queries(t, kQueryTile, plan.T);
    long list = 0;
    for (std::int64_t x = v.tile_first[p * v.tiles + t]; x < v.tile_first[p * v.tiles + t + 1]; ++x) {
      const PlanBlock& block = v.blocks[x];
      long seen_pairs = 0;
      for (std::int32_t r = 0; r < block.count; ++r) {
        const bool gathered = block.source == kGathered;
        const std::int32_t j = gathered ? v.rows[block.first + r].key : block.first + r;
        list += gathered;
        for (std::int32_t i = queries.begin; i < queries.end; ++i) {
          const bool seen =
              gathered
                  ? i - queries.begin >= v.rows[block.first + r].from && i - queries.begin < v.rows[block.first + r].to
                  : v.span_begin[block.source][row * plan.T + i] <= j && j < v.span_end[block.source][row * plan.T + i];
          out.false_clean += !seen && block.masked == 0;
          if (!seen) continue;
          ++seen_pairs;
          out.twice += !(gathered ? out.gathered : out.window).insert({i, j}).second;
        }
      }
      out.idle_blocks += seen_pairs == 0;
    }
    out.widest_list = std::max(out.widest_list, list);
  }
  return out;
}

}  // namespace

TEST_CASE("a plan visits exactly the pairs of the oracle's masks, each once, and no idle block") {
  int gathered = 0;
  for (std::uint64_t c = 0; c < 60; ++c) {
    Draw d(31, c);
    const ReferenceInput in = draw_input(d, 210, kScoreKinds[c % kScoreKinds.size()]);
    CAPTURE(c, describe(in));
    const ReferenceMasks masks = reference_masks(in);
    const std::int64_t Hs = in.spec.kind == AttentionKind::sparsek ? in.score_heads : 1;
    const std::int32_t* starts = in.document_starts.empty() ? nullptr : in.document_starts.data();
    std::vector<std::int32_t> from(static_cast<std::size_t>(in.B * Hs * in.T)), to = from;
    SelectedKeys keys;
    if (in.spec.kind == AttentionKind::sparsek) {
      SelectArgs args{};
      args.scores_BHT = in.scores.data(), args.dtype = DType::f64, args.document_starts_BT = starts;
      args.B = in.B, args.H = Hs, args.T = in.T, args.k = in.spec.sparsek.k, args.pool = in.spec.sparsek.pool;
      args.delay = candidate_delay(in.spec), args.slope = in.spec.sparsek.slope,
      args.temperature = in.spec.sparsek.temperature;
      args.from_BHT = from.data(), args.to_BHT = to.data();
      cpu::select(args);
      keys = {from.data(), to.data(), nullptr, nullptr, Hs};
    }
    const TilePlan plan = make_plan(in.spec, in.B, in.T, starts, keys);
    for (std::int64_t b = 0; b < in.B; ++b) {
      for (std::int64_t h = 0; h < Hs; ++h) {
        const Visits v = visit(plan, b, h);
        CHECK(v.twice == 0);
        CHECK(v.idle_blocks == 0);
        CHECK(v.false_clean == 0);
        if (in.document_starts.empty()) CHECK(v.widest_list <= in.spec.sparsek.k + 63);
        long wrong = 0;
        for (std::int32_t i = 0; i < in.T; ++i) {
          for (std::int32_t j = 0; j < in.T; ++j) {
            const auto at = static_cast<std::size_t>(((b * Hs + h) * in.T + i) * in.T + j);
            wrong += v.window.count({i, j}) != masks.window[at];
            wrong += v.gathered.count({i, j}) != masks.selected[at];
          }
        }
        CHECK(wrong == 0);
        gathered += !v.gathered.empty();
      }
    }
  }
  CHECK(gathered > 30);
}
