#include "train/recall.h"

#include <algorithm>

namespace sieve {

std::span<const std::int64_t> RepeatFinder::find(const ScoredWindow& scored) {
  const EvalWindow& w = scored.window;
  last_.clear();
  distances_.clear();
  std::int64_t visible = w.begin;  // what predicts t, token t - 1, sees tokens from here on
  auto next_start = std::upper_bound(starts_.begin(), starts_.end(), w.begin);
  for (std::int64_t t = w.begin + 1; t < w.end; ++t) {
    for (; next_start != starts_.end() && *next_start <= t - 1; ++next_start) visible = *next_start;
    const auto at = static_cast<std::size_t>(t - w.begin);
    const auto before = static_cast<std::uint32_t>(scored.text[at - 1]);
    const auto [place, is_new] =
        last_.try_emplace(static_cast<std::uint64_t>(before) << 32 | static_cast<std::uint32_t>(scored.text[at]), t);
    if (t >= w.score_begin) {
      const bool seen = !is_new && place->second - 1 >= visible;
      distances_.push_back(seen ? t - place->second : 0);
    }
    place->second = t;
  }
  return distances_;
}

std::size_t recall_bucket(std::span<const std::int64_t> edges, std::int64_t distance) {
  if (distance == 0) return edges.size() + 1;
  return static_cast<std::size_t>(std::lower_bound(edges.begin(), edges.end(), distance) - edges.begin());
}

}  // namespace sieve
