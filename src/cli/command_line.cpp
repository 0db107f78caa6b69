#include "cli/command_line.h"

#include <algorithm>
#include <string_view>

#include "io/yaml.h"

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

namespace {

std::string nearest_of(const std::string& word, const std::vector<std::string>& names) {
  const std::string_view near = nearest_name(word, std::vector<std::string_view>(names.begin(), names.end()));
  return near.empty() ? "" : cat(" (did you mean \"", near, "\"?)");
}

std::vector<std::string> options_of(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

bool holds(const std::vector<std::string>& names, const std::string& word) {
  return std::find(names.begin(), names.end(), word) != names.end();
}

}  // namespace

std::string suggestion(const CommandLine& line) {
  const CLI::App* app = &line.app;
  for (std::size_t i = 1; i < line.argv.size() && line.argv[i] != "--"; ++i) {
    const std::string word = line.argv[i].substr(0, line.argv[i].find('='));
    if (word.compare(0, 2, "--") == 0) {
      const std::vector<std::string> options = options_of(*app);
      if (holds(options, word)) continue;
      const std::string near = nearest_of(word, options);
      if (near.empty()) continue;  // the parser's own words name it
      return cat("unknown option ", word, near);
    }
    const std::vector<const CLI::App*> commands = app->get_subcommands([](const CLI::App*) { return true; });
    if (commands.empty() || word.empty() || word[0] == '-') continue;
    std::vector<std::string> names;
    for (const CLI::App* command : commands) names.push_back(command->get_name());
    if (!holds(names, word)) return cat("unknown command ", word, nearest_of(word, names));
    app = app->get_subcommand(word);
  }
  return "";
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
