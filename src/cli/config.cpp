#include <algorithm>
#include <iostream>
#include <memory>
#include <utility>

#include "cli/command_line.h"
#include "core/log.h"
#include "io/yaml.h"
#include "train/commands.h"
#include "train/eval_config.h"
#include "train/load_config.h"
#include "train/probe_config.h"

namespace sieve {
namespace {

std::string range_text(const FieldInfo& field) {
  if (!field.choices.empty()) {
    std::string text;
    for (const std::string& c : field.choices) text += (text.empty() ? "" : " | ") + c;
    return text;
  }
  const bool low = field.min > -1e300, high = field.max < 1e300;
  if (low && high) return cat(field.min, " to ", field.max);
  if (low) return cat("at least ", field.min);
  return high ? cat("at most ", field.max) : "";
}

void explain_field(const FieldInfo& field) {
  std::cout << field.path << '\n' << "  " << field.doc << '\n';
  if (!field.is_leaf) return;
  std::cout << "  type     " << field.type << '\n';
  if (const std::string range = range_text(field); !range.empty()) std::cout << "  values   " << range << '\n';
  std::cout << "  default  " << field.default_text << '\n';
}

// Keys at or below `group` of a command that has a configuration of its own.
template <class File>
std::vector<FieldInfo> fields_of(const std::string& group) {
  std::vector<FieldInfo> fields = list_fields(File{});
  const auto elsewhere = [&](const FieldInfo& f) { return f.path != group && f.path.rfind(group + ".", 0) != 0; };
  fields.erase(std::remove_if(fields.begin(), fields.end(), elsewhere), fields.end());
  return fields;
}
std::vector<FieldInfo> eval_fields() { return fields_of<EvalFile>("eval"); }
std::vector<FieldInfo> probe_fields() { return fields_of<ProbeConfig>("probe"); }

void print_table(const std::vector<FieldInfo>& fields) {
  std::cout << "| key | type | default | values | meaning |\n|---|---|---|---|---|\n";
  for (const FieldInfo& field : fields) {
    if (!field.is_leaf) {
      std::cout << "| **`" << field.path << "`** | | | | *" << field.doc << "* |\n";
      continue;
    }
    std::string range = range_text(field);
    for (std::size_t at = 0; (at = range.find('|', at)) != std::string::npos; at += 2) range.insert(at, "\\");
    std::cout << "| `" << field.path << "` | " << field.type << " | `" << field.default_text << "` | " << range << " | "
              << field.doc << " |\n";
  }
}

// docs/configuration.md: one table per schema, in field order.
void print_markdown() {
  std::cout << "# Configuration\n\nEvery key, generated from the field lists of the code by `sieve config explain "
               "--markdown`. Written in YAML;\n"
               "`key.path=value` on the command line and `SIEVE_key__path=value` in the environment say the same. "
               "Precedence: built-in,\n"
               "`extends`, file, environment, command line. Whole numbers take suffixes (512Ki, 10B = 10^10, 4M), "
               "durations are written\n"
               "90s, 10m or 11h50m, and `auto` or `null` stand where the default says so.\n\n"
               "## Training and planning\n\n";
  print_table(list_fields(RunConfig{}));
  std::cout << "\n## `sieve eval`\n\n"
               "These keys go beside a checkpoint (`sieve eval runs/demo eval.data=book.txt`) or into a YAML file that "
               "`sieve eval`\nis given instead of one. They are no keys of a training run, whose own `eval` group is "
               "above.\n[evaluation.md](evaluation.md) says what is measured and how it is reported.\n\n";
  print_table(eval_fields());
  std::cout
      << "\n## `sieve probe`\n\n"
         "A probe's file has this group beside `schema`, `device` and `model`, whose keys are those of a training "
         "run.\n[probes.md](probes.md) describes the tasks and what is measured.\n\n";
  print_table(probe_fields());
}

Exit explain(const std::string& key, bool markdown) {
  if (markdown) {
    print_markdown();
    return Exit::ok;
  }
  std::vector<FieldInfo> fields = list_fields(RunConfig{});
  for (FieldInfo& field : eval_fields()) {
    field.doc = "sieve eval: " + field.doc;
    fields.push_back(std::move(field));
  }
  for (FieldInfo& field : probe_fields()) fields.push_back(std::move(field));
  bool found = false;
  std::vector<std::string_view> names;
  for (const FieldInfo& field : fields) {
    if (field.is_leaf) names.push_back(field.path);
    const bool below = field.path.rfind(key + ".", 0) == 0;
    if (!key.empty() && field.path != key && !below) continue;
    if (found) std::cout << '\n';
    explain_field(field);
    found = true;
  }
  if (found) return Exit::ok;
  const std::string_view near = nearest_name(key, names);
  fail(Exit::config, "config explain", "no key \"", key, "\"",
       near.empty() ? "" : cat(" (did you mean \"", near, "\"?)"), "; sieve config explain lists all");
}

void add_check(CommandLine& line, CLI::App& parent) {
  auto arguments = std::make_shared<ConfigArguments>();
  auto world = std::make_shared<int>(1);
  CLI::App* command =
      add_command(line, parent, "check", "load a configuration and report every problem with its place");
  add_config_arguments(command, *arguments, "YAML file");
  command->add_option("--world-size", *world, "ranks")->check(CLI::PositiveNumber);
  command->callback([&line, arguments, world] {
    line.action = [&line, arguments, world](Communicator&) {
      check_config(arguments->file(), arguments->overrides(line), *world);
      log_info(arguments->file(), ": no problems found");
      return Exit::ok;
    };
  });
}

void add_show(CommandLine& line, CLI::App& parent) {
  auto arguments = std::make_shared<ConfigArguments>();
  CLI::App* command = add_command(line, parent, "show", "every key with its value and where that came from");
  add_config_arguments(command, *arguments, "YAML file");
  command->callback([&line, arguments] {
    line.action = [&line, arguments](Communicator&) {
      const LoadedConfig loaded = load_run_config(arguments->file(), arguments->overrides(line), 1);
      std::cout << dump_yaml(loaded.config, loaded.tree);
      return Exit::ok;
    };
  });
}

void add_explain(CommandLine& line, CLI::App& parent) {
  auto key = std::make_shared<std::string>();
  auto markdown = std::make_shared<bool>(false);
  CLI::App* command =
      add_command(line, parent, "explain", "what a key means, its type, default and range (no KEY: all keys)");
  command->add_option("KEY", *key, "dotted path, e.g. train.schedule.warmup, or a group");
  command->add_flag("--markdown", *markdown, "all keys as docs/configuration.md");
  command->callback(
      [&line, key, markdown] { line.action = [key, markdown](Communicator&) { return explain(*key, *markdown); }; });
}

}  // namespace

void add_config(CommandLine& line) {
  CLI::App* config = line.app.add_subcommand("config", "check, show and explain configurations");
  config->require_subcommand(1);
  add_check(line, *config);
  add_show(line, *config);
  add_explain(line, *config);
}

}  // namespace sieve
