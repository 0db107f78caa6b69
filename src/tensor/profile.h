// Where the time of kernels goes: launch() reports every kernel here. Off, it costs one relaxed load. On the CPU a
// launch is the work; on a GPU events around it are read when the profile ends.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tensor/device.h"

namespace sieve {

class Event;

class KernelProfile {
 public:
  struct Entry {
    std::string kernel;  // name of the Args struct, without "Args"
    std::int64_t calls = 0;
    double seconds = 0;
  };
  static void start();               // forgets what was measured before
  static std::vector<Entry> stop();  // by falling time; waits for what is queued
  static bool on() { return on_.load(std::memory_order_relaxed); }
  static void add(const char* mangled_name, double seconds);
  static void add(const char* mangled_name, Event begin, Event end);

 private:
  static void count(const char* mangled_name, double seconds);
  static std::atomic<bool> on_;
};

class KernelTimer {
 public:
  KernelTimer(const char* mangled_name, const Stream& stream) {
    if (KernelProfile::on()) begin(mangled_name, stream);
  }
  ~KernelTimer() {
    if (name_ != nullptr) end();
  }
  KernelTimer(const KernelTimer&) = delete;
  KernelTimer& operator=(const KernelTimer&) = delete;

 private:
  void begin(const char* mangled_name, const Stream& stream);
  void end();

  const char* name_ = nullptr;
  Stream stream_;
  std::chrono::steady_clock::time_point start_;
  std::shared_ptr<Event> start_event_;  // on a GPU
};

}  // namespace sieve
