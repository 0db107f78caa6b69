#include "train/load_config.h"

#include <algorithm>
#include <iterator>
#include <string_view>
#include <utility>

#include "core/error.h"
#include "train/demo.h"

namespace sieve {
namespace {

constexpr std::string_view kSinks[] = {"console", "jsonl", "csv", "tensorboard"};

using Problems = std::vector<std::pair<std::string, std::string>>;

void check_batch(const RunConfig& c, int world_size, Problems& problems) {
  if (!c.train.global_batch) return;
  const std::int64_t unit = micro_step_tokens(c, world_size), batch = *c.train.global_batch;
  if (batch % unit == 0) return;
  const std::int64_t below = batch / unit * unit, above = below + unit;
  problems.emplace_back("train.global_batch",
                        cat(batch, " tokens do not divide into micro-batches of ", c.train.micro_batch, " x ",
                            c.data.seq_len, " tokens on ", world_size, world_size == 1 ? " rank" : " ranks",
                            "; nearest valid values: ", below > 0 ? cat(below, " and ", above) : cat(above)));
}

void check_length(const RunConfig& c, int world_size, Problems& problems) {
  const int given = c.train.tokens.has_value() + c.train.steps.has_value() + c.train.epochs.has_value();
  if (given != 1) {
    problems.emplace_back("train", cat("give exactly one of tokens, steps and epochs (", given, " are given)"));
    return;
  }
  const std::int64_t batch = c.train.global_batch.value_or(micro_step_tokens(c, world_size));
  std::int64_t steps = c.train.steps.value_or(0);
  if (c.train.tokens) steps = (*c.train.tokens + batch - 1) / batch;
  if (steps > 0 && c.train.schedule.warmup >= steps)
    problems.emplace_back("train.schedule.warmup", cat("warm-up of ", c.train.schedule.warmup,
                                                       " updates is not shorter than the run of ", steps));
}

void check_optimizer(const RunConfig& c, Problems& problems) {
  const auto& o = c.train.optimizer;
  if (o.betas.size() != 2)
    problems.emplace_back("train.optimizer.betas",
                          cat("wants two numbers, [beta1, beta2]; ", o.betas.size(), " are given"));
  for (double beta : o.betas) {
    if (!(beta >= 0 && beta < 1)) problems.emplace_back("train.optimizer.betas", cat(beta, " is outside [0, 1)"));
  }
  if (c.train.schedule.min_lr > o.lr)
    problems.emplace_back("train.schedule.min_lr",
                          cat(c.train.schedule.min_lr, " is above train.optimizer.lr = ", o.lr));
}

void check_lists(const RunConfig& c, Problems& problems) {
  for (const auto& sink : c.log.sinks) {
    if (std::find(std::begin(kSinks), std::end(kSinks), sink) == std::end(kSinks))
      problems.emplace_back("log.sinks", cat("unknown sink \"", sink, "\" (console, jsonl, csv, tensorboard)"));
  }
  for (std::int64_t layer : c.train.recompute.layers) {
    if (layer < 0 || layer >= c.model.n_layers)
      problems.emplace_back("train.recompute.layers",
                            cat("layer ", layer, " does not exist; the model has layers 0 to ", c.model.n_layers - 1));
  }
  if (c.tokenizer.type == TokenizerType::hf_json && !c.tokenizer.path)
    problems.emplace_back("tokenizer.path", "type hf_json wants the path of a tokenizer.json");
  if (c.tokenizer.type == TokenizerType::byte && c.tokenizer.path)
    problems.emplace_back("tokenizer.path", "has no effect with type byte; remove it or set type: hf_json");
  const auto weighted =
      std::count_if(c.data.train.begin(), c.data.train.end(), [](const auto& s) { return s.weight.has_value(); });
  if (weighted != 0 && weighted != static_cast<std::ptrdiff_t>(c.data.train.size()))
    problems.emplace_back("data.train", cat(weighted, " of ", c.data.train.size(),
                                            " sources have a weight; give all of them one, or none"));
}

// The length of a run is one choice in three spellings: a nearer source's takes the place of a farther one's, as with
// any key. (train.steps=100 on the command line, where the file gives tokens.)
void settle_length(RunConfig& c, const ConfigTree& tree) {
  const auto order = [&](const char* path, bool set) { return set ? tree.origin_of(path).order : -1; };
  const int tokens = order("train.tokens", c.train.tokens.has_value());
  const int steps = order("train.steps", c.train.steps.has_value());
  const int epochs = order("train.epochs", c.train.epochs.has_value());
  const int nearest = std::max({tokens, steps, epochs});
  if (tokens < nearest) c.train.tokens.reset();
  if (steps < nearest) c.train.steps.reset();
  if (epochs < nearest) c.train.epochs.reset();
}

}  // namespace

void check_run_config(const RunConfig& config, const ConfigTree& tree, int world_size) {
  Problems problems;
  config.model.check(config.data.seq_len, [&](const std::string& path, const std::string& message) {
    problems.emplace_back("model." + path, message);
  });
  check_batch(config, world_size, problems);
  check_length(config, world_size, problems);
  check_optimizer(config, problems);
  check_lists(config, problems);
  tree.fail_all(problems);
}

LoadedConfig bind_run_config(const std::string& file, const std::vector<std::string>& overrides,
                             const std::string& base, const std::string& base_name) {
  LoadedConfig loaded;
  if (!base.empty()) {
    loaded.tree.load_text(base, base_name);
  } else if (file.empty()) {
    loaded.tree.load_text(demo_config(), std::string(kDemoName));
  }
  if (!file.empty()) loaded.tree.load(file);
  loaded.tree.overlay_environment();
  loaded.tree.overlay(overrides);
  loaded.tree.bind(loaded.config);
  settle_length(loaded.config, loaded.tree);
  return loaded;
}

LoadedConfig load_run_config(const std::string& file, const std::vector<std::string>& overrides, int world_size,
                             const std::string& base, const std::string& base_name) {
  LoadedConfig loaded = bind_run_config(file, overrides, base, base_name);
  check_run_config(loaded.config, loaded.tree, world_size);
  return loaded;
}

}  // namespace sieve
