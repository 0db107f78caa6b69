#include <filesystem>
#include <iostream>
#include <memory>

#include "cli/command_line.h"
#include "core/log.h"
#include "io/archive.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "train/checkpoint.h"
#include "train/format.h"

namespace sieve {
namespace {

namespace fs = std::filesystem;

void print_tensors(const ArchiveReader& archive, const ArchiveFile& file) {
  const SafetensorsFile tensors(archive.file(file.name));
  for (const SafetensorsEntry& t : tensors.entries()) {
    std::cout << "    " << t.name << "  " << t.dtype << " (";
    for (std::size_t i = 0; i < t.shape.size(); ++i) std::cout << (i ? ", " : "") << t.shape[i];
    std::cout << ")\n";
  }
}

Exit inspect(const std::string& target, bool tensors) {
  const ArchiveReader archive(resolve_checkpoint(target), ArchiveCheck::sizes);
  std::cout << archive.path().string() << "  " << format_bytes(static_cast<double>(archive.report().bytes)) << '\n';
  for (const ArchiveFile& file : archive.report().files) {
    std::cout << "  " << file.name << "  " << format_bytes(static_cast<double>(file.bytes)) << '\n';
    if (tensors && fs::path(file.name).extension() == ".safetensors") print_tensors(archive, file);
    if (file.name == "state.json") std::cout << "    " << read_json(archive.file(file.name)).dump() << '\n';
  }
  return Exit::ok;
}

Exit verify(const std::string& target) {
  const fs::path path = resolve_checkpoint(target);
  const std::vector<ArchiveDamage> damage = verify_archive(path);
  for (const ArchiveDamage& d : damage) log_error(d.message);
  if (damage.empty()) {
    log_info(path.string(), ": every file has its size and hash");
    return Exit::ok;
  }
  const fs::path good = last_good_archive(path.parent_path());
  fail(Exit::data, "ckpt verify", path.string(), " is damaged",
       good.empty() ? "; no other checkpoint beside it is whole"
                    : cat("; the last good one beside it is ", good.string()));
}

void add(CommandLine& line, CLI::App& parent, const std::string& name, const std::string& summary,
         const std::function<Exit(const std::string&)>& run, const std::function<void(CLI::App*)>& more = {}) {
  auto target = std::make_shared<std::string>();
  CLI::App* command = add_command(line, parent, name, summary);
  command->add_option("CHECKPOINT", *target, "a checkpoint, or a run folder (its latest checkpoint)")->required();
  if (more) more(command);
  command->callback([&line, target, run] { line.action = [target, run](Communicator&) { return run(*target); }; });
}

}  // namespace

void add_ckpt(CommandLine& line) {
  CLI::App* ckpt = line.app.add_subcommand("ckpt", "inspect and verify checkpoints");
  ckpt->require_subcommand(1);
  auto tensors = std::make_shared<bool>(false);
  add(
      line, *ckpt, "inspect", "files, state and (with --tensors) tensors",
      [tensors](const std::string& t) { return inspect(t, *tensors); },
      [tensors](CLI::App* command) { command->add_flag("--tensors", *tensors, "list every tensor"); });
  add(line, *ckpt, "verify", "read everything and compare sizes and hashes", verify);
}

}  // namespace sieve
