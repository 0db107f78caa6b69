#include <iostream>
#include <iterator>
#include <memory>

#include "cli/command_line.h"
#include "train/commands.h"

namespace sieve {

void add_generate(CommandLine& line) {
  auto options = std::make_shared<GenerateOptions>();
  CLI::App* command = add_command(line, line.app, "generate", "continue a text");
  command->footer(
      "Continues a prompt. Layers with SparseK + window hold k + W key-value rows per head, whatever the length.\n"
      "  sieve generate runs/demo --prompt 'The ' --max-new-tokens 200 --temperature 0.8 --top-k 50");
  command->add_option("CHECKPOINT", options->checkpoint, "a checkpoint, or a run folder (its best checkpoint)")
      ->required();
  command->add_option("--prompt", options->prompt, "text to continue; - reads it from standard input");
  command->add_option("--max-new-tokens", options->max_new_tokens, "tokens to generate")->check(CLI::PositiveNumber);
  command->add_option("--temperature", options->temperature, "divides the logits; 0 = always the likeliest token")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--top-k", options->top_k, "choose among the K likeliest tokens; 0 = all")
      ->check(CLI::NonNegativeNumber);
  command
      ->add_option("--top-p", options->top_p, "choose among the likeliest tokens that hold this probability together")
      ->check(CLI::Range(0.0, 1.0));
  command->add_option("--seed", options->seed, "seed of the choice");
  command->add_flag("--json", options->json, "one object on stdout: text, ids, rates, cache rows");
  command->add_option("--device", options->device, "auto, cpu or cuda");
  command->add_option("--precision", options->precision, "auto (the checkpoint's), fp32 or bf16");
  command->add_flag("--verify", options->verify,
                    "with --temperature 0: one forward over the whole text must find every new token the likeliest, "
                    "but for ties within 1e-3 (at most 0.5 %); exit code 7 otherwise");
  command->callback([&line, options] {
    line.action = [options](Communicator&) {
      if (options->prompt == "-")
        options->prompt.assign(std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>());
      return generate(*options);
    };
  });
}

}  // namespace sieve
