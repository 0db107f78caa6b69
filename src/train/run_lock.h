// One run at a time in a run folder: an exclusive lock (flock) on FOLDER/.lock. The kernel lets go of it when the
// process dies, however it dies; the file itself says nothing.
#pragma once

#include <filesystem>

#include "io/file.h"

namespace sieve {

class RunLock {
 public:
  RunLock() = default;  // holds nothing
  // Creates the folder if needed. Error(Exit::config) names the holder where another process has the lock. A file
  // system without locks gives a warning and no lock.
  explicit RunLock(const std::filesystem::path& folder);
  ~RunLock();  // also removes the folder again, if it was created here and nothing came into it
  RunLock(RunLock&& other) noexcept;
  RunLock& operator=(RunLock&& other) noexcept;

  bool held() const { return handle_.is_open(); }

  static constexpr const char* kFileName = ".lock";

 private:
  void release();

  FileHandle handle_;
  std::filesystem::path folder_;
  bool created_ = false;
};

}  // namespace sieve
