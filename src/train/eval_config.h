// What `sieve eval` evaluates, as the user writes it (its own YAML file, or key=value beside a checkpoint).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/fields.h"
#include "io/yaml.h"
#include "train/eval_windows.h"

namespace sieve {

struct EvalDataConfig {
  std::optional<std::string> name;  // auto: the file's name without its ending
  std::string path;
  std::optional<std::string> document_separator;
  std::string field = "text";
  void fields(FieldVisitor& v);
};

// How a text is evaluated.
struct EvalSettings {
  EvalMethod method = EvalMethod::chunked;
  bool per_document = false;
  std::vector<std::int64_t> contexts;  // empty: data.seq_len of the training; method tail: tail_contexts
  double stride = 0.5;
  double score_from = 0;
  std::int64_t tail = 512;
  std::int64_t span = 16384;
  std::int64_t batch = 8;
  PositionScale position_scale = PositionScale::linear;
  std::int64_t position_buckets = 32;
  std::vector<std::int64_t> recall;
  std::optional<std::int64_t> max_tokens;
  void fields(FieldVisitor& v);
};

struct NamedEvalSettings : EvalSettings {
  std::string name;
  void fields(FieldVisitor& v);
};

struct EvalRunGroup : EvalSettings {
  std::vector<std::string> checkpoints;
  std::vector<EvalDataConfig> data;
  std::vector<NamedEvalSettings> protocols;
  std::optional<std::string> out;
  std::vector<std::string> fail_if;
  void fields(FieldVisitor& v);

  // What each text is evaluated by: `protocols`, without them the group's own settings, which have no name.
  std::vector<NamedEvalSettings> evaluations() const;
};

struct EvalFile {
  std::int64_t schema = 1;
  EvalRunGroup eval;
  void fields(FieldVisitor& v);
};

// eval.tail, twice as many and so on below eval.span, and eval.span.
std::vector<std::int64_t> tail_contexts(const EvalSettings& settings);

// Keys that a protocol does not give become those of the group. Then relations between keys: problems are reported
// together, each with its place.
void resolve_eval(EvalRunGroup& eval, const ConfigTree& tree);

}  // namespace sieve
