// A configuration with a field of every kind.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/fields.h"

namespace sieve::test {

enum class Shade { dark, light };
inline constexpr std::string_view kShadeNames[] = {"dark", "light"};

struct KindConfig {
  Shade type = Shade::dark;
  std::int64_t window = 4;
  std::optional<std::int64_t> pool;
  void fields(FieldVisitor& v) {
    v.choice({.name = "type", .doc = "its shade"}, kShadeNames, type);
    v.integer({.name = "window", .doc = "keys", .min = 1, .max = 4096}, window);
    v.integer({.name = "pool", .doc = "multiples of k", .min = 1, .none = "exact"}, pool);
  }
};

struct SourceConfig {
  std::string path;
  double weight = 1;
  void fields(FieldVisitor& v) {
    v.text({.name = "path", .doc = "where"}, path);
    v.real({.name = "weight", .doc = "share", .min = 0}, weight);
  }
};

struct ModelConfig {
  std::int64_t layers = 2;
  bool tied = true;
  std::map<std::string, KindConfig> kinds{{"full", {}}};
  std::vector<std::string> pattern{"full"};
  void fields(FieldVisitor& v) {
    v.integer({.name = "layers", .doc = "blocks", .min = 1}, layers);
    v.boolean({.name = "tied", .doc = "one table for both ends"}, tied);
    v.table({.name = "kinds", .doc = "recipes"}, kinds);
    v.texts({.name = "pattern", .doc = "cycled over layers"}, pattern);
  }
};

struct SampleConfig {
  std::int64_t schema = 1;
  ModelConfig model;
  std::vector<SourceConfig> data;
  double lr = 6e-4;
  double timeout = 600;
  std::string name;
  std::optional<bool> deterministic;
  std::optional<double> slope, patience;
  std::optional<std::string> note;
  std::vector<double> betas{0.9, 0.95};
  std::vector<std::int64_t> steps;
  void fields(FieldVisitor& v) {
    v.integer({.name = "schema", .doc = "version", .min = 1, .max = 1}, schema);
    v.group({.name = "model", .doc = "the network"}, model);
    v.list({.name = "data", .doc = "what is read", .shorthand = "path"}, data);
    v.real({.name = "lr", .doc = "step size", .min = 0}, lr);
    v.duration({.name = "timeout", .doc = "seconds", .min = 1}, timeout);
    v.text({.name = "name", .doc = "of the run"}, name);
    v.boolean({.name = "deterministic", .doc = "same bits"}, deterministic);
    v.real({.name = "slope", .doc = "per token"}, slope);
    v.duration({.name = "patience", .doc = "seconds", .none = "null"}, patience);
    v.text({.name = "note", .doc = "free", .none = "null"}, note);
    v.reals({.name = "betas", .doc = "decay", .min = 0, .max = 1}, betas);
    v.integers({.name = "steps", .doc = "first and last"}, steps);
  }
};

}  // namespace sieve::test
