// Where the time of kernels goes: launch() reports every kernel here. Off, it costs one relaxed load. On the CPU a
// launch is the work.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

namespace sieve {

class KernelProfile {
 public:
  struct Entry {
    std::string kernel;  // name of the Args struct, without "Args"
    std::int64_t calls = 0;
    double seconds = 0;
  };
  static void start();               // forgets what was measured before
  static std::vector<Entry> stop();  // by falling time
  static bool on() { return on_.load(std::memory_order_relaxed); }
  static void add(const char* mangled_name, double seconds);

 private:
  static std::atomic<bool> on_;
};

class KernelTimer {
 public:
  explicit KernelTimer(const char* mangled_name) : name_(KernelProfile::on() ? mangled_name : nullptr) {
    if (name_) start_ = std::chrono::steady_clock::now();
  }
  ~KernelTimer() {
    if (name_)
      KernelProfile::add(name_, std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count());
  }
  KernelTimer(const KernelTimer&) = delete;
  KernelTimer& operator=(const KernelTimer&) = delete;

 private:
  const char* name_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace sieve
