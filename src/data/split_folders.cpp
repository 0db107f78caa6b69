#include "data/split_folders.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <string_view>
#include <system_error>

#include "core/error.h"
#include "data/token_store.h"

namespace sieve {
namespace {

namespace fs = std::filesystem;

bool is_shard_name(const fs::path& file) {
  const std::string stem = file.stem().string();
  constexpr std::string_view kPrefix = "shard_";
  return file.extension() == ".h5" && stem.size() > kPrefix.size() && stem.starts_with(kPrefix) &&
         std::all_of(stem.begin() + kPrefix.size(), stem.end(), [](unsigned char c) { return std::isdigit(c) != 0; });
}

bool is_shard_file(const fs::path& file) {
  if (!is_shard_name(file.filename())) return false;
  std::array<char, 8> head{};
  std::ifstream(file, std::ios::binary).read(head.data(), head.size());
  return std::string_view(head.data(), head.size()) == "\x89HDF\r\n\x1a\n";
}

// How many shards a folder holds. Exit::config where it holds anything else, or is no folder of its own.
std::size_t count_shards(const fs::path& folder) {
  const fs::file_status status = fs::symlink_status(folder);
  if (!fs::exists(status)) return 0;
  if (!fs::is_directory(status)) {
    fail(Exit::config, "prepare", folder.string(), fs::is_symlink(status) ? " is a link" : " is a file",
         ", where a folder of shards is to be; choose another --output");
  }
  std::size_t shards = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (!entry.is_regular_file() || !is_shard_file(entry.path())) {
      fail(
          Exit::config, "prepare", folder.string(), " holds ", entry.path().filename().string(),
          ", which is no token shard: only folders of shards alone are replaced; remove it, or choose another --output "
          "or --split");
    }
    ++shards;
  }
  return shards;
}

// The text that a folder's shards were made of; nothing where that cannot be told.
std::optional<std::uint64_t> source_of(const fs::path& folder) {
  try {
    return TokenStore(folder.string()).shards().front().source_hash;
  } catch (const Error&) { return std::nullopt; }
}

// Whether val/ goes with the train/ that is written without one.
bool takes_val_along(const fs::path& output, std::optional<std::uint64_t> source) {
  if (count_shards(output / "val") == 0) return false;
  const auto val = source_of(output / "val");
  const bool replaces = count_shards(output / "train") > 0;
  const auto train = replaces ? source_of(output / "train") : std::nullopt;
  if (!val || (replaces && !train)) {
    fail(Exit::config, "prepare", (output / (val ? "train" : "val")).string(),
         " is damaged: whether val/ was set aside from the text of train/ cannot be told; remove or rename it first "
         "(sieve data verify says what is wrong)");
  }
  return val == train || val == source;
}

}  // namespace

SplitFolders split_folders(const PrepareOptions& o, std::optional<std::uint64_t> source) try {
  const fs::path output = o.output;
  SplitFolders folders{.written = {o.split}, .orphaned = {}};
  if (o.val_fraction > 0) {
    folders.written.emplace_back("val");
  } else if (o.split == "train" && takes_val_along(output, source)) {
    folders.orphaned.emplace_back("val");
  }
  for (const std::vector<std::string>* group : {&folders.written, &folders.orphaned}) {
    for (const std::string& split : *group) {
      const std::size_t shards = count_shards(output / split);
      if (shards == 0 || o.overwrite) continue;
      fail(Exit::config, "prepare", (output / split).string(), " exists already, with ", shards,
           shards == 1 ? " shard" : " shards",
           folders.orphaned.empty() ? "" : " (and val/ is of the same text as train/)",
           "; choose another --output or --split, or replace it with --overwrite");
    }
  }
  return folders;
} catch (const fs::filesystem_error& e) {
  fail(Exit::data, "prepare", "cannot look into ", e.path1().string(), ": ", e.code().message());
}

bool is_shard_of_output(const std::string& path, const std::string& output) {
  std::error_code error;
  const fs::path file = fs::weakly_canonical(path, error), folder = fs::weakly_canonical(output, error);
  return !error && file.parent_path().parent_path() == folder && is_shard_file(file);
}

}  // namespace sieve
