// Reading row lists (kernels/softmax.h): which run of a list holds a key, and where.
#pragma once

#include <cstdint>

#include "attention/kernels/softmax.h"
#include "attention/spans.h"

namespace sieve::cuda {

// Entries of list `at` of (B, Hs, lists).
__device__ inline std::int32_t count_of(const RowLists& lists, std::int64_t at) {
  return lists.ends[at * kRowRuns + kRowRuns - 1];
}

// A key as lists see it: the queries that see it, and the first of which m may fall below 1.
struct RowLife {
  std::int32_t key, begin, end, band_from;

  // Where a list of the queries [first, last) puts it; -1: nowhere.
  __device__ int run_in(const Interval& queries) const {
    if (begin >= queries.end || end <= queries.begin || begin >= end) return -1;
    if (begin > queries.begin || end < queries.end) return kPartialRows;
    return queries.end <= band_from ? kSteadyRows : kWholeRows;
  }
};
// `row` of (B, Hs).
__device__ inline RowLife life_of(const DevicePlan& plan, std::int64_t T, std::int64_t row, std::int32_t key) {
  const std::int64_t at = row * T + key;
  const Interval seen = spans::selected_queries(key, {plan.from_BHT[at], plan.to_BHT[at]}, plan.window);
  return {key, seen.begin, seen.end, plan.band_from_BHT != nullptr ? plan.band_from_BHT[at] : 0x7fffffff};
}

// Index in list `list` of `row` of a key that some query of the list sees.
__device__ inline std::int64_t place_in_list(const DevicePlan& plan, const RowLists& lists, std::int64_t T,
                                             std::int64_t row, std::int64_t list, std::int32_t key) {
  const int run = life_of(plan, T, row, key).run_in(spans::tile_queries(list, lists.queries, T));
  const std::int32_t* ends = lists.ends + (row * lists.lists + list) * kRowRuns;
  const std::int32_t* keys = lists.keys + (row * lists.lists + list) * lists.capacity;
  std::int64_t low = run <= 0 ? 0 : ends[run - 1], high = run < 0 ? 0 : ends[run];
  while (low < high) {
    const std::int64_t middle = (low + high) / 2;
    if (keys[middle] < key) low = middle + 1;
    else high = middle;
  }
  return low;
}

}  // namespace sieve::cuda
