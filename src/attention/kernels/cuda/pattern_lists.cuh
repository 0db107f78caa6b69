// What the tiles of a pattern visit, for a slab of them at a time, so that memory is bounded at every length. A unit is
// a tile of 64 queries with the blocks of 64 keys that some query of it sees, or a block of keys with the tiles that
// see some key of it. Positions stand in slots: in their own order, or where queries see the keys of their bucket (of
// hash, or a column of strided) sorted by bucket, so that a tile's keys are neighbours. Strided by tensor cores takes
// two phases, its local keys and its columns. Letters: B batch, T time, H query heads, Hkv key-value heads.
#pragma once

#include <vector>

#include "attention/kernels/cuda/engine.cuh"
#include "attention/kernels/cuda/pattern_words.cuh"
#include "attention/kernels/pattern_attention.h"

namespace sieve::cuda {

struct PatternLists {
  // Rows and heads that see the same share a plan: plan p is row p / heads, head p % heads of those that differ (1,
  // or the key-value heads).
  std::int64_t rows = 1, heads = 1;
  std::int64_t T = 0, sides = 0;        // tiles of a row
  std::int64_t first = 0, units = 0;    // of the slab, in plan * sides + place
  const std::int32_t* order = nullptr;  // (plans, T): position in a slot; null: its own
  std::int32_t* counts = nullptr;       // (units)
  std::int32_t* entries = nullptr;      // (units, sides): 2 * tile + (1: some pair does not count), ascending
  Word* words = nullptr;                // (units, sides, 64): a row's pairs; by tile, not by entry
  bool begins = true, ends = true;      // whether this phase is the first of a result, and the last
  float* between = nullptr;             // sums that one phase leaves to the next: as out, or as dqkv

  __device__ std::int64_t plan(std::int64_t unit) const { return (first + unit) / sides; }
  __device__ const std::int32_t* order_of(std::int64_t plan) const {
    return order != nullptr ? order + plan * T : order;
  }
  // -1 beyond the row.
  __device__ static int position(const std::int32_t* order, std::int64_t slot, std::int64_t T) {
    if (slot >= T) return -1;
    return order != nullptr ? order[slot] : static_cast<int>(slot);
  }
};

// Those with the longest lists first: the last queries, the first keys.
template <bool kKeys>
__device__ inline std::int64_t side_of(const PatternLists& lists, std::int64_t unit) {
  const std::int64_t place = (lists.first + unit) % lists.sides;
  return kKeys ? place : lists.sides - 1 - place;
}

// What a block of threads works on: a unit for one of the (row, head) that share its plan. heads: H or Hkv.
template <bool kKeys>
struct PatternItem {
  std::int64_t unit, side, b, h;
  const std::int32_t* order;
  const std::int32_t* entries;
  const Word* words;
  int count;

  __device__ PatternItem(const Engine& e, const PatternLists& lists, std::int64_t heads) {
    unit = blockIdx.x % lists.units;
    const std::int64_t sharer = blockIdx.x / lists.units, plan = lists.plan(unit), each = heads / lists.heads;
    side = side_of<kKeys>(lists, unit);
    h = plan % lists.heads * each + sharer % each;
    b = lists.rows == 1 ? sharer / each : plan / lists.heads;
    order = lists.order_of(plan);
    entries = lists.entries + unit * lists.sides;
    words = lists.words + unit * lists.sides * kSide;
    count = lists.counts[unit];
  }
  // Position of the unit's own row r.
  __device__ int own(int r, std::int64_t T) const { return PatternLists::position(order, side * kSide + r, T); }
};
inline std::int64_t items_of(const Engine& e, const PatternLists& lists, std::int64_t heads) {
  return lists.units * (lists.rows == 1 ? e.B : 1) * (heads / lists.heads);
}

// ---- Host side
// Where a pass keeps them; offsets in bytes.
struct PatternSpace {
  Workspace engine;
  std::size_t order = 0, counts = 0, entries = 0, words = 0, between = 0, statistics = 0, bytes = 0;
  std::int64_t slab = 0;  // units that fit
};
PatternSpace space_of(const PatternForwardArgs& a, bool backward);
PatternLists lists_of(const PatternForwardArgs& a, const PatternSpace& space);  // without a slab

struct PatternPhase {
  PairPattern pattern;
  bool sorted = false, begins = true, ends = true;
};
std::vector<PatternPhase> phases_of(const PatternForwardArgs& a, bool tensor_cores);
// Sorts the slots by bucket. Once a pass.
void sort_slots(const PatternForwardArgs& a, const PatternLists& lists, Stream stream);
// Fills the lists of units first .. first + units - 1: of tiles of queries, or of blocks of keys.
void fill_lists(const PatternPhase& phase, const PatternLists& lists, bool keys, Stream stream);

// The passes over a slab: by tensor cores (bf16, head sizes 64 and 128), and a warp a row for the rest.
bool pattern_fits_tensor_cores(const Engine& e, bool backward);
void pattern_forward(const Engine& e, const PatternLists& lists, Stream stream);
void pattern_backward_queries(const Engine& e, const PatternLists& lists, Stream stream);
void pattern_backward_keys(const Engine& e, const PatternLists& lists, Stream stream);
void pattern_rows_forward(const Engine& e, const PatternLists& lists, Stream stream);
void pattern_rows_backward_queries(const Engine& e, const PatternLists& lists, Stream stream);
void pattern_rows_backward_keys(const Engine& e, const PatternLists& lists, Stream stream);

}  // namespace sieve::cuda
