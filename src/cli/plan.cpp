#include <memory>

#include "cli/command_line.h"
#include "train/commands.h"

namespace sieve {

void add_plan(CommandLine& line) {
  auto options = std::make_shared<PlanOptions>();
  auto arguments = std::make_shared<ConfigArguments>();
  CLI::App* command =
      add_command(line, line.app, "plan", "parameters, FLOPs, memory, steps and time of a configuration");
  command->footer(
      "What a run would cost: parameters, FLOPs per token counted from each layer's real attention pattern (with the "
      "full-attention\n"
      "equivalent beside it), memory per rank, steps, tokens and time. Trains nothing.");
  add_config_arguments(command, *arguments, "YAML file");
  command->add_option("--world-size", options->world_size, "ranks")->check(CLI::PositiveNumber);
  command->add_option("--peak-tflops", options->peak_tflops, "peak TFLOP/s of one rank (default: measured here)")
      ->check(CLI::PositiveNumber);
  command->add_option("--gpu", options->gpu, "plan for such GPUs, here or not: a100, h100, h200 or b200");
  command->add_flag("--json", options->json, "one JSON object on stdout");
  command->callback([&line, options, arguments] {
    options->config = arguments->file();
    options->overrides = arguments->overrides(line);
    line.action = [options](Communicator&) { return plan(*options); };
  });
}

}  // namespace sieve
