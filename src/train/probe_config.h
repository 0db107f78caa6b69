// What `sieve probe` trains and asks, as the user writes it (a YAML file of its own).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/fields.h"
#include "data/probe_task.h"
#include "io/yaml.h"
#include "train/run_config.h"

namespace sieve {

struct ProbeEvalGroup {
  std::int64_t examples = 128;
  std::int64_t every = 0;
  std::vector<std::int64_t> lengths, items;
  std::vector<double> depths;
  void fields(FieldVisitor& v);
};

struct ProbeGroup {
  ProbeTask task = ProbeTask::selective_copy;
  std::int64_t length = 512, items = 16;
  std::optional<std::int64_t> symbols, keys;
  std::optional<bool> marked;
  bool hints = true;
  std::optional<bool> vary;
  std::int64_t steps = 1000, batch = 16;
  std::optional<std::int64_t> micro_batch;
  double lr = 1e-3, weight_decay = 0.01, grad_clip = 1.0;
  ScheduleConfig schedule{.type = ScheduleType::constant, .warmup = 100};
  std::vector<std::string> freeze;
  std::int64_t seed = 1;
  ProbeEvalGroup eval;
  void fields(FieldVisitor& v);

  // Of a resolved group:
  ProbeSpec spec() const;
  std::vector<ProbeSetting> settings() const;  // what is evaluated: every length with every number of items and depth
};

struct ProbeConfig {
  std::int64_t schema = 1;
  DeviceGroup device;
  ModelConfig model;
  ProbeGroup probe;
  void fields(FieldVisitor& v);
};

struct LoadedProbe {
  ProbeConfig config;  // resolved
  ConfigTree tree;
};

// file < SIEVE_a__b environment (of this schema's groups: probe, model, device) < overrides; bound, checked, and every
// `auto` a number. Problems are reported together, each with its place: Error(Exit::config).
LoadedProbe load_probe(const std::string& file, const std::vector<std::string>& overrides, int world_size);

}  // namespace sieve
