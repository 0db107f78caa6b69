#include "cli/training.h"

#include <memory>

namespace sieve {
namespace {

// Flags that stand for a configuration key.
struct KeyFlag {
  const char* flag;
  const char* key;
  const char* help;
};
constexpr KeyFlag kKeyFlags[] = {
    {"-o,--run-dir", "run.dir", "folder of the run"},
    {"--name", "run.name", "name of the run"},
    {"--device", "device.type", "auto, cpu or cuda"},
    {"--seed", "run.seed", "seed of the initial weights"},
};

}  // namespace

void add_training_command(CommandLine& line, const std::string& name, const std::string& summary,
                          const std::string& description, Exit (*run)(const TrainOptions&, Communicator&)) {
  auto options = std::make_shared<TrainOptions>();
  auto arguments = std::make_shared<ConfigArguments>();
  CLI::App* command = add_command(line, line.app, name, summary);
  command->footer(description);
  add_config_arguments(command, *arguments, "YAML file (none: a small demo configuration)");
  for (const KeyFlag& flag : kKeyFlags) {
    command->add_option_function<std::string>(
        flag.flag,
        [&line, key = flag.key](const std::string& value) { line.common_overrides.push_back(cat(key, "=", value)); },
        cat(flag.help, " (", flag.key, ")"));
  }
  command
      ->add_option("--resume", options->resume,
                   "auto: continue if there is something to continue; never; must; or a checkpoint's path")
      ->type_name("auto|never|must|PATH");
  command->add_flag("--dry-run", options->dry_run, "check everything, print the plan, train nothing");
  command->add_flag("--print-config", options->print_config, "print the resolved configuration and stop");
  command->add_flag("--json", options->json, "one JSON object about the finished run on stdout");
  command->add_flag_callback(
      "--no-progress", [options] { options->progress = false; }, "plain lines even on a terminal");
  command->callback([&line, options, arguments, run] {
    options->config = arguments->file();
    options->overrides = arguments->overrides(line);
    options->argv = line.argv;
    line.stops_on_request = true;
    line.action = [options, run](Communicator& comm) { return run(*options, comm); };
  });
}

}  // namespace sieve
