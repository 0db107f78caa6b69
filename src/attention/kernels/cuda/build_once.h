// What is built once and kept, unless the failure to build it may pass. No CUDA header in sight: the rule is tested
// without a GPU.
#pragma once

#include <mutex>
#include <optional>
#include <string>
#include <string_view>

namespace sieve::cuda {

struct Refusal {
  std::string why;
  bool lasting = true;  // the next attempt would end the same way
};

// Do these words of a library speak of a lack of memory? It gives one code to a shape that it has no kernel for and to
// one whose kernel did not find room.
inline bool speaks_of_memory(std::string_view words) {
  for (const std::string_view sign : {"ALLOC_FAILED", "ALLOCATION_FAILED", "out of memory", "bad_alloc"}) {
    if (words.find(sign) != std::string_view::npos) return true;
  }
  return false;
}

class BuildOnce {
 public:
  // A build takes half a second: whoever is refused for other reasons than ours must not pay it at every call.
  static constexpr int kAttempts = 3;

  // Runs build(), which returns an optional Refusal, unless it succeeded before, was refused for good, or was refused
  // kAttempts times. Returns the refusal that stands, if any. Thread-safe: others wait for the one that builds.
  template <class F>
  std::optional<Refusal> operator()(const F& build) {
    const std::lock_guard lock(mutex_);
    if (done_) return refusal_;
    refusal_ = build();
    if (refusal_ && ++refused_ == kAttempts) refusal_->lasting = true;
    done_ = !refusal_ || refusal_->lasting;
    return refusal_;
  }

 private:
  std::mutex mutex_;
  std::optional<Refusal> refusal_;
  int refused_ = 0;
  bool done_ = false;
};

}  // namespace sieve::cuda
