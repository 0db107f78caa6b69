#include "io/file_lock.h"

#include <sys/file.h>
#include <sys/stat.h>

#include <cerrno>

namespace sieve {

LockState try_lock(const FileHandle& file, const std::filesystem::path& path) {
  while (::flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) return LockState::busy;
    if (errno != EINTR) return LockState::unsupported;
  }
  struct stat mine {
  }, there{};
  const bool same = ::fstat(file.get(), &mine) == 0 && ::stat(path.c_str(), &there) == 0 &&
                    mine.st_ino == there.st_ino && mine.st_dev == there.st_dev;
  return same ? LockState::held : LockState::gone;
}

}  // namespace sieve
