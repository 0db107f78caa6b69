// Reading text that may be compressed, in bounded memory. The kind is told by the first bytes, never by the name.
// A stream that ends early or is damaged throws Error(Exit::data) with the file and the place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sieve {

enum class Compression : std::uint8_t { none, gzip, zstd };

class TextReader {
 public:
  // zstd frames may ask for a window of up to 2^31 bytes (`zstd --long=31`); that much memory is only used where they
  // do.
  explicit TextReader(const std::filesystem::path& path);
  ~TextReader();
  TextReader(TextReader&&) noexcept;
  TextReader& operator=(TextReader&&) noexcept;

  // Up to out.size() bytes of the unpacked text; 0 only at the end.
  std::size_t read(std::span<char> out);
  // The next line without its '\n' (a '\r' before it stays); false at the end. A last line need not end in '\n'. Lines
  // above `limit` bytes throw: memory stays bounded. read() and read_line() may be mixed.
  bool read_line(std::string& line, std::size_t limit = std::size_t{1} << 30);

  Compression compression() const;
  std::uint64_t file_bytes() const;      // size of the file, packed
  std::uint64_t consumed_bytes() const;  // of the file so far: for progress
  std::uint64_t produced_bytes() const;  // unpacked so far
  std::uint64_t line_number() const;     // of the line returned last, from 1

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Regular files below `root` (or `root` itself if it is a file, whatever its name), sorted by path in bytes, hidden
// files and folders left out, symlinks to files followed, symlinks to folders not. `extensions` are endings (".txt",
// ".jsonl.gz"); empty: all.
std::vector<std::filesystem::path> list_text_files(const std::filesystem::path& root,
                                                   std::span<const std::string> extensions);
// Paths that match a pattern with *, ? and [...] in its last parts (POSIX glob), sorted; no match is an empty list.
std::vector<std::filesystem::path> glob_files(const std::string& pattern);

}  // namespace sieve
