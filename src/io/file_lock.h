// An exclusive lock on a file or folder (flock), of which the kernel lets go when the process dies.
#pragma once

#include <filesystem>

#include "io/file.h"

namespace sieve {

enum class LockState {
  held,
  busy,         // another process, or another open file of this one, has it
  gone,         // `path` names another file by now: who had the lock before removed it. Open it anew
  unsupported,  // no locks on this file system; errno says why
};

// Tries to lock the open file that `path` named when it was opened. Does not wait.
LockState try_lock(const FileHandle& file, const std::filesystem::path& path);

}  // namespace sieve
