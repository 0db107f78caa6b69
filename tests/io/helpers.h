// A folder that lives as long as a test, and the text of the error that a call must throw.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include "core/error.h"
#include "support/errors.h"

namespace sieve::test {

class TempFolder {
 public:
  // in_memory: for many small files, where there is such a folder
  explicit TempFolder(bool in_memory = false) {
    const bool use_memory = in_memory && access("/dev/shm", W_OK) == 0;
    const std::filesystem::path parent = use_memory ? "/dev/shm" : std::filesystem::temp_directory_path();
    std::string pattern = (parent / "sieve-io-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) fail(Exit::internal, "test", "no temporary folder");
    path_ = pattern;
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(std::string_view name) const { return path_ / name; }
  std::filesystem::path put(std::string_view name, std::string_view bytes) const {
    std::filesystem::create_directories((path_ / name).parent_path());
    std::ofstream out(path_ / name, std::ios::binary);
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    return path_ / name;
  }

 private:
  std::filesystem::path path_;
};

// "" if nothing was thrown, "wrong exit code: ..." if the code differs. Other exceptions pass through and fail the
// test.
template <class F>
std::string error_of(Exit code, F&& call) {
  try {
    call();
  } catch (const Error& e) { return (e.code() == code ? "" : "wrong exit code: ") + std::string(e.what()); }
  return "";
}

}  // namespace sieve::test
