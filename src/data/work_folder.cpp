#include "data/work_folder.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <system_error>
#include <vector>

#include "core/error.h"
#include "core/log.h"
#include "io/file_lock.h"

namespace sieve {
namespace {

namespace fs = std::filesystem;

constexpr const char* kOld = "old-";  // what output/SPLIT was, while the new one takes its place

void rename_or_fail(const fs::path& from, const fs::path& to) {
  std::error_code error;
  fs::rename(from, to, error);
  if (error) {
    fail(Exit::data, "prepare", "cannot rename ", from.string(), " to ", to.string(), ": ", error.message());
  }
}

std::vector<fs::path> entries_of(const fs::path& folder) {
  std::vector<fs::path> found;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) found.push_back(entry.path());
  return found;
}

}  // namespace

WorkFolder::WorkFolder(const fs::path& output) : output_(output), path_(output / ".tmp-prepare") {
  lock();
  if (unfinished()) restore();
  for (const fs::path& entry : entries_of(path_)) fs::remove_all(entry);
}

WorkFolder::~WorkFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

void WorkFolder::lock() {
  LockState state = LockState::gone;
  while (state == LockState::gone) {
    make_directories(path_);
    handle_ = FileHandle(::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!handle_.is_open()) fail(Exit::data, "prepare", "cannot open ", path_.string(), ": ", std::strerror(errno));
    state = try_lock(handle_, path_);
  }
  if (state == LockState::busy) {
    fail(Exit::config, "prepare", "another preparation is writing to ", output_.string(),
         "; wait for it or choose another --output");
  }
  if (state == LockState::unsupported) {
    log_warn("prepare: no locks on the file system of ", output_.string(), " (", std::strerror(errno),
             "): two preparations in one folder would not notice each other");
  }
}

// A new split that still lies here beside old ones tells of a replacement that was not finished.
bool WorkFolder::unfinished() const {
  const std::vector<fs::path> entries = entries_of(path_);
  return std::any_of(entries.begin(), entries.end(), [](const fs::path& entry) {
    return fs::is_directory(entry) && !entry.filename().string().starts_with(kOld);
  });
}

// Old splits go back to where new ones may have arrived already.
void WorkFolder::restore() {
  for (const fs::path& entry : entries_of(path_)) {
    const std::string name = entry.filename().string();
    if (!name.starts_with(kOld)) continue;
    const std::string split = name.substr(std::strlen(kOld));
    std::error_code absent;
    fs::rename(output_ / split, path_ / split, absent);
    rename_or_fail(entry, output_ / split);
  }
}

void WorkFolder::publish(const SplitFolders& folders) {
  for (const std::string& split : folders.written) sync_directory(path_ / split);
  try {
    for (const std::vector<std::string>* group : {&folders.written, &folders.orphaned}) {
      for (const std::string& split : *group) {
        std::error_code error;
        if (fs::exists(output_ / split, error)) rename_or_fail(output_ / split, path_ / (kOld + split));
      }
    }
    for (const std::string& split : folders.written) rename_or_fail(path_ / split, output_ / split);
  } catch (const Error&) {
    restore();
    throw;
  }
  sync_directory(output_);
}

}  // namespace sieve
