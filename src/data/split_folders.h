// The folders of shards that a preparation writes, OUTPUT/SPLIT/shard_00000.h5 ...: which may be replaced, and what
// goes along. Only folders are ever removed that hold nothing but HDF5 files named shard_N.h5.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "data/prepare.h"

namespace sieve {

struct SplitFolders {
  std::vector<std::string> written;   // names of splits
  std::vector<std::string> orphaned;  // "val", where it was made of the very text of the train/ that is replaced or of
                                      // the new one: its documents may be in the new train/
};

// `source`: the hash of the new text, as far as it is known. Exit::config, naming folder and file: a folder to be
// written or to go holds something that is no shard, is a link, or holds shards and overwrite is not set; a train/ or
// val/ is damaged, so that it cannot be told whether val/ was set aside from train/. Exit::data: a folder cannot be
// looked into.
SplitFolders split_folders(const PrepareOptions& options, std::optional<std::uint64_t> source);

// Whether a path is a shard in some OUTPUT/SPLIT/: no text, though it lies below an input.
bool is_shard_of_output(const std::string& path, const std::string& output);

}  // namespace sieve
