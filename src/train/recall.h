// Recall hits: targets that the visible text holds already, told by their bigram. The loss on them, by the distance to
// the bigram's last occurrence, shows how far back a model finds what it has read; names of a novel are the typical
// case.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
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
  std::unordered_map<std::uint64_t, std::int64_t> last_;  // bigram -> where it last ended
  std::vector<std::int64_t> distances_;
};

// Index of a distance's bucket: (0, edges[0]], (edges[0], edges[1]], ..., beyond the last edge; 0 (no repetition) is
// the one behind them all, edges.size() + 1.
std::size_t recall_bucket(std::span<const std::int64_t> edges, std::int64_t distance);

}  // namespace sieve
