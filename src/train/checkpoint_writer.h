// Writes checkpoints while training goes on. save() copies weights and moments (memory bandwidth, no disk) and returns;
// one thread writes the copy. Only rank 0 has one: all ranks hold the same state.
#pragma once

#include <condition_variable>
#include <exception>
#include <filesystem>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "train/checkpoint.h"

namespace sieve {

class CheckpointWriter {
 public:
  // Puts right what killed writers left in `folder`: unfinished folders, links to an older checkpoint. With
  // `background` false save() writes in the caller.
  CheckpointWriter(std::filesystem::path folder, PruneRules rules, bool background);
  ~CheckpointWriter();  // waits for what is being written
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  // `content` holds views of live tensors. Waits for the previous checkpoint first. Rethrows what went wrong with that
  // one.
  void save(const CheckpointContent& content);
  // Lines about checkpoints that became durable since the last call ("saved step_00001000 (31.2 MiB in 0.4 s)");
  // rethrows a failure.
  std::vector<std::string> poll();
  bool busy();                    // is something still being written?
  bool wait_for(double seconds);  // until nothing is being written, at most so long; true if so; rethrows a failure
  void wait();                    // until everything is durable; rethrows a failure

 private:
  void run();
  void write();
  void take_snapshot(const CheckpointContent& content);
  void rethrow_failure(std::unique_lock<std::mutex>& lock);

  std::filesystem::path folder_;
  PruneRules rules_;
  bool background_;
  CheckpointContent snapshot_;  // the thread's while busy_, the caller's otherwise
  std::mutex mutex_;            // guards what follows
  std::condition_variable changed_;
  bool busy_ = false, stop_ = false;
  std::exception_ptr error_;
  std::vector<std::string> messages_;
  std::thread thread_;
};

}  // namespace sieve
