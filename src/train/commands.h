// What the subcommands of the program call. The command line is parsed elsewhere; here an invocation is a plain struct.
// Flags that name a configuration key (-o, --name, --seed, --device, ...) arrive as overrides ("run.dir=out",
// "run.seed=7"). Every function throws Error with the exit code of the failure, or returns how it ended.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/error.h"

namespace sieve {

class Communicator;

struct TrainOptions {
  std::string config;                  // a YAML file; empty: the built-in defaults, completed by overrides
  std::vector<std::string> overrides;  // "train.steps=100", later ones win
  std::string resume = "never";        // auto | never | must | PATH of a checkpoint
  bool dry_run = false;                // check everything, print the plan, train nothing
  bool print_config = false;           // print the resolved configuration on stdout and stop
  bool progress = true;                // redraw one line on a terminal
  bool json = false;                   // one JSON object about the finished run on stdout
  std::vector<std::string> argv;       // as typed, kept in config.input/
};
// Train from scratch. ok, nonfinite, preempted or interrupted.
Exit pretrain(const TrainOptions& options, Communicator& comm);
// A new run whose weights come from init_from (weights only: step, optimizer and data start anew).
Exit finetune(const TrainOptions& options, Communicator& comm);

struct EvalOptions {
  std::string target;  // a YAML file with an eval group, or a checkpoint, or a run folder (its best or latest)
  std::vector<std::string> overrides;  // "eval.data=wikitext.txt"
  std::vector<std::string> fail_if;    // "token_ppl > 30": Exit::threshold when true; added to eval.fail_if
  bool json = false;                   // the report on stdout instead of the table
  std::string device = "auto";         // auto | cpu | cuda
};
Exit evaluate(const EvalOptions& options, Communicator& comm);

struct GenerateOptions {
  std::string checkpoint;  // a checkpoint, or a run folder (its best or latest)
  std::string prompt;
  std::int64_t max_new_tokens = 128;
  double temperature = 1.0;  // 0: the likeliest token
  std::int64_t top_k = 0;    // 0: all tokens
  double top_p = 1.0;        // 1: all tokens
  std::uint64_t seed = 0;
  bool json = false;  // one object on stdout: text, ids, rates, cache rows
  std::string device = "auto";
  std::string precision = "auto";  // auto: the checkpoint's; fp32 | bf16
  bool verify = false;             // greedy texts: Exit::threshold where the full forward says otherwise
};
Exit generate(const GenerateOptions& options);

struct PlanOptions {
  std::string config;
  std::vector<std::string> overrides;
  int world_size = 1;
  std::optional<double> peak_tflops;  // of one rank; absent: log.peak_tflops, else that of `gpu`, else measured here
  std::optional<std::string> gpu;     // plan for such GPUs (a100, h100, h200, b200), here or not
  bool json = false;
};
Exit plan(const PlanOptions& options);

// `config check`: loads and cross-checks a configuration of pretrain, or of eval or probe where the file is one. Throws
// on the first error.
void check_config(const std::string& config, const std::vector<std::string>& overrides, int world_size);

}  // namespace sieve
