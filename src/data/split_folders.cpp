#include "data/split_folders.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <optional>
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

// How many shards a folder holds. Exit::config where it holds anything else, or is a file.
std::size_t count_shards(const fs::path& folder) {
  if (!fs::exists(folder)) return 0;
  if (!fs::is_directory(folder)) {
    fail(Exit::config, "prepare", folder.string(),
         " is a file, where a folder of shards is to be; choose another --output");
  }
  std::size_t shards = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (!entry.is_regular_file() || !is_shard_name(entry.path().filename())) {
      fail(Exit::config, "prepare", folder.string(), " holds ", entry.path().filename().string(),
           ", which is no token shard: only folders of shards alone are replaced; choose another --output or --split");
    }
    ++shards;
  }
  return shards;
}

// The text that a folder's shards were made of; nothing where that cannot be told.
std::optional<std::uint64_t> source_of(const fs::path& folder) {
  try {
    if (fs::is_directory(folder)) return TokenStore(folder.string()).shards().front().source_hash;
  } catch (const Error&) {  // damaged: it is not needed for more
  }
  return std::nullopt;
}

}  // namespace

SplitFolders split_folders(const PrepareOptions& o) {
  const fs::path output = o.output;
  SplitFolders folders{.written = {o.split}, .orphaned = {}};
  if (o.val_fraction > 0) {
    folders.written.emplace_back("val");
  } else if (const auto source = source_of(output / "train"); o.split == "train" && source) {
    if (source_of(output / "val") == source) folders.orphaned.emplace_back("val");
  }
  for (const std::vector<std::string>* group : {&folders.written, &folders.orphaned}) {
    for (const std::string& split : *group) {
      const std::size_t shards = count_shards(output / split);
      if (shards == 0 || o.overwrite) continue;
      fail(Exit::config, "prepare", (output / split).string(), " exists already, with ", shards,
           shards == 1 ? " shard" : " shards", folders.orphaned.empty() ? "" : " (and the val/ set aside from it)",
           "; choose another --output or --split, or replace it with --overwrite");
    }
  }
  return folders;
}

bool is_shard_of_output(const std::string& path, const std::string& output) {
  const fs::path file = fs::weakly_canonical(path);
  return is_shard_name(file.filename()) && file.parent_path().parent_path() == fs::weakly_canonical(output);
}

}  // namespace sieve
