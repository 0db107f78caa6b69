#include "attention/plan.h"

#include <algorithm>
#include <array>
#include <utility>

#include "attention/spans.h"
#include "core/error.h"
#include "core/parallel_for.h"

namespace sieve {
namespace {

// The blocks and rows of one (row, selection head), before all are joined.
struct PlanPart {
  std::vector<PlanBlock> blocks;
  std::vector<std::int64_t> tile_end;
  std::vector<PlanRow> rows;
};

// A selected key while the sweep over tiles passes its life.
struct Alive {
  std::int32_t key, from, to, band_from;
};

void append_row_blocks(PlanPart& part, std::size_t first_row, std::size_t clean, std::size_t saturated) {
  const std::size_t end = part.rows.size();
  for (std::size_t at = first_row; at < end; at += kKeyBlock) {
    const std::size_t stop = std::min(end, at + kKeyBlock);
    part.blocks.push_back({static_cast<std::int32_t>(at), static_cast<std::uint8_t>(stop - at), kGathered,
                           static_cast<std::uint8_t>(stop > first_row + clean),
                           static_cast<std::uint8_t>(stop > first_row + saturated)});
  }
}

// Sweeps the tiles in order and carries the keys whose life goes on, so that the cost is the length of the lists.
class RowSweep {
 public:
  RowSweep(const SelectedKeys& s, std::int64_t part, std::int64_t T, std::int64_t window)
      : from_(s.from + part * T),
        to_(s.to + part * T),
        band_from_(s.band_from != nullptr ? s.band_from + part * T : nullptr),
        T_(static_cast<std::int32_t>(T)),
        window_(window) {}

  void append(PlanPart& part, Interval queries) {
    admit(queries.end);
    // Order: seen by the whole tile and saturated, seen by the whole tile, the rest; ascending keys in each. Clean
    // blocks first.
    const std::size_t first = part.rows.size();
    std::size_t saturated = 0, clean = 0;
    for (int pass = 0; pass < 3; ++pass) {
      for (const Alive& a : alive_) {
        const Interval seen = spans::intersect({a.from, a.to}, queries);
        if (seen.empty()) continue;
        const bool whole = seen == queries, hard = a.band_from >= queries.end;
        if ((whole && hard ? 0 : (whole ? 1 : 2)) != pass) continue;
        part.rows.push_back({a.key, static_cast<std::uint8_t>(seen.begin - queries.begin),
                             static_cast<std::uint8_t>(seen.end - queries.begin)});
      }
      if (pass == 0) saturated = part.rows.size() - first;
      if (pass == 1) clean = part.rows.size() - first;
    }
    append_row_blocks(part, first, clean, band_from_ != nullptr ? saturated : part.rows.size() - first);
    std::erase_if(alive_, [&](const Alive& a) { return a.to <= queries.end; });
  }

 private:
  // Keys are born in the order of their indices: no earlier than at their own position.
  void admit(std::int32_t queries_end) {
    for (; next_ < T_ && next_ < queries_end; ++next_) {
      const Interval seen = spans::selected_queries(next_, {from_[next_], to_[next_]}, window_);
      if (!seen.empty())
        alive_.push_back({next_, seen.begin, seen.end, band_from_ != nullptr ? band_from_[next_] : T_});
    }
  }

  const std::int32_t* from_;
  const std::int32_t* to_;
  const std::int32_t* band_from_;
  std::int32_t T_, next_ = 0;
  std::int64_t window_;
  std::vector<Alive> alive_;
};

void fill_spans(TilePlan& plan, const AttentionSpec& spec, const std::int32_t* starts) {
  const bool sinks = spec.kind == AttentionKind::sliding_window && spec.sinks > 0;
  const auto n = static_cast<std::size_t>(plan.batch_plans * plan.T);
  plan.span_begin.assign(sinks ? 2 : 1, std::vector<std::int32_t>(n));
  plan.span_end = plan.span_begin;
  for (std::size_t x = 0; x < n; ++x) {
    const auto i = static_cast<std::int32_t>(x % static_cast<std::size_t>(plan.T));
    const std::int32_t d = starts != nullptr ? starts[x] : 0;
    const Interval near =
        spec.kind == AttentionKind::full ? spans::causal_keys(i, d) : spans::window_keys(i, spec.window, d);
    plan.span_begin[0][x] = near.begin;
    plan.span_end[0][x] = near.end;
    if (!sinks) continue;
    const Interval sink = spans::sink_keys(i, spec.window, spec.sinks, d);
    plan.span_begin[1][x] = sink.begin;
    plan.span_end[1][x] = sink.end;
  }
}

PlanPart make_part(const TilePlan& plan, const AttentionSpec& spec, const SelectedKeys& selected, std::int64_t index) {
  PlanPart part;
  const std::int64_t offset = index / plan.head_plans * plan.T;
  const bool gathers = spec.kind == AttentionKind::sparsek;
  RowSweep sweep(selected, gathers ? index : 0, plan.T, spec.window);
  for (std::int64_t t = 0; t < plan.tiles; ++t) {
    const Interval queries = spans::tile_queries(t, kQueryTile, plan.T);
    for (std::size_t s = 0; s < plan.span_begin.size(); ++s) {
      append_span_blocks(part.blocks, static_cast<std::uint8_t>(s), plan.span_begin[s].data() + offset + queries.begin,
                         plan.span_end[s].data() + offset + queries.begin, queries.size());
    }
    if (gathers) sweep.append(part, queries);
    part.tile_end.push_back(static_cast<std::int64_t>(part.blocks.size()));
  }
  return part;
}

}  // namespace

void append_span_blocks(std::vector<PlanBlock>& blocks, std::uint8_t source, const std::int32_t* begin,
                        const std::int32_t* end, std::int64_t queries) {
  const Interval first{begin[0], end[0]}, last{begin[queries - 1], end[queries - 1]};
  const Interval any = spans::any_of(first, last), all = spans::all_of(first, last);
  constexpr auto size = static_cast<std::int32_t>(kKeyBlock);
  for (std::int32_t at = any.begin; at < any.end;) {
    const Interval block{at, spans::min(any.end, spans::align_down(at, size) + size)};
    at = block.end;
    const bool clean = spans::is_clean(block, all);
    bool seen = clean;
    for (std::int64_t q = 0; q < queries && !seen; ++q) seen = !spans::intersect(block, {begin[q], end[q]}).empty();
    if (!seen) continue;
    blocks.push_back(
        {block.begin, static_cast<std::uint8_t>(block.size()), source, static_cast<std::uint8_t>(!clean), 0});
  }
}

PlanView TilePlan::view() const {
  PlanView v;
  v.blocks = blocks.data();
  v.tile_first = tile_first.data();
  v.rows = rows.data();
  for (std::size_t s = 0; s < span_begin.size(); ++s) {
    v.span_begin[s] = span_begin[s].data();
    v.span_end[s] = span_end[s].data();
  }
  v.tiles = tiles;
  v.batch_plans = batch_plans;
  v.head_plans = head_plans;
  return v;
}

TilePlan make_plan(const AttentionSpec& spec, std::int64_t B, std::int64_t T, const std::int32_t* document_starts,
                   const SelectedKeys& selected) {
  TilePlan plan;
  const bool gathers = spec.kind == AttentionKind::sparsek;
  plan.T = T;
  plan.tiles = (T + kQueryTile - 1) / kQueryTile;
  plan.batch_plans = gathers || document_starts != nullptr ? B : 1;  // rows that share everything share a plan
  plan.head_plans = gathers ? selected.heads : 1;
  fill_spans(plan, spec, document_starts);

  const auto n = static_cast<std::size_t>(plan.batch_plans * plan.head_plans);
  std::vector<PlanPart> parts(n);
  parallel_for(static_cast<std::int64_t>(n), std::max<std::int64_t>(1, 4096 / std::max<std::int64_t>(1, T)),
               [&](std::int64_t first, std::int64_t last) {
                 for (std::int64_t p = first; p < last; ++p)
                   parts[static_cast<std::size_t>(p)] = make_part(plan, spec, selected, p);
               });
  plan.tile_first.push_back(0);
  for (PlanPart& part : parts) {
    const auto block_base = static_cast<std::int64_t>(plan.blocks.size());
    const std::size_t row_base = plan.rows.size();
    require(row_base + part.rows.size() < (std::size_t{1} << 31), "attention",
            "the plan's row lists exceed 2^31 entries; ", "lower the batch, the length or k");
    for (PlanBlock b : part.blocks) {
      if (b.source == kGathered) b.first += static_cast<std::int32_t>(row_base);
      plan.blocks.push_back(b);
    }
    for (std::int64_t e : part.tile_end) plan.tile_first.push_back(block_base + e);
    plan.rows.insert(plan.rows.end(), part.rows.begin(), part.rows.end());
    part = {};
  }
  return plan;
}

}  // namespace sieve
