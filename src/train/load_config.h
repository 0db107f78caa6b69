// From YAML, environment and command line to a checked RunConfig.
#pragma once

#include <string>
#include <vector>

#include "io/yaml.h"
#include "train/run_config.h"

namespace sieve {

// A configuration together with the tree that knows where every value came from.
struct LoadedConfig {
  RunConfig config;
  ConfigTree tree;
};

// base < file < SIEVE_a__b environment < overrides, bound and checked as far as no data is needed. `base` is YAML text
// (a checkpoint's model and tokenizer groups), `base_name` what messages call it. With neither file nor base the
// built-in demo (train/demo.h) stands in.
LoadedConfig load_run_config(const std::string& file, const std::vector<std::string>& overrides, int world_size,
                             const std::string& base = "", const std::string& base_name = "");

// Bound, not checked: for what has to be known before the base is (init_from.path, run.dir).
LoadedConfig bind_run_config(const std::string& file, const std::vector<std::string>& overrides,
                             const std::string& base = "", const std::string& base_name = "");

// Relations between keys that need no data. Problems are reported together, each with its place, through
// ConfigTree::fail_all.
void check_run_config(const RunConfig& config, const ConfigTree& tree, int world_size);

}  // namespace sieve
