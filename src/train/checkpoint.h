// What a checkpoint holds and how it is found, read and compared. The directory itself (atomic, checksummed) is
// io/archive.h's business.
//   step_00001000/  manifest.json  config.yaml  config.json  tokenizer.json  state.json
//                   model.safetensors  sparsek.safetensors (scorers, where there are any)  optimizer.safetensors
//                   (moments)
// Weights are the fp32 masters. Nothing in it depends on the number of ranks.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "io/archive.h"
#include "io/safetensors.h"
#include "nn/decoder.h"
#include "train/adamw.h"
#include "train/run_config.h"

namespace sieve {

// Everything a run must remember beside weights and moments: data order and random numbers are functions of these
// counters.
struct TrainState {
  std::int64_t step = 0;     // finished steps, skipped ones included
  std::int64_t tokens = 0;   // seen by those steps
  std::int64_t updates = 0;  // applied by the optimizer
  std::int64_t skipped = 0;  // steps skipped for a non-finite gradient
  std::int64_t consecutive_skipped = 0;
  double seconds = 0;  // of training, all sessions together
  double loss = 0;     // of the last step
  double lr = 0;
  std::optional<double> val_loss;  // of this step, where it was validated
  std::optional<double> best_val_loss;
  std::string config_hash, tokenizer_hash, data_hash;
  std::string val_set;  // which text the validation losses are of: only those of one text can be compared
};
std::string state_text(const TrainState& state);  // state.json
TrainState parse_state(const std::string& text, const std::string& name);

std::string checkpoint_name(std::int64_t step);  // "step_00001000"
std::optional<std::int64_t> step_of_checkpoint(const std::string& name);

// Copies (or views) of what one checkpoint holds, ready to be written by any thread. Tensors may be on any device: the
// files are the same.
struct CheckpointContent {
  TrainState state;
  TensorMap model, scorers, optimizer;
  std::string config_yaml, config_json;
  std::shared_ptr<const Tokenizer> tokenizer;
};
// Views of the live tensors.
void collect_weights(const Decoder& model, TensorMap& weights, TensorMap& scorers);
ArchiveReport write_checkpoint(const std::filesystem::path& folder, const CheckpointContent& content);
std::string model_json(const ModelConfig& resolved);  // config.json

// Which of the checkpoints of a folder stay.
struct PruneRules {
  std::int64_t keep_last = 3, keep_every = 0, keep_best = 1;
};
// Removes what no rule keeps and points `latest` and `best` at the right ones. Returns what was removed.
std::vector<std::string> prune_checkpoints(const std::filesystem::path& folder, const PruneRules& rules);
// Sets the links alone, as prune_checkpoints would, and removes nothing.
void link_checkpoints(const std::filesystem::path& folder, const PruneRules& rules);

// A checkpoint opened for reading: every hash was checked. A damaged one is Error(Exit::data) that names the damage
// and, where there is one, the last good checkpoint beside it.
class Checkpoint {
 public:
  explicit Checkpoint(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return archive_.path(); }
  const TrainState& state() const { return state_; }
  const RunConfig& config() const { return config_; }  // as resolved when it was saved
  std::shared_ptr<const Tokenizer> tokenizer() const;
  const ArchiveReader& archive() const { return archive_; }

 private:
  ArchiveReader archive_;
  TrainState state_;
  RunConfig config_;
};

// `path` itself if it is a checkpoint; of a run folder or a folder of checkpoints: `best`, else `latest`, else the
// newest. Exit::data where there is none.
std::filesystem::path resolve_checkpoint(const std::filesystem::path& path);
// The newest checkpoint of a folder by step; empty where there is none.
std::filesystem::path newest_checkpoint(const std::filesystem::path& folder);
// The newest one whose every hash is right; empty where there is none.
std::filesystem::path last_good_checkpoint(const std::filesystem::path& folder);

// What loading did to every weight.
struct WeightReport {
  std::vector<std::string> mapped, fresh, unexpected,
      mismatched;               // fresh: in the model only; unexpected: in the file only
  std::string summary() const;  // "148 weights loaded, 24 new, 0 unused"
};
// Copies weights by name. Weights of the model that the checkpoint lacks must match one of `allow_new`; with `strict`
// every weight of the checkpoint must be used. Every breach is listed in one Error(Exit::data).
WeightReport load_weights(const Checkpoint& checkpoint, const Decoder& model, bool strict,
                          const std::vector<std::string>& allow_new);

// A model ready for evaluation or generation.
struct LoadedModel {
  RunConfig config;
  TrainState state;
  std::shared_ptr<const Tokenizer> tokenizer;
  std::unique_ptr<Decoder> model;
  std::filesystem::path path;
};
// `compute`: instead of the precision that the checkpoint's configuration names.
LoadedModel load_model(const std::filesystem::path& checkpoint_or_run, std::optional<DType> compute = {});

// Keys of a configuration that may change when a run goes on, and those that may not.
struct ResumeComparison {
  std::vector<std::string> refused;  // "train.optimizer.lr: 0.0006 in the checkpoint, 0.001 now"
  std::vector<std::string> warned;   // allowed, but the bits of the result may differ
};
ResumeComparison compare_for_resume(const RunConfig& saved, const RunConfig& now);
// Hash of the keys that must agree.
std::string resume_hash(const RunConfig& config);

}  // namespace sieve
