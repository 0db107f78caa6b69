#include "train/run_config.h"

#include <algorithm>
#include <cmath>

#include "core/shape.h"

namespace sieve {

std::int64_t micro_step_tokens(const RunConfig& c, int world_size) {
  return checked_product(checked_product(c.train.micro_batch, c.data.seq_len, "train.micro_batch"), world_size,
                         "train.micro_batch");
}

void RunGroup::fields(FieldVisitor& v) {
  v.text({"name", "name of the run"}, name);
  v.text({"dir", "folder of the run; auto = runs/<name>"}, dir);
  v.integer({.name = "seed", .doc = "seed of initial weights and of samples", .min = 0}, seed);
  v.boolean(
      {"deterministic",
       "gradients are summed over a fixed tree, so that the result does not depend on ranks, threads and accumulation; "
       "auto = true on the cpu, false on a GPU"},
      deterministic);
  v.duration({.name = "max_time",
              .doc = "save and exit with 75 after this much time, in seconds or as 11h50m",
              .min = 0,
              .none = "null"},
             max_time);
}

void DeviceGroup::fields(FieldVisitor& v) {
  v.choice({"type", "where to compute; auto = a GPU where there is one, else the CPU"}, kDeviceTypeNames, type);
  v.choice(
      {"precision", "type of activations and of the weights' compute copies; master weights and gradients stay fp32"},
      kPrecisionNames, precision);
}

void ModelGroup::fields(FieldVisitor& v) {
  v.boolean(
      {"from_checkpoint", "the keys below start from the model of init_from.path; auto = true where that is given"},
      from_checkpoint);
  ModelConfig::fields(v);
}

void TokenizerGroup::fields(FieldVisitor& v) {
  v.choice({"type",
            "byte (256 bytes and an end-of-text token) or hf_json (byte-level BPE in a Hugging Face tokenizer.json)"},
           kTokenizerTypeNames, type);
  v.text({.name = "path", .doc = "hf_json: the tokenizer.json", .none = "null"}, path);
}

void DataSourceConfig::fields(FieldVisitor& v) {
  v.text({"path", "an HDF5 shard, a folder of shards or a pattern of shards (*, ?, [])"}, path);
  v.real({.name = "weight",
          .doc = "share of the samples, relative to the other sources; all sources have one or none has",
          .min = 0,
          .none = "null"},
         weight);
}

void ShuffleConfig::fields(FieldVisitor& v) {
  v.integer({.name = "seed", .doc = "seed of the order of the samples", .min = 0}, seed);
}

void DataGroup::fields(FieldVisitor& v) {
  v.list({.name = "train", .doc = "training shards; a plain pattern stands for {path: pattern}", .shorthand = "path"},
         train);
  v.texts({"val", "validation shards: complete and in fixed order, every time"}, val);
  v.integer({.name = "seq_len", .doc = "tokens of a sequence", .min = 1}, seq_len);
  v.group({"shuffle", "order of the training samples; the same on any number of ranks"}, shuffle);
  v.integer({.name = "prefetch", .doc = "batches that the loader reads ahead", .min = 1, .max = 1024}, prefetch);
}

void OptimizerConfig::fields(FieldVisitor& v) {
  v.choice({"type", "AdamW (arXiv 1711.05101)"}, kOptimizerNames, type);
  v.real({.name = "lr", .doc = "peak learning rate", .min = 0}, lr);
  v.reals({"betas", "decay of the first and second moment"}, betas);
  v.real({.name = "eps", .doc = "added to the root of the second moment", .min = 0}, eps);
  v.real({.name = "weight_decay", .doc = "decoupled decay of matrices; never of norms, biases and scorers", .min = 0},
         weight_decay);
}

void NonfiniteConfig::fields(FieldVisitor& v) {
  v.choice({"action", "an update with a non-finite loss or gradient is skipped, or ends the run with exit code 5"},
           kNonfiniteNames, action);
  v.integer(
      {.name = "max", .doc = "skip: so many consecutive updates may be skipped, the next one ends the run", .min = 0},
      max);
}

void TrainGroup::fields(FieldVisitor& v) {
  v.integer({.name = "tokens",
             .doc = "length of the run in tokens; of tokens, steps and epochs exactly one, the nearest source's",
             .min = 1,
             .none = "null"},
            tokens);
  v.integer({.name = "steps", .doc = "length of the run in updates", .min = 1, .none = "null"}, steps);
  v.real({.name = "epochs", .doc = "length of the run in passes over the training data", .min = 1e-9, .none = "null"},
         epochs);
  v.integer(
      {.name = "global_batch", .doc = "tokens of an update, over all ranks; auto = one micro-batch per rank", .min = 1},
      global_batch);
  v.integer({.name = "micro_batch", .doc = "sequences of one forward and backward on one rank", .min = 1}, micro_batch);
  v.group({"optimizer", "the update rule"}, optimizer);
  v.group({"schedule", "learning rate over the run"}, schedule);
  v.real({.name = "grad_clip", .doc = "largest global norm of the gradient; 0 = no clipping", .min = 0}, grad_clip);
  v.group({"nonfinite", "what happens when a loss or gradient is not finite"}, nonfinite);
  v.group({"recompute", "parts that are computed again in backward instead of being kept"}, recompute);
  v.texts({"freeze", "patterns of parameter names that are not trained, such as \"*.sparsek.*\""}, freeze);
}

void ParallelGroup::fields(FieldVisitor& v) {
  v.integer({.name = "bucket", .doc = "bytes of gradients that travel in one message", .min = 1}, bucket);
  v.duration(
      {.name = "timeout", .doc = "a rank without progress for this long ends the run (seconds, or 10m)", .min = 1},
      timeout);
  v.boolean({"overlap", "gradients travel while backward still runs; false is for measuring: the bits are the same"},
            overlap);
  v.integer({.name = "zero",
             .doc = "1: each rank keeps the optimizer's moments of its part of the weights (ZeRO stage 1, arXiv "
                    "1910.02054), 8 bytes a parameter shared by all ranks; 0: every rank keeps all",
             .min = 0,
             .max = 1},
            zero);
}

void CheckpointGroup::fields(FieldVisitor& v) {
  v.integer({.name = "every", .doc = "updates between checkpoints; 0 = only when the run ends", .min = 0}, every);
  v.real({.name = "every_minutes", .doc = "minutes between saves, beside every", .min = 0.001, .none = "null"},
         every_minutes);
  v.integer({.name = "keep_last", .doc = "newest checkpoints to keep", .min = 1}, keep_last);
  v.integer({.name = "keep_every", .doc = "keep those of every so many updates for good; 0 = none", .min = 0},
            keep_every);
  v.integer({.name = "keep_best", .doc = "checkpoints with the lowest validation loss to keep", .min = 0}, keep_best);
  v.boolean({"async", "write in the background from a copy in memory"}, async);
}

void EvalGroup::fields(FieldVisitor& v) {
  v.integer({.name = "every", .doc = "updates between validations; 0 = none between start and end", .min = 0}, every);
  v.integer(
      {.name = "tokens", .doc = "first tokens of the validation set to use; null = all", .min = 1, .none = "null"},
      tokens);
  v.boolean({"at_start", "validate before the first update"}, at_start);
  v.boolean({"at_end", "validate after the last update"}, at_end);
}

void SampleGroup::fields(FieldVisitor& v) {
  v.integer({.name = "every", .doc = "updates between samples (samples/step_N.txt); 0 = never", .min = 0}, every);
  v.texts({"prompts", "texts to continue"}, prompts);
  v.integer({.name = "max_new_tokens", .doc = "tokens to generate per prompt", .min = 1}, max_new_tokens);
  v.real({.name = "temperature", .doc = "divides the logits; 0 = the likeliest token", .min = 0}, temperature);
  v.integer({.name = "top_k", .doc = "draw from so many likeliest tokens; 0 = all", .min = 0}, top_k);
  v.real({.name = "top_p",
          .doc = "draw from the likeliest tokens that hold this probability together",
          .min = 0,
          .max = 1},
         top_p);
}

void LogGroup::fields(FieldVisitor& v) {
  v.integer({.name = "every", .doc = "updates between rows", .min = 1}, every);
  v.texts({"sinks", "where rows go: console, jsonl, csv, tensorboard"}, sinks);
  v.boolean({"per_layer", "also selection statistics of every SparseK layer"}, per_layer);
  v.real({.name = "peak_tflops",
          .doc = "peak of one rank for the MFU, in TFLOP/s; auto = a matrix product timed at the start",
          .min = 1e-6},
         peak_tflops);
}

void InitFromGroup::fields(FieldVisitor& v) {
  v.text(
      {.name = "path", .doc = "finetune: a checkpoint or run folder whose weights the run starts from", .none = "null"},
      path);
  v.boolean({"strict",
             "every weight of the checkpoint must be used, and every weight of the model be given or match allow_new"},
            strict);
  v.texts({"allow_new", "patterns of parameter names that may start anew, such as \"*.sparsek.*\""}, allow_new);
}

void RunConfig::fields(FieldVisitor& v) {
  v.integer({.name = "schema", .doc = "version of this schema", .min = 1, .max = 1}, schema);
  v.group({"run", "the run and its folder"}, run);
  v.group({"device", "where and in which precision to compute"}, device);
  v.group({"model", "the decoder"}, model);
  v.group({"tokenizer", "text to tokens"}, tokenizer);
  v.group({"data", "token shards"}, data);
  v.group({"train", "length, batch, optimizer"}, train);
  v.group({"parallel", "many ranks"}, parallel);
  v.group({"checkpoint", "saving"}, checkpoint);
  v.group({"eval", "validation during training"}, eval);
  v.group({"sample", "samples during training"}, sample);
  v.group({"log", "metrics and console"}, log);
  v.group({"init_from", "starting weights of finetune"}, init_from);
}

bool RunConfig::has_sink(std::string_view name) const {
  return std::find(log.sinks.begin(), log.sinks.end(), name) != log.sinks.end();
}

RunScale scale_of(const RunConfig& config, int world_size, std::int64_t samples_per_epoch) {
  RunScale scale;
  scale.tokens_per_step = config.train.global_batch.value_or(micro_step_tokens(config, world_size));
  scale.samples_per_step = scale.tokens_per_step / config.data.seq_len;
  scale.micro_batches = scale.samples_per_step / config.train.micro_batch;
  scale.accumulation = scale.micro_batches / world_size;
  if (config.train.steps) {
    scale.steps = *config.train.steps;
  } else if (config.train.tokens) {
    scale.steps = (*config.train.tokens + scale.tokens_per_step - 1) / scale.tokens_per_step;
  } else {
    const double samples = *config.train.epochs * static_cast<double>(samples_per_epoch);
    scale.steps = static_cast<std::int64_t>(std::ceil(samples / static_cast<double>(scale.samples_per_step)));
  }
  return scale;
}

bool matches_pattern(std::string_view pattern, std::string_view name) {
  // Greedy with one point of return: a later * makes the choices of earlier ones irrelevant.
  std::size_t p = 0, n = 0, star = std::string_view::npos, resume = 0;
  while (n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++, resume = n;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == name[n])) {
      ++p, ++n;
    } else if (star != std::string_view::npos) {
      p = star + 1, n = ++resume;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

}  // namespace sieve
