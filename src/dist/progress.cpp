#include "dist/progress.h"

#include <algorithm>
#include <utility>

namespace sieve {

void Progress::beat() {
  std::lock_guard lock(mutex_);
  ++beats_;
}

void Progress::set_step(std::int64_t step) {
  std::lock_guard lock(mutex_);
  step_ = step;
  ++beats_;
}

std::uint64_t Progress::beats() const {
  std::lock_guard lock(mutex_);
  return beats_;
}

void Progress::monitor(std::function<std::string()> fault) {
  std::lock_guard lock(monitor_mutex_);
  monitor_ = std::move(fault);
}

std::string Progress::fault() const {
  std::lock_guard lock(monitor_mutex_);
  return monitor_ ? monitor_() : std::string();
}

std::string Progress::where() const {
  std::lock_guard lock(mutex_);
  std::string out;
  for (const Open& o : open_) out += (out.empty() ? "" : " > ") + o.operation;
  if (out.empty()) out = "no named operation";
  if (step_ >= 0) out += ", step " + std::to_string(step_);
  return out;
}

std::uint64_t Progress::open(std::string_view operation) {
  std::lock_guard lock(mutex_);
  ++beats_;
  open_.push_back({next_id_, std::string(operation)});
  return next_id_++;
}

// By id, not as a stack: two threads close in any order.
void Progress::close(std::uint64_t id) {
  std::lock_guard lock(mutex_);
  ++beats_;
  std::erase_if(open_, [id](const Open& o) { return o.id == id; });
}

}  // namespace sieve
