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

// A checkpoint itself; of a run folder or a folder of checkpoints, its newest one.
fs::path newest_of(const fs::path& target) {
  const fs::path folder = fs::is_directory(target / "checkpoints") ? target / "checkpoints" : target;
  const fs::path newest = newest_checkpoint(folder);
  return newest.empty() ? resolve_checkpoint(target) : newest;
}

Exit inspect(const std::string& target, bool tensors) {
  const ArchiveReader archive(newest_of(target), ArchiveCheck::sizes);
  std::cout << archive.path().string() << "  " << format_bytes(static_cast<double>(archive.report().bytes)) << '\n';
  for (const ArchiveFile& file : archive.report().files) {
    std::cout << "  " << file.name << "  " << format_bytes(static_cast<double>(file.bytes)) << '\n';
    if (tensors && fs::path(file.name).extension() == ".safetensors") print_tensors(archive, file);
    if (file.name == "state.json") std::cout << "    " << read_json(archive.file(file.name)).dump() << '\n';
  }
  return Exit::ok;
}

// Every checkpoint of a run folder, or the one that is named.
Exit verify(const std::string& target) {
  const fs::path folder =
      fs::is_directory(fs::path(target) / "checkpoints") ? fs::path(target) / "checkpoints" : fs::path(target);
  std::vector<fs::path> paths;
  for (const std::string& name : list_archives(folder)) paths.push_back(folder / name);
  if (paths.empty()) paths.push_back(resolve_checkpoint(target));
  std::string damaged;
  for (const fs::path& path : paths) {
    const std::vector<ArchiveDamage> damage = verify_archive(path);
    for (const ArchiveDamage& d : damage) log_error(path.string(), ": ", d.message);
    if (damage.empty()) {
      log_info(path.string(), ": every file has its size and hash");
    } else {
      damaged += (damaged.empty() ? "" : ", ") + path.string();
    }
  }
  if (damaged.empty()) return Exit::ok;
  const fs::path good = last_good_archive(fs::path(paths.front()).parent_path());
  fail(Exit::data, "ckpt verify", "damaged: ", damaged,
       good.empty() ? "; no other checkpoint beside it is whole"
                    : cat("; the last good one beside it is ", good.string()));
}

void add(CommandLine& line, CLI::App& parent, const std::string& name, const std::string& summary,
         const std::function<Exit(const std::string&)>& run, const std::function<void(CLI::App*)>& more = {}) {
  auto target = std::make_shared<std::string>();
  CLI::App* command = add_command(line, parent, name, summary);
  command->add_option("CHECKPOINT", *target, "a checkpoint, or a run folder (inspect: its latest; verify: all of them)")
      ->required();
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
