// Options that were given and change nothing on the chosen path: not an error, but rarely what was meant.
#pragma once

#include <string>
#include <vector>

#include "io/yaml.h"
#include "train/run_config.h"

namespace sieve {

// One line per key whose value differs from its default and has no effect: "file.yaml:9:5: warning: KEY: has no effect:
// WHY". What a finetune inherits from its checkpoint is not reported. config: checked.
std::vector<std::string> idle_keys(const RunConfig& config, const ConfigTree& tree);

// Logs them as warnings.
void warn_of_idle_keys(const RunConfig& config, const ConfigTree& tree);

}  // namespace sieve
