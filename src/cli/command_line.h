// What the subcommands share. Each file of this folder parses one subcommand's arguments into a plain struct and names
// what to run; everything else lives below.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

#include "core/error.h"

namespace sieve {

class Communicator;

struct CommandLine {
  CLI::App app;
  std::vector<std::string> argv;              // as typed
  std::function<Exit(Communicator&)> action;  // set by the subcommand that was chosen
  bool stops_on_request = false;  // the action polls stop_requested(); other commands leave signals as they are
  std::vector<std::string> common_overrides;  // flags that name configuration keys, as key=value

  // Shared by every subcommand.
  std::string log_level = "info", color = "auto";
  int threads = 0, verbose = 0, quiet = 0;  // threads 0: all cores of this rank
};

// Adds a subcommand with the common flags.
CLI::App* add_command(CommandLine& line, CLI::App& parent, const std::string& name, const std::string& summary);
// For a command line that was refused: its first word that is no subcommand where one is meant, or that is no option
// there but resembles one, and what it resembles. Empty where there is neither.
std::string suggestion(const CommandLine& line);

// "CONFIG [key=value ...]": the first argument without '=' is the file. Error(Exit::config) on a second one.
struct ConfigArguments {
  std::vector<std::string> words;
  std::string file() const;
  std::vector<std::string> overrides(const CommandLine& line) const;
};
void add_config_arguments(CLI::App* command, ConfigArguments& arguments, const std::string& what);

void add_pretrain(CommandLine& line);
void add_finetune(CommandLine& line);
void add_eval(CommandLine& line);
void add_generate(CommandLine& line);
void add_probe(CommandLine& line);
void add_plan(CommandLine& line);
void add_data(CommandLine& line);
void add_tokenizer(CommandLine& line);
void add_ckpt(CommandLine& line);
void add_config(CommandLine& line);
void add_bench(CommandLine& line);
void add_bench_attention(CommandLine& line, CLI::App& bench);
void add_bench_decode(CommandLine& line, CLI::App& bench);
void add_bench_scores(CommandLine& line, CLI::App& bench);
void add_doctor(CommandLine& line);
void add_help(CommandLine& line);

}  // namespace sieve
