// Files with errors that name the path. Everything here throws Error(Exit::data) unless said otherwise.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "core/error.h"

namespace sieve {

// Owns a POSIX file descriptor.
class FileHandle {
 public:
  FileHandle() = default;
  explicit FileHandle(int fd) : fd_(fd) {}
  ~FileHandle();
  FileHandle(FileHandle&& other) noexcept : fd_(other.release()) {}
  FileHandle& operator=(FileHandle&& other) noexcept;

  int get() const { return fd_; }
  bool is_open() const { return fd_ >= 0; }
  int release() {
    int fd = fd_;
    fd_ = -1;
    return fd;
  }

 private:
  int fd_ = -1;
};

// Positioned reads from any number of threads: pread has no cursor.
class ReadFile {
 public:
  ReadFile() = default;
  explicit ReadFile(const std::filesystem::path& path, Exit code = Exit::data);  // regular files only

  std::uint64_t size() const { return size_; }  // when it was opened
  const std::filesystem::path& path() const { return path_; }
  // Fills `out` from `offset` or throws: a short file is an error that gives the numbers.
  void read_at(std::uint64_t offset, std::span<std::byte> out) const;

 private:
  std::filesystem::path path_;
  FileHandle handle_;
  std::uint64_t size_ = 0;
};

// Sequential writer of a new file (an old one of that name is truncated). Running out of space names the path, the
// bytes still to be written (of `total`, where given) and the bytes free.
class WriteFile {
 public:
  explicit WriteFile(const std::filesystem::path& path, std::uint64_t total = 0);

  void write(const void* data, std::size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  std::uint64_t written() const { return written_; }
  void close(bool sync = false);  // sync: fsync first. Without close() the file may be incomplete: errors of the end
                                  // would be lost

 private:
  std::filesystem::path path_;
  FileHandle handle_;
  std::uint64_t written_ = 0, total_ = 0;
};

// The whole file as bytes; more than `limit` bytes is an error.
std::string read_file(const std::filesystem::path& path, std::uint64_t limit, Exit code = Exit::data);
// A new file appears whole or not at all, also across a power cut: temporary in the same folder, fsync, rename, fsync
// folder.
void write_file_atomic(const std::filesystem::path& path, std::string_view bytes);
void make_directories(const std::filesystem::path& path);  // like mkdir -p

void sync_file(const std::filesystem::path& path);
void sync_directory(const std::filesystem::path& path);
std::uint64_t free_bytes(const std::filesystem::path& path);  // for this user on the file system that holds `path`

// XXH3-64 (seed 0) piece by piece.
class Xxh3 {
 public:
  Xxh3();
  void update(std::span<const std::byte> bytes);
  std::uint64_t digest() const;

 private:
  struct Free {
    void operator()(void* state) const;
  };
  std::unique_ptr<void, Free> state_;
};

// XXH3-64 (seed 0), and the 16 lower-case hex digits in which manifests write it.
std::uint64_t xxh3(std::string_view bytes);
std::uint64_t xxh3_file(const std::filesystem::path& path);
std::string hex64(std::uint64_t value);
std::string human_bytes(std::uint64_t bytes);  // "1.5 MiB"

// A name next to `path` that no other process uses: ".tmp-NAME-<pid>-<counter>".
std::filesystem::path temporary_sibling(const std::filesystem::path& path);

}  // namespace sieve
