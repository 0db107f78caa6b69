#include "dist/watchdog.h"

#include <algorithm>
#include <chrono>

#include "dist/die.h"
#include "dist/signals.h"

namespace sieve {

Watchdog::Watchdog(const Progress& progress, int rank, double timeout_seconds, Expired expired)
    : progress_(progress), rank_(rank), timeout_(timeout_seconds), expired_(std::move(expired)) {
  require(timeout_ > 0, "watchdog", "timeout must be above 0 s, got ", timeout_);
  if (!expired_) expired_ = [](Exit code, const std::string& reason) { die(code, reason); };
  thread_ = std::thread([this] { run(); });
}

Watchdog::~Watchdog() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

void Watchdog::run() {
  using Clock = std::chrono::steady_clock;
  constexpr auto kTick = std::chrono::milliseconds(100);
  constexpr double kLongestTick = 0.5;  // a longer one: the process was stopped, or the machine asleep
  double idle = 0;
  std::uint64_t seen = progress_.beats();
  auto before = Clock::now();
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, kTick, [this] { return stop_; })) {
    const auto now = Clock::now();
    const double elapsed = std::chrono::duration<double>(now - before).count();
    before = now;
    const std::uint64_t beats = progress_.beats();
    idle = beats == seen ? idle + std::min(elapsed, kLongestTick) : 0;
    seen = beats;
    const bool terminated = termination_requested();
    const std::string fault = progress_.fault();
    if (!terminated && idle < timeout_ && fault.empty()) continue;
    const std::string reason =
        !fault.empty() ? cat("rank ", rank_, ": ", fault, " in ", progress_.where())
        : terminated   ? cat("rank ", rank_, ": ended by SIGTERM (another rank failed or the job was cancelled) in ",
                             progress_.where())
                       : cat("rank ", rank_, ": no progress for ", timeout_, " s in ", progress_.where());
    lock.unlock();  // the destructor may run while `expired` does
    expired_(Exit::peer, reason);
    return;
  }
}

}  // namespace sieve
