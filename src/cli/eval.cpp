#include <memory>

#include "cli/command_line.h"
#include "train/commands.h"

namespace sieve {

void add_eval(CommandLine& line) {
  auto options = std::make_shared<EvalOptions>();
  auto arguments = std::make_shared<ConfigArguments>();
  CLI::App* command = add_command(line, line.app, "eval", "perplexity of a checkpoint, and loss by position");
  command->footer(
      "Perplexity by token, word and byte, bits per byte, loss by position. The protocol is part of every output:\n"
      "  sieve eval runs/demo                                   chunked: disjoint windows of the validation text\n"
      "  sieve eval runs/demo eval.data=book.txt eval.method=sliding eval.stride=0.5\n"
      "  sieve eval evaluations.yaml --json                     several texts and named protocols "
      "(docs/evaluation.md)\n"
      "  sieve eval runs/demo --fail-if 'token_ppl > 30'        exit code 7 when true");
  add_config_arguments(command, *arguments,
                       "YAML file with an eval group, a checkpoint, or a run folder (its best checkpoint)");
  command->add_option("--fail-if", options->fail_if, "METRIC OP NUMBER, e.g. 'token_ppl > 30' (may be repeated)")
      ->allow_extra_args(false);
  command->add_flag("--json", options->json, "the report on stdout instead of the table");
  command->add_option("--device", options->device, "auto, cpu or cuda");
  command->callback([&line, options, arguments] {
    options->target = arguments->file();
    if (options->target.empty()) fail(Exit::config, "eval", "name a checkpoint, a run folder or a YAML file");
    options->overrides = arguments->overrides(line);
    line.action = [options](Communicator& comm) { return evaluate(*options, comm); };
  });
}

}  // namespace sieve
