// Interval arithmetic of attention patterns: which keys a query may see, which keys a tile of queries touches, and
// where a block of keys needs a mask. Everything is constexpr, works on host and device and is tested against a
// brute-force predicate (tests/attention/spans_test.cpp). Intervals are half-open. Letters: i query, j key, W window
// (keys, self included), s sinks, d first position of i's document.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace sieve {

struct Interval {
  std::int32_t begin = 0, end = 0;

  SIEVE_HD constexpr bool empty() const { return end <= begin; }
  SIEVE_HD constexpr std::int32_t size() const { return empty() ? 0 : end - begin; }
  SIEVE_HD constexpr bool contains(std::int64_t x) const { return x >= begin && x < end; }
  constexpr bool operator==(const Interval&) const = default;
};

namespace spans {

SIEVE_HD constexpr std::int32_t max(std::int32_t a, std::int32_t b) { return a > b ? a : b; }
SIEVE_HD constexpr std::int32_t min(std::int32_t a, std::int32_t b) { return a < b ? a : b; }
// i - W + 1 without overflow for a window wider than any sequence.
SIEVE_HD constexpr std::int32_t window_begin(std::int32_t i, std::int64_t W) {
  return W > i ? 0 : static_cast<std::int32_t>(i - W + 1);
}

// ---- One query
// ------------------------------------------------------------------------------------------------------------
SIEVE_HD constexpr Interval causal_keys(std::int32_t i, std::int32_t d) { return {d, i + 1}; }
SIEVE_HD constexpr Interval window_keys(std::int32_t i, std::int64_t W, std::int32_t d) {
  return {max(d, window_begin(i, W)), i + 1};
}
// The sinks that the window does not show already: the two intervals never share a key.
SIEVE_HD constexpr Interval sink_keys(std::int32_t i, std::int64_t W, std::int64_t s, std::int32_t d) {
  const std::int32_t w = max(d, window_begin(i, W));
  return {d, s < w - d ? static_cast<std::int32_t>(d + s) : w};
}
// Keys that compete for selection in the prefix of query i: those that have left the window, or all of the document so
// far.
SIEVE_HD constexpr Interval candidate_keys(std::int32_t i, std::int64_t W, std::int32_t d, bool on_exit) {
  return {d, on_exit ? max(d, window_begin(i, W)) : i + 1};
}

// ---- One key
// --------------------------------------------------------------------------------------------------------------
// Queries that see key j as a selected one, given its membership of the top k: not while the window shows it.
SIEVE_HD constexpr Interval selected_queries(std::int32_t j, Interval membership, std::int64_t W) {
  const std::int64_t leaves = j + W;
  if (leaves >= membership.end) return {membership.end, membership.end};
  return {max(membership.begin, static_cast<std::int32_t>(leaves)), membership.end};
}

// ---- A tile of queries against a block of keys
// ----------------------------------------------------------------------------
SIEVE_HD constexpr Interval intersect(Interval a, Interval b) { return {max(a.begin, b.begin), min(a.end, b.end)}; }
SIEVE_HD constexpr Interval tile_queries(std::int64_t tile, std::int64_t size, std::int64_t T) {
  const std::int64_t begin = tile * size, end = begin + size < T ? begin + size : T;
  return {static_cast<std::int32_t>(begin), static_cast<std::int32_t>(end)};
}
// All the intervals above have ends that never decrease from one query to the next (document starts do not decrease
// either), so the first and the last query of a tile decide: which keys any of them sees (a cover: between two
// documents' sinks it may hold keys that none sees), and which keys all of them see.
SIEVE_HD constexpr Interval any_of(Interval first, Interval last) { return {first.begin, last.end}; }
SIEVE_HD constexpr Interval all_of(Interval first, Interval last) { return {last.begin, first.end}; }
// A block is clean if all queries see all its keys: no mask.
SIEVE_HD constexpr bool is_clean(Interval block, Interval all) {
  return block.begin >= all.begin && block.end <= all.end;
}
// First block boundary at or below x: blocks are aligned, so that the diagonal block of a tile of the same size is one
// block.
SIEVE_HD constexpr std::int32_t align_down(std::int32_t x, std::int32_t size) { return x - x % size; }

}  // namespace spans
}  // namespace sieve
