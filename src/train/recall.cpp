#include "train/recall.h"

#include <algorithm>
#include <bit>

namespace sieve {

RepeatFinder::Slot& RepeatFinder::slot_of(std::uint64_t bigram) {
  constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15;  // 2^64 / golden ratio: the upper bits mix all of the bigram
  const std::size_t mask = slots_.size() - 1;
  std::size_t at = static_cast<std::size_t>((bigram * kGolden) >> 32) & mask;
  while (slots_[at].window == window_ && slots_[at].bigram != bigram) at = (at + 1) & mask;
  return slots_[at];
}

std::span<const std::int64_t> RepeatFinder::find(const ScoredWindow& scored) {
  const EvalWindow& w = scored.window;
  const auto wanted = std::bit_ceil(2 * static_cast<std::size_t>(w.end - w.begin));
  if (slots_.size() < wanted) slots_.assign(wanted, Slot{});
  ++window_;
  distances_.clear();
  std::int64_t visible = w.begin;  // what predicts t, token t - 1, sees tokens from here on
  auto next_start = std::upper_bound(starts_.begin(), starts_.end(), w.begin);
  for (std::int64_t t = w.begin + 1; t < w.end; ++t) {
    for (; next_start != starts_.end() && *next_start <= t - 1; ++next_start) visible = *next_start;
    const auto at = static_cast<std::size_t>(t - w.begin);
    const auto before = static_cast<std::uint32_t>(scored.text[at - 1]);
    const std::uint64_t bigram = static_cast<std::uint64_t>(before) << 32 | static_cast<std::uint32_t>(scored.text[at]);
    Slot& slot = slot_of(bigram);
    if (t >= w.score_begin) {
      const bool seen = slot.window == window_ && slot.last - 1 >= visible;
      distances_.push_back(seen ? t - slot.last : 0);
    }
    slot = {bigram, t, window_};
  }
  return distances_;
}

std::size_t recall_bucket(std::span<const std::int64_t> edges, std::int64_t distance) {
  if (distance == 0) return edges.size() + 1;
  return static_cast<std::size_t>(std::lower_bound(edges.begin(), edges.end(), distance) - edges.begin());
}

}  // namespace sieve
