// One thread per rank that ends the process when nothing moves, and speaks its last words when mpirun ends it.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "core/error.h"
#include "dist/progress.h"

namespace sieve {

class Watchdog {
 public:
  using Expired = std::function<void(Exit, const std::string& reason)>;

  // No heartbeat for `timeout_seconds` (> 0): die(Exit::peer, "rank 2: no progress for 600 s in all_reduce(bucket 3),
  // step 1200"). termination_requested() (dist/signals.h): die(Exit::peer, "rank 1: ended by SIGTERM in ..., step ...")
  // within 0.1 s. A fault that the Progress's monitor reports: die(Exit::peer, "rank 0: <fault> in ...") likewise. Time
  // during which the whole process was stopped or suspended does not count: its peers judge it, and Ctrl-Z stays
  // harmless. `expired` replaces die() in tests; it is called once.
  Watchdog(const Progress& progress, int rank, double timeout_seconds, Expired expired = {});
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  void run();

  const Progress& progress_;
  int rank_;
  double timeout_;
  Expired expired_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace sieve
