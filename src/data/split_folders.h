// The folders of shards that a preparation writes, OUTPUT/SPLIT/shard_00000.h5 ...: which may be replaced, and what
// goes along. Nothing but shards is ever removed.
#pragma once

#include <string>
#include <vector>

#include "data/prepare.h"

namespace sieve {

struct SplitFolders {
  std::vector<std::string> written;   // names of splits
  std::vector<std::string> orphaned;  // "val", where it was set aside from the very text of the train/ that is
                                      // replaced: its documents may be in the new train/
};

// Exit::config, naming folder and file: a folder to be written holds something that is no shard, or holds shards and
// overwrite is not set.
SplitFolders split_folders(const PrepareOptions& options);

// Whether a path is a shard in some OUTPUT/SPLIT/: no text, though it lies below an input.
bool is_shard_of_output(const std::string& path, const std::string& output);

}  // namespace sieve
