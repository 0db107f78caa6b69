// Results of `sieve probe` as people and programs read them. docs/probes.md lists the keys of the JSON.
#pragma once

#include <string>
#include <vector>

#include "train/probe.h"

namespace sieve {

std::string probe_text(const ProbeConfig& config, const ProbeOutcome& outcome);
std::string probe_json(const ProbeConfig& config, const ProbeOutcome& outcome);

// For --fail-if: "accuracy" (of asked tokens) or "rows" (answered whole), over all results. Error(Exit::config) for
// another name.
double probe_metric(const std::string& name, const std::vector<ProbeResult>& results);

}  // namespace sieve
