// Recall hits: targets that the visible text holds already, told by their bigram. The loss on them, by the distance to
// the bigram's last occurrence, shows how far back a model finds what it has read; names of a novel are the typical
// case.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "train/scored_windows.h"

namespace sieve {

// Finds, for every scored target t of a window, its last repetition: the largest s < t with token s = token t and
// token s - 1 = token t - 1, both visible from t.
class RepeatFinder {
 public:
  // starts: as in visit_scored_windows, what a token sees ends at its own document's start; empty: at the window's.
  explicit RepeatFinder(std::span<const std::int64_t> starts) : starts_(starts) {}

  // The distance t - s of each scored target in order, 0 where there is no repetition. Valid until the next call.
  std::span<const std::int64_t> find(const ScoredWindow& scored);

 private:
  std::span<const std::int64_t> starts_;
  // Where a bigram last ended in the window at hand. A table of slots, at most half full, that a new window takes over
  // by its number: nothing is cleared or allocated for each of many windows.
  struct Slot {
    std::uint64_t bigram = 0;
    std::int64_t last = 0;
    std::uint64_t window = 0;  // 0: none yet
  };
  Slot& slot_of(std::uint64_t bigram);

  std::vector<Slot> slots_;  // a power of two
  std::uint64_t window_ = 0;
  std::vector<std::int64_t> distances_;
};

// Index of a distance's bucket: (0, edges[0]], (edges[0], edges[1]], ..., beyond the last edge; 0 (no repetition) is
// the one behind them all, edges.size() + 1.
std::size_t recall_bucket(std::span<const std::int64_t> edges, std::int64_t distance);

}  // namespace sieve
