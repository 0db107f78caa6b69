#include "train/bench_decode.h"

#include <memory>

#include "cli/command_line.h"

namespace sieve {

void add_bench_decode(CommandLine& line, CLI::App& bench) {
  auto options = std::make_shared<BenchDecodeOptions>();
  auto arguments = std::make_shared<ConfigArguments>();
  CLI::App* command = add_command(line, bench, "decode", "generation token by token, after a prompt of random tokens");
  command->footer(
      "Microseconds a token, key-value rows and bytes, the allocator's peak. With SparseK + window layers none of them "
      "depends on the context:\n"
      "  sieve bench decode configs/gpt2-124m-sparsek.yaml device.precision=bf16 --batch 1 --context 65536");
  add_config_arguments(command, *arguments, "YAML file (random weights), or a checkpoint or run folder");
  command->add_option("--batch", options->batch, "sequences that go on from the same prompt")
      ->check(CLI::PositiveNumber);
  command->add_option("--context", options->context, "tokens of the prompt")->check(CLI::PositiveNumber);
  command->add_option("--tokens", options->tokens, "tokens timed, of each sequence")->check(CLI::PositiveNumber);
  command->add_option("--warmup", options->warmup, "tokens before")->check(CLI::NonNegativeNumber);
  command->add_flag("--json", options->json, "one JSON object on stdout");
  command->callback([&line, options, arguments] {
    options->config = arguments->file();
    options->overrides = arguments->overrides(line);
    line.action = [options](Communicator&) { return bench_decode(*options); };
  });
}

}  // namespace sieve
