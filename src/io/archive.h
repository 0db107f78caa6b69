// Checkpoint directories that are there whole or not at all (docs/design.md, "Checkpoints"), also across a kill or a
// power cut:
//   files in .tmp-NAME-* -> fsync each -> manifest.json with every size and hash, last -> fsync -> fsync folder
//   -> rename to NAME -> fsync parent. Only then commit() returns, and only then may anybody say "saved".
// The manifest holds XXH3-64 of each file and of each of its 64 MiB blocks, so that damage is located. A symlink may
// stand for a directory everywhere. All errors are Error(Exit::data) that name the path.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sieve {

inline constexpr std::uint64_t kArchiveBlock = 64ull << 20;

struct ArchiveFile {
  std::string name;
  std::uint64_t bytes = 0, hash = 0;
  std::vector<std::uint64_t> blocks;  // hash of each 64 MiB piece
};

struct ArchiveReport {
  std::filesystem::path path;  // of the directory
  std::uint64_t bytes = 0;     // all files, manifest included
  std::vector<ArchiveFile> files;
};

class ArchiveWriter {
 public:
  // Creates `parent` if need be and a temporary directory in it. `expected_bytes`: refuses at once if that much is not
  // free.
  ArchiveWriter(const std::filesystem::path& parent, const std::string& name, std::uint64_t expected_bytes = 0);
  ~ArchiveWriter();  // without commit(): removes the temporary
  ArchiveWriter(const ArchiveWriter&) = delete;
  ArchiveWriter& operator=(const ArchiveWriter&) = delete;

  // Names are plain: no '/', no leading '.', not manifest.json, each once.
  std::filesystem::path add_file(const std::string& name);  // the caller writes and closes the file before commit()
  void write(const std::string& name, std::string_view bytes);
  void write(const std::string& name, std::span<const std::byte> bytes);
  // Durable when it returns. An older directory of that name is replaced (atomically where the file system can).
  ArchiveReport commit();

 private:
  std::filesystem::path parent_, temporary_;
  std::string name_;
  std::vector<std::string> files_;
  bool done_ = false;
};

// What is wrong with a directory; empty: nothing. `name` and `block` say where ("" and -1: the directory or the whole
// file).
struct ArchiveDamage {
  std::string name;
  std::int64_t block = -1;
  std::string message;  // "model.safetensors: block 3 (bytes 201326592-268435455): hash ... instead of ..."
};

enum class ArchiveCheck { sizes, hashes };
std::vector<ArchiveDamage> verify_archive(const std::filesystem::path& directory,
                                          ArchiveCheck check = ArchiveCheck::hashes);

// A directory whose manifest and files have been checked; damage throws and names the first damaged files and blocks.
class ArchiveReader {
 public:
  explicit ArchiveReader(const std::filesystem::path& directory, ArchiveCheck check = ArchiveCheck::hashes);

  const std::filesystem::path& path() const { return report_.path; }  // symlinks resolved
  const ArchiveReport& report() const { return report_; }
  bool has(std::string_view name) const;
  std::filesystem::path file(std::string_view name) const;  // throws if the manifest does not list it

 private:
  ArchiveReport report_;
};

// Complete-looking directories of `parent` (they hold a manifest), sorted by name; temporaries and symlinks are not
// listed.
std::vector<std::string> list_archives(const std::filesystem::path& parent);
// The last one by name that passes `check`; empty path if there is none. Skips damaged ones, whose names go to
// `damaged`.
std::filesystem::path last_good_archive(const std::filesystem::path& parent, ArchiveCheck check = ArchiveCheck::hashes,
                                        std::vector<std::string>* damaged = nullptr);
// Renames to .tmp-del-* first, so that a kill half-way leaves no half directory under a good name.
void remove_archive(const std::filesystem::path& parent, const std::string& name);
// Removes all but the last `keep_last` by name and those for which `keep` says yes; returns what was removed.
std::vector<std::string> prune_archives(const std::filesystem::path& parent, std::size_t keep_last,
                                        const std::function<bool(const std::string&)>& keep);
// Removes .tmp-* of writers that died; returns how many. Nobody may be writing into `parent` now.
int clean_stale_archives(const std::filesystem::path& parent);

// parent/link -> name, replaced atomically.
void set_archive_link(const std::filesystem::path& parent, const std::string& link, const std::string& name);
std::string read_archive_link(const std::filesystem::path& parent,
                              const std::string& link);  // "" if absent or dangling

// For tests: called at every stage of commit, removal and link with the path at hand; may throw or end the process.
enum class ArchiveStage {
  begin,
  file_written,
  file_synced,
  manifest_written,
  manifest_synced,
  folder_synced,
  renamed,
  parent_synced,
  remove_renamed,
  link_created,
  link_renamed
};
using ArchiveFaultHook = std::function<void(ArchiveStage, const std::filesystem::path&)>;
void set_archive_fault_hook(ArchiveFaultHook hook);  // empty: none

}  // namespace sieve
