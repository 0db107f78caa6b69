#include "io/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>

namespace sieve {
namespace {

namespace fs = std::filesystem;
constexpr std::size_t kPiece = std::size_t{1} << 20;

[[noreturn]] void fail_errno(Exit code, std::string_view what, const fs::path& path, int error) {
  fail(code, "file", "cannot ", what, " ", path.string(), ": ", std::strerror(error));
}

// EFBIG is the limit of the process (ulimit -f): for whoever saves it is a full disk like the others.
bool is_full(int error) { return error == ENOSPC || error == EDQUOT || error == EFBIG; }

int open_retry(const fs::path& path, int flags, mode_t mode = 0) {
  int fd;
  do fd = ::open(path.c_str(), flags | O_CLOEXEC, mode);
  while (fd < 0 && errno == EINTR);
  return fd;
}

void sync_path(const fs::path& path, int flags) {
  FileHandle handle(open_retry(path, flags));
  if (!handle.is_open()) fail_errno(Exit::data, "open", path, errno);
  if (::fsync(handle.get()) != 0) fail_errno(Exit::data, "sync", path, errno);
}

}  // namespace

FileHandle::~FileHandle() {
  if (fd_ >= 0) ::close(fd_);
}

FileHandle& FileHandle::operator=(FileHandle&& other) noexcept {
  if (this != &other) {
    if (fd_ >= 0) ::close(fd_);
    fd_ = other.release();
  }
  return *this;
}

ReadFile::ReadFile(const fs::path& path, Exit code) : path_(path), handle_(open_retry(path, O_RDONLY)) {
  if (!handle_.is_open()) fail_errno(code, "open", path, errno);
  struct stat info;
  if (::fstat(handle_.get(), &info) != 0) fail_errno(code, "inspect", path, errno);
  if (!S_ISREG(info.st_mode)) fail(code, "file", path.string(), " is not a regular file");
  size_ = static_cast<std::uint64_t>(info.st_size);
}

void ReadFile::read_at(std::uint64_t offset, std::span<std::byte> out) const {
  std::size_t done = 0;
  while (done < out.size()) {
    const ssize_t n = ::pread(handle_.get(), out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_errno(Exit::data, "read", path_, errno);
    if (n == 0) {
      fail(Exit::data, "file", path_.string(), " is truncated: ", offset + done, " bytes, wanted ",
           offset + out.size());
    }
    done += static_cast<std::size_t>(n);
  }
}

WriteFile::WriteFile(const fs::path& path, std::uint64_t total)
    : path_(path), handle_(open_retry(path, O_WRONLY | O_CREAT | O_TRUNC, 0666)), total_(total) {
  if (!handle_.is_open()) fail_errno(Exit::data, "create", path, errno);
}

void WriteFile::write(const void* data, std::size_t bytes) {
  require(handle_.is_open(), "file", "write to ", path_.string(), " after close");
  const char* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::write(handle_.get(), at, bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      const int error = errno;
      if (!is_full(error)) fail_errno(Exit::data, "write", path_, error);
      const std::uint64_t missing = std::max<std::uint64_t>(bytes, total_ > written_ ? total_ - written_ : 0);
      fail(Exit::data, "file", "cannot write ", path_.string(), ": ", std::strerror(error), " (", missing,
           " bytes still to write, ", free_bytes(path_), " bytes free); free some space or choose another folder");
    }
    at += n;
    bytes -= static_cast<std::size_t>(n);
    written_ += static_cast<std::uint64_t>(n);
  }
}

void WriteFile::close(bool sync) {
  if (!handle_.is_open()) return;
  if (sync && ::fsync(handle_.get()) != 0) fail_errno(Exit::data, "sync", path_, errno);
  if (::close(handle_.release()) != 0) fail_errno(Exit::data, "close", path_, errno);
}

std::string read_file(const fs::path& path, std::uint64_t limit, Exit code) {
  const ReadFile file(path, code);
  if (file.size() > limit) {
    fail(code, "file", path.string(), " has ", file.size(), " bytes, more than the ", limit, " allowed here");
  }
  std::string out(file.size(), '\0');
  file.read_at(0, std::as_writable_bytes(std::span(out)));
  return out;
}

void write_file_atomic(const fs::path& path, std::string_view bytes) {
  const fs::path temporary = temporary_sibling(path);
  try {
    WriteFile file(temporary, bytes.size());
    file.write(bytes);
    file.close(true);
    if (std::rename(temporary.c_str(), path.c_str()) != 0) fail_errno(Exit::data, "rename to", path, errno);
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
  sync_directory(path.parent_path());
}

void make_directories(const fs::path& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) fail(Exit::data, "file", "cannot create folder ", path.string(), ": ", error.message());
}

void sync_file(const fs::path& path) { sync_path(path, O_RDONLY); }
void sync_directory(const fs::path& path) { sync_path(path.empty() ? fs::path(".") : path, O_RDONLY | O_DIRECTORY); }

std::uint64_t free_bytes(const fs::path& path) {
  fs::path existing = path;
  struct statvfs info;
  while (::statvfs(existing.empty() ? "." : existing.c_str(), &info) != 0) {
    if (existing.empty() || existing == existing.parent_path()) fail_errno(Exit::data, "inspect", path, errno);
    existing = existing.parent_path();
  }
  return static_cast<std::uint64_t>(info.f_bavail) * info.f_frsize;
}

Xxh3::Xxh3() : state_(XXH3_createState()) {
  if (!state_) fail(Exit::memory, "file", "no memory for a hash state");
  XXH3_64bits_reset(static_cast<XXH3_state_t*>(state_.get()));
}
void Xxh3::Free::operator()(void* state) const { XXH3_freeState(static_cast<XXH3_state_t*>(state)); }
void Xxh3::update(std::span<const std::byte> bytes) {
  XXH3_64bits_update(static_cast<XXH3_state_t*>(state_.get()), bytes.data(), bytes.size());
}
std::uint64_t Xxh3::digest() const { return XXH3_64bits_digest(static_cast<const XXH3_state_t*>(state_.get())); }

std::uint64_t xxh3(std::string_view bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

std::uint64_t xxh3_file(const fs::path& path) {
  const ReadFile file(path);
  Xxh3 state;
  std::vector<std::byte> piece(static_cast<std::size_t>(std::min<std::uint64_t>(kPiece, file.size())));
  for (std::uint64_t at = 0; at < file.size(); at += piece.size()) {
    const auto part =
        std::span(piece).first(static_cast<std::size_t>(std::min<std::uint64_t>(kPiece, file.size() - at)));
    file.read_at(at, part);
    state.update(part);
  }
  return state.digest();
}

std::string hex64(std::uint64_t value) {
  std::string out(16, '0');
  for (int i = 15; i >= 0; --i, value >>= 4) out[static_cast<std::size_t>(i)] = "0123456789abcdef"[value & 15];
  return out;
}

std::string human_bytes(std::uint64_t bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  for (; value >= 1024 && unit < 6; ++unit) value /= 1024;
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.1f %s", value, kUnits[unit]);
  return text;
}

fs::path temporary_sibling(const fs::path& path) {
  // The clock keeps apart processes of equal number on different hosts of one shared folder.
  static std::atomic<unsigned> counter{0};
  struct timespec now;
  ::clock_gettime(CLOCK_REALTIME, &now);
  return path.parent_path() / cat(".tmp-", path.filename().string(), "-", ::getpid(), "-", now.tv_nsec, "-", counter++);
}

}  // namespace sieve
