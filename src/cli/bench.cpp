#include <memory>

#include "cli/command_line.h"
#include "train/bench_step.h"

namespace sieve {

void add_bench(CommandLine& line) {
  CLI::App* bench = line.app.add_subcommand("bench", "time what this machine does");
  bench->require_subcommand(1);
  add_bench_attention(line, *bench);
  add_bench_scores(line, *bench);
  add_bench_decode(line, *bench);
  auto options = std::make_shared<BenchStepOptions>();
  auto arguments = std::make_shared<ConfigArguments>();
  CLI::App* command = add_command(line, *bench, "step", "the training step of a configuration on random tokens");
  command->footer(
      "Tokens per second, GFLOP/s, peak memory and the share of each kernel family, on random tokens. B and T are "
      "train.micro_batch and\n"
      "data.seq_len:\n  sieve bench step configs/gpt2-124m.yaml device.precision=bf16 train.micro_batch=2");
  add_config_arguments(command, *arguments, "YAML file");
  command->add_option("--steps", options->steps, "steps timed")->check(CLI::PositiveNumber);
  command->add_option("--warmup", options->warmup, "steps before")->check(CLI::NonNegativeNumber);
  command->add_option("--micro-batches", options->micro_batches, "micro-batches of a step and rank")
      ->check(CLI::PositiveNumber);
  command->add_flag("--json", options->json, "one JSON object on stdout");
  command->callback([&line, options, arguments] {
    options->config = arguments->file();
    options->overrides = arguments->overrides(line);
    line.action = [options](Communicator& comm) { return bench_step(*options, comm); };
  });
}

}  // namespace sieve
