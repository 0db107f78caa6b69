#include "cli/command_line.h"

namespace sieve {

CLI::App* add_command(CommandLine& line, CLI::App& parent, const std::string& name, const std::string& summary) {
  CLI::App* command = parent.add_subcommand(name, summary);
  command->add_option("--threads", line.threads, "threads of this rank (default: its share of the cores)")
      ->check(CLI::PositiveNumber);
  command->add_option("--log-level", line.log_level, "debug, info, warn, error or off")
      ->check(CLI::IsMember({"debug", "info", "warn", "error", "off"}));
  command->add_option("--color", line.color, "auto (on a terminal, unless NO_COLOR is set), always or never")
      ->check(CLI::IsMember({"auto", "always", "never"}));
  command->add_flag("-v,--verbose", line.verbose, "as --log-level debug");
  command->add_flag("-q,--quiet", line.quiet, "as --log-level warn");
  return command;
}

std::string ConfigArguments::file() const {
  std::string found;
  for (const std::string& word : words) {
    if (word.find('=') != std::string::npos) continue;
    if (!found.empty())
      fail(Exit::config, "arguments", "two files, ", found, " and ", word, "; settings are written key=value");
    found = word;
  }
  return found;
}

std::vector<std::string> ConfigArguments::overrides(const CommandLine& line) const {
  std::vector<std::string> out = line.common_overrides;
  for (const std::string& word : words) {
    if (word.find('=') != std::string::npos) out.push_back(word);
  }
  return out;
}

void add_config_arguments(CLI::App* command, ConfigArguments& arguments, const std::string& what) {
  command->add_option("CONFIG", arguments.words, what + ", then settings: train.steps=100 model.n_layers=6 ...");
}

}  // namespace sieve
