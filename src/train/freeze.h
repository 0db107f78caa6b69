// Parameters that a configuration takes out of the training.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "io/yaml.h"
#include "nn/decoder.h"

namespace sieve {

// Freezes every parameter whose name matches a pattern (matches_pattern). Error(Exit::config) at `key` of the tree
// where a pattern matches none, and where nothing is left to train.
void freeze_matching(const Decoder& model, const std::vector<std::string>& patterns, const ConfigTree& tree,
                     std::string_view key);

}  // namespace sieve
