// A small model trained from scratch on a made-up task (data/probe_task.h), and how often it answers right: what a type
// of attention can remember, beside what language modelling shows of it. docs/probes.md has tasks, measures and
// results.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "dist/communicator.h"
#include "train/probe_config.h"

namespace sieve {

struct ProbeCount {
  std::int64_t asked = 0, right = 0;
  double accuracy() const { return asked > 0 ? static_cast<double>(right) / static_cast<double>(asked) : 0; }
};

// Answers by the distance from the question back to the token that tells: bucket b holds [2^b, 2^(b+1)).
struct ProbeResult {
  static constexpr std::size_t kDistances = 25;
  ProbeSetting setting;
  ProbeCount tokens, rows;  // asked tokens; rows all of whose tokens are right
  std::vector<ProbeCount> distances = std::vector<ProbeCount>(kDistances);
};

struct ProbePoint {
  std::int64_t step = 0;  // updates done
  double loss = 0;        // of that update, nats an asked token
  std::optional<double> accuracy;
};

struct ProbeOutcome {
  std::vector<ProbeResult> results;  // in the order of ProbeGroup::settings()
  std::vector<ProbePoint> curve;
  std::int64_t parameters = 0;
  double train_seconds = 0, eval_seconds = 0;
  std::string device;
};

// Collective: trains and measures, the same bits on every rank, and for every number of ranks that leaves the
// micro-batches as they are. Error(Exit::nonfinite) where a loss or gradient is not finite.
ProbeOutcome run_probe(const LoadedProbe& probe, Communicator& comm);

// The answers of `model` to the fresh rows of one setting. Collective.
ProbeResult measure_probe(const Decoder& model, const ProbeGroup& probe, const ProbeSetting& setting,
                          Communicator& comm);

struct ProbeOptions {
  std::string config;
  std::vector<std::string> overrides;
  std::vector<std::string> fail_if;  // "accuracy < 0.9": Exit::threshold when true
  bool json = false;                 // one object on stdout instead of the table
};
Exit probe(const ProbeOptions& options, Communicator& comm);

}  // namespace sieve
