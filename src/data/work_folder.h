// OUTPUT/.tmp-prepare, where a preparation writes until everything is there. One preparation at a time: the folder is
// locked (flock, which the kernel lets go of when the process dies) and gone when this is.
#pragma once

#include <filesystem>

#include "data/split_folders.h"
#include "io/file.h"

namespace sieve {

class WorkFolder {
 public:
  // Exit::config where another preparation is at work there. Splits that a killed one was about to replace go back.
  explicit WorkFolder(const std::filesystem::path& output);
  ~WorkFolder();
  WorkFolder(const WorkFolder&) = delete;
  WorkFolder& operator=(const WorkFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }

  // path()/SPLIT becomes output/SPLIT for all that are written; what was there, and the orphaned, goes away with this
  // folder. Exit::data where a folder cannot be renamed: the output is then as it was.
  void publish(const SplitFolders& folders);

 private:
  void lock();
  bool unfinished() const;
  void restore();

  std::filesystem::path output_, path_;
  FileHandle handle_;
};

}  // namespace sieve
