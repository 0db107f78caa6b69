// Attention patterns as data: for every tile of queries the blocks of keys it visits, contiguous (spans) or gathered
// (rows), and the intervals that say which pairs count. One engine runs them all (kernels/softmax.h). A new pattern is
// a new way to fill a TilePlan; if intervals cannot express it, it answers for single pairs too (PlanView, pair_bits).
// Letters: B batch, T time, Hs score heads, i query, j key.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/kernels/softmax.h"
#include "attention/spec.h"

namespace sieve {

// The selection of every query as intervals of keys' lives (kernels/select.h), (B, Hs, T) each.
struct SelectedKeys {
  const std::int32_t* from = nullptr;
  const std::int32_t* to = nullptr;
  const std::int32_t* band_from = nullptr;  // null: no block is gated
  const std::int32_t* band_to = nullptr;
  std::int64_t heads = 0;  // Hs
};

struct TilePlan {
  std::int64_t T = 0, tiles = 0, batch_plans = 1, head_plans = 1;
  std::vector<PlanBlock> blocks;
  std::vector<std::int64_t> tile_first;
  std::vector<PlanRow> rows;
  std::vector<std::vector<std::int32_t>> span_begin, span_end;  // per source (batch_plans, T)

  PlanView view() const;
};

// The plan of `spec` for B rows of T positions. document_starts (B, T) or null. `selected` for SparseK only.
// At most T / 64 * (k + 63) rows per selection head; O(T) intervals; blocks in proportion to the keys visited.
TilePlan make_plan(const AttentionSpec& spec, std::int64_t B, std::int64_t T, const std::int32_t* document_starts,
                   const SelectedKeys& selected);

// Adds the blocks of one span source for a tile of `queries` queries, skipping blocks that no query sees. begin and end
// are the source's intervals of these queries; neither ever decreases from one query to the next.
void append_span_blocks(std::vector<PlanBlock>& blocks, std::uint8_t source, const std::int32_t* begin,
                        const std::int32_t* end, std::int64_t queries);

}  // namespace sieve
