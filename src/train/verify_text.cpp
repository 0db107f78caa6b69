#include "train/verify_text.h"

#include <algorithm>
#include <vector>

namespace sieve {

Verification verify_greedy(const Decoder& model, std::span<const std::int32_t> prompt,
                           std::span<const std::int32_t> fresh, std::int64_t vocab) {
  require(!prompt.empty(), "verify", "wants a prompt");
  Verification v;
  if (fresh.empty()) return v;
  std::vector<std::int32_t> ids(prompt.begin(), prompt.end());
  ids.insert(ids.end(), fresh.begin(), fresh.end() - 1);  // the last one is followed by nothing
  const auto T = static_cast<std::int64_t>(ids.size()), begin = static_cast<std::int64_t>(prompt.size()) - 1;
  constexpr std::int64_t kRows = 512;  // whose logits are looked at together
  model.visit_logits(from_values<std::int32_t>(ids, {1, T}), begin, kRows,
                     [&](std::int64_t first, const Tensor& there) {
                       const Tensor logits = there.to(Stream{});
                       const std::int64_t V = logits.size(2);
                       for (std::int64_t r = 0; r < logits.size(1); ++r) {
                         const float* row = logits.data<float>() + r * V;
                         const std::int64_t n = first + r - begin, token = fresh[static_cast<std::size_t>(n)];
                         const float best = *std::max_element(row, row + std::min(vocab, V));
                         const double gap = static_cast<double>(best) - static_cast<double>(row[token]);
                         ++v.checked;
                         if (gap == 0) continue;
                         v.largest_gap = std::max(v.largest_gap, gap);
                         if (gap < Verification::kTie) {
                           ++v.excused;
                         } else if (v.wrong++ == 0) {
                           v.first_wrong = n;
                         }
                       }
                     });
  return v;
}

}  // namespace sieve
