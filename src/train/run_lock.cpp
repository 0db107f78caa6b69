#include "train/run_lock.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "core/error.h"
#include "core/log.h"
#include "io/file_lock.h"

namespace sieve {
namespace {

using namespace std::chrono_literals;

constexpr auto kPatience = 500ms;  // for a holder that is just going: a killed job's successor may be very quick

std::string host_name() {
  char name[256] = "unknown host";
  ::gethostname(name, sizeof name - 1);
  return name;
}

std::string holder_of(const std::filesystem::path& file) {
  try {
    std::string text = read_file(file, 4096);
    while (!text.empty() && text.back() == '\n') text.pop_back();
    if (!text.empty()) return text;
  } catch (const Error&) {
    // It may have gone meanwhile.
  }
  return "another process";
}

// Names the holder, for the one who comes next.
void sign(int fd) {
  const std::string text = cat("process ", ::getpid(), " on ", host_name(), "\n");
  if (::ftruncate(fd, 0) != 0 || ::pwrite(fd, text.data(), text.size(), 0) < 0)
    log_debug("run folder: the lock could not be signed: ", std::strerror(errno));
}

}  // namespace

RunLock::RunLock(const std::filesystem::path& folder) : folder_(folder) {
  created_ = !std::filesystem::exists(folder);
  make_directories(folder);
  const auto file = folder / kFileName;
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  for (;;) {
    FileHandle handle(::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
    if (!handle.is_open()) fail(Exit::data, "run folder", "cannot open ", file.string(), ": ", std::strerror(errno));
    const LockState state = try_lock(handle, file);
    if (state == LockState::gone) continue;
    if (state == LockState::held) {
      sign(handle.get());
      handle_ = std::move(handle);
      return;
    }
    if (state == LockState::unsupported) {
      log_warn("run folder: no locks on the file system of ", folder.string(), " (", std::strerror(errno),
               "): two runs in one folder would not notice each other");
      return;
    }
    if (std::chrono::steady_clock::now() > deadline)
      fail(Exit::config, "run.dir", folder.string(), " is in use by ", holder_of(file),
           ": wait for it to end, or give another folder with -o");
    std::this_thread::sleep_for(20ms);
  }
}

RunLock::RunLock(RunLock&& other) noexcept
    : handle_(std::move(other.handle_)), folder_(std::move(other.folder_)), created_(other.created_) {}

RunLock& RunLock::operator=(RunLock&& other) noexcept {
  if (this == &other) return *this;
  release();
  handle_ = std::move(other.handle_);
  folder_ = std::move(other.folder_);
  created_ = other.created_;
  return *this;
}

RunLock::~RunLock() { release(); }

void RunLock::release() {
  if (!held()) return;
  std::error_code ignored;
  std::filesystem::remove(folder_ / kFileName, ignored);  // while it is still ours
  if (created_) ::rmdir(folder_.c_str());                 // only an empty folder goes
  handle_ = FileHandle();
}

}  // namespace sieve
