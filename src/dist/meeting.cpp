#include "dist/meeting.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>
#include <thread>

#include "core/error.h"

namespace sieve {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr double kFolderSeconds = 10;  // a network file system may show a new folder late
constexpr const char* kName = "nccl_id";
constexpr const char* kAdvice =
    "SIEVE_NCCL_INIT=file:FOLDER names a folder that exists before the run and that all ranks see";

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

template <class... Parts>
[[noreturn]] void refuse(const Launch& launch, const Parts&... parts) {
  fail(Exit::peer, "SIEVE_NCCL_INIT", "rank ", launch.rank, ": ", parts...);
}

// First line of the file: of whose run it is.
std::string signature(const Launch& launch) {
  return cat("sieve meeting of ", launch.size, " ranks", launch.job.empty() ? "" : ", job ", launch.job);
}

void check_folder(const Launch& launch, const fs::path& folder, double patience) {
  const auto begin = Clock::now();
  std::error_code error;
  while (!fs::exists(folder, error)) {
    if (seconds_since(begin) >= patience)
      refuse(launch, "there is no folder ", folder.string(), " on this machine; ", kAdvice, " (mkdir, then start)");
    std::this_thread::sleep_for(20ms);
  }
  if (!fs::is_directory(folder, error)) refuse(launch, folder.string(), " is no folder; ", kAdvice);
}

void publish(const Launch& launch, const fs::path& folder, const std::string& message) {
  const fs::path file = folder / kName, aside = folder / cat(kName, ".tmp");
  errno = 0;
  std::ofstream out(aside, std::ios::binary | std::ios::trunc);
  out << signature(launch) << '\n' << message;
  out.close();
  if (!out)
    refuse(launch, aside.string(), " cannot be written: ", std::strerror(errno),
           "; rank 0 needs a folder that it may write to");
  std::error_code failed;
  fs::rename(aside, file, failed);  // whole or not at all
  if (failed) refuse(launch, file.string(), " cannot be written: ", failed.message());
}

// Older than any rank waits: its run is over. Of this age also counts as left behind what the clocks of two machines
// make so, hence the generous limit.
bool outlived(const fs::path& file, double timeout) {
  std::error_code error;
  const auto written = fs::last_write_time(file, error);
  return !error && std::chrono::duration<double>(fs::file_time_type::clock::now() - written).count() > 2 * timeout + 60;
}

std::string left_behind(const fs::path& file) {
  return cat(file.string(), " is left from an earlier run: remove it, or give every run a folder of its own");
}

std::string read_message(const Launch& launch, const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  std::string first;
  std::getline(in, first);
  if (first != signature(launch))
    refuse(launch, left_behind(file), " (it says \"", first.substr(0, 80), "\", this is a \"", signature(launch),
           "\")");
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace

std::string meet_in_folder(const Launch& launch, const fs::path& folder, double timeout,
                           const std::function<std::string()>& make_message) {
  check_folder(launch, folder, launch.rank == 0 ? 0 : std::min(timeout, kFolderSeconds));
  const fs::path file = folder / kName;
  std::error_code error;
  if (launch.rank == 0) {
    if (fs::exists(file, error)) refuse(launch, left_behind(file));
    std::string message = make_message();
    publish(launch, folder, message);
    return message;
  }
  const auto begin = Clock::now();
  while (!fs::exists(file, error)) {
    if (seconds_since(begin) > timeout)
      refuse(launch, "no ", file.string(), " after ", timeout,
             " s: has rank 0 started, and does it see the same folder? (a folder under /tmp is another one on every "
             "machine)");
    std::this_thread::sleep_for(20ms);
  }
  if (outlived(file, timeout)) refuse(launch, left_behind(file));
  return read_message(launch, file);
}

void clear_meeting(const fs::path& folder) {
  std::error_code ignored;  // the next run will say so
  fs::remove(folder / kName, ignored);
}

}  // namespace sieve
