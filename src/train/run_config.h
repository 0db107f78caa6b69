// The configuration of a run, as the user writes it (docs/configuration.md is generated from these field lists).
// Loading has three stages: bind (strict YAML, one key at a time), check (relations between keys), resolve (every
// `auto` becomes a number once the tokenizer, the shards and the world size are known). The resolved configuration is
// what a checkpoint stores.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/fields.h"
#include "nn/decoder.h"
#include "train/schedule.h"

namespace sieve {

struct RunGroup {
  std::string name = "run";
  std::optional<std::string> dir;  // auto: runs/<name>
  std::int64_t seed = 1337;
  std::optional<bool> deterministic;  // auto: true on the cpu
  std::optional<double> max_time;     // seconds
  void fields(FieldVisitor& v);
};

enum class DeviceType { automatic, cpu, cuda };
inline constexpr std::string_view kDeviceTypeNames[] = {"auto", "cpu", "cuda"};
enum class Precision { fp32, bf16 };
inline constexpr std::string_view kPrecisionNames[] = {"fp32", "bf16"};

struct DeviceGroup {
  DeviceType type = DeviceType::automatic;
  Precision precision = Precision::fp32;
  void fields(FieldVisitor& v);
};

// The model group of a run file: a ModelConfig whose starting point may be a checkpoint's.
struct ModelGroup : ModelConfig {
  std::optional<bool> from_checkpoint;  // auto: true where init_from.path is given
  void fields(FieldVisitor& v);
};

enum class TokenizerType { byte, hf_json };
inline constexpr std::string_view kTokenizerTypeNames[] = {"byte", "hf_json"};

struct TokenizerGroup {
  TokenizerType type = TokenizerType::byte;
  std::optional<std::string> path;  // hf_json: a tokenizer.json
  void fields(FieldVisitor& v);
};

struct DataSourceConfig {
  std::string path;              // a shard or a pattern of shards
  std::optional<double> weight;  // relative to the other sources
  void fields(FieldVisitor& v);
};

struct ShuffleConfig {
  std::int64_t seed = 0;
  void fields(FieldVisitor& v);
};

struct DataGroup {
  std::vector<DataSourceConfig> train;
  std::vector<std::string> val;
  std::int64_t seq_len = 256;
  ShuffleConfig shuffle;
  std::int64_t prefetch = 4;
  void fields(FieldVisitor& v);
};

enum class OptimizerType { adamw };
inline constexpr std::string_view kOptimizerNames[] = {"adamw"};

struct OptimizerConfig {
  OptimizerType type = OptimizerType::adamw;
  double lr = 1e-3;
  std::vector<double> betas{0.9, 0.95};
  double eps = 1e-8;
  double weight_decay = 0.1;
  void fields(FieldVisitor& v);
};

enum class NonfiniteAction { skip, stop };
inline constexpr std::string_view kNonfiniteNames[] = {"skip", "stop"};

struct NonfiniteConfig {
  NonfiniteAction action = NonfiniteAction::skip;
  std::int64_t max = 3;
  void fields(FieldVisitor& v);
};

struct TrainGroup {
  std::optional<std::int64_t> tokens, steps;  // exactly one of tokens, steps, epochs
  std::optional<double> epochs;
  std::optional<std::int64_t> global_batch;  // tokens per update; auto: one micro-batch per rank
  std::int64_t micro_batch = 8;              // sequences of one forward and backward, per rank
  OptimizerConfig optimizer;
  ScheduleConfig schedule;
  double grad_clip = 1.0;
  NonfiniteConfig nonfinite;
  RecomputeConfig recompute;
  std::vector<std::string> freeze;  // patterns of parameter names
  void fields(FieldVisitor& v);
};

struct ParallelGroup {
  std::int64_t bucket = 25 << 20;  // bytes
  double timeout = 600;            // seconds
  bool overlap = true;
  std::int64_t zero = 0;  // stage of ZeRO: 0 or 1
  void fields(FieldVisitor& v);
};

struct CheckpointGroup {
  std::int64_t every = 1000;  // updates; 0: only at the end
  std::optional<double> every_minutes;
  std::int64_t keep_last = 3;
  std::int64_t keep_every = 0;
  std::int64_t keep_best = 1;
  bool async = true;
  void fields(FieldVisitor& v);
};

struct EvalGroup {
  std::int64_t every = 500;            // updates; 0: never between start and end
  std::optional<std::int64_t> tokens;  // null: the whole validation set
  bool at_start = true, at_end = true;
  void fields(FieldVisitor& v);
};

struct SampleGroup {
  std::int64_t every = 0;  // updates; 0: never
  std::vector<std::string> prompts{"The "};
  std::int64_t max_new_tokens = 64;
  double temperature = 0.8;
  std::int64_t top_k = 50;
  double top_p = 1.0;
  void fields(FieldVisitor& v);
};

struct LogGroup {
  std::int64_t every = 10;
  std::vector<std::string> sinks{"console", "jsonl", "csv", "tensorboard"};
  bool per_layer = false;
  std::optional<double> peak_tflops;  // of one rank, for the MFU; auto: measured at start
  void fields(FieldVisitor& v);
};

struct InitFromGroup {
  std::optional<std::string> path;  // a checkpoint or run folder
  bool strict = true;
  std::vector<std::string> allow_new;
  void fields(FieldVisitor& v);
};

struct RunConfig {
  std::int64_t schema = 1;
  RunGroup run;
  DeviceGroup device;
  ModelGroup model;
  TokenizerGroup tokenizer;
  DataGroup data;
  TrainGroup train;
  ParallelGroup parallel;
  CheckpointGroup checkpoint;
  EvalGroup eval;
  SampleGroup sample;
  LogGroup log;
  InitFromGroup init_from;
  void fields(FieldVisitor& v);

  std::string run_dir() const { return run.dir ? *run.dir : "runs/" + run.name; }
  bool has_sink(std::string_view name) const;
};

// What the configuration means for this world size; plain arithmetic. `samples_per_epoch`: sequences of the training
// data, used where the length is given in epochs.
struct RunScale {
  std::int64_t steps = 0;             // updates of the whole run
  std::int64_t tokens_per_step = 0;   // global batch
  std::int64_t samples_per_step = 0;  // sequences of a global batch
  std::int64_t micro_batches = 0;     // of a global batch, over all ranks
  std::int64_t accumulation = 0;      // of a global batch, on one rank
};
// Tokens of one micro-batch on every rank: what a global batch is a multiple of.
std::int64_t micro_step_tokens(const RunConfig& config, int world_size);
RunScale scale_of(const RunConfig& config, int world_size, std::int64_t samples_per_epoch);

// Glob match of a whole name: * any run of characters, ? one.
bool matches_pattern(std::string_view pattern, std::string_view name);

}  // namespace sieve
