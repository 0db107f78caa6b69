#include "train/probe.h"

#include <memory>

#include "cli/command_line.h"

namespace sieve {

void add_probe(CommandLine& line) {
  auto options = std::make_shared<ProbeOptions>();
  auto arguments = std::make_shared<ConfigArguments>();
  CLI::App* command = add_command(line, line.app, "probe", "train a small model on a made-up task of memory");
  command->footer(
      "Trains a small model from scratch on rows that ask for what stood far back, and counts right answers:\n"
      "  sieve probe configs/probes/selective_copy.yaml\n"
      "  sieve probe configs/probes/selective_copy.yaml model.attention.pattern=[window]\n"
      "  sieve probe FILE probe.task=mqar probe.length=1Ki probe.items=32 --json\n"
      "Tasks: selective_copy, mqar, passkey, long_copy (docs/probes.md).");
  add_config_arguments(command, *arguments, "YAML file with device, model and probe groups (none: the defaults)");
  command->add_option("--fail-if", options->fail_if, "METRIC OP NUMBER, e.g. 'accuracy < 0.9' (may be repeated)")
      ->allow_extra_args(false);
  command->add_flag("--json", options->json, "one JSON object on stdout instead of the table");
  command->add_option_function<std::string>(
      "--device", [&line](const std::string& value) { line.common_overrides.push_back("device.type=" + value); },
      "auto, cpu or cuda (device.type)");
  command->callback([&line, options, arguments] {
    options->config = arguments->file();
    options->overrides = arguments->overrides(line);
    line.action = [options](Communicator& comm) { return probe(*options, comm); };
  });
}

}  // namespace sieve
