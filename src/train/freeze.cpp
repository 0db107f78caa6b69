#include "train/freeze.h"

#include "core/error.h"
#include "train/run_config.h"

namespace sieve {

void freeze_matching(const Decoder& model, const std::vector<std::string>& patterns, const ConfigTree& tree,
                     std::string_view key) {
  std::vector<bool> used(patterns.size(), false);
  bool any_left = false;
  for (const auto& p : model.parameters()) {
    for (std::size_t i = 0; i < used.size(); ++i) {
      if (!matches_pattern(patterns[i], p->name)) continue;
      used[i] = true;
      if (p->trainable) freeze(*p);
    }
    any_left = any_left || p->trainable;
  }
  for (std::size_t i = 0; i < used.size(); ++i) {
    if (!used[i]) tree.fail_at(key, cat("\"", patterns[i], "\" matches no parameter"));
  }
  if (!any_left) tree.fail_at(key, "freezes every parameter: nothing is left to train");
}

}  // namespace sieve
