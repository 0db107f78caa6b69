// What a rank is doing, for the watchdog and for last words. Thread-safe; a mark costs a mutex, so mark operations, not
// elements.
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace sieve {

class Progress {
 public:
  // Names an operation while it lives; opening and closing are heartbeats. Operations nest, also across threads:
  // "train > all_reduce(bucket 3)".
  class Scope {
   public:
    Scope(Progress& progress, std::string_view operation) : progress_(progress), id_(progress.open(operation)) {}
    ~Scope() { progress_.close(id_); }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Progress& progress_;
    std::uint64_t id_;
  };

  void beat();                       // something moved
  void set_step(std::int64_t step);  // also a heartbeat
  std::uint64_t beats() const;       // grows with every heartbeat
  // Asked by the watchdog beside the heartbeats: what has failed behind the back of the threads (an asynchronous error
  // of a GPU or a network), "" if nothing. Must not block. An empty function ends it; when this returns, none runs.
  void monitor(std::function<std::string()> fault);
  std::string fault() const;
  std::string where() const;  // "train > all_reduce(bucket 3), step 1200"; the step only once one was set

 private:
  struct Open {
    std::uint64_t id;
    std::string operation;
  };
  std::uint64_t open(std::string_view operation);
  void close(std::uint64_t id);

  mutable std::mutex mutex_, monitor_mutex_;
  std::function<std::string()> monitor_;
  std::vector<Open> open_;
  std::uint64_t beats_ = 0, next_id_ = 0;
  std::int64_t step_ = -1;
};

}  // namespace sieve
