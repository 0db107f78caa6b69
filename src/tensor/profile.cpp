#include "tensor/profile.h"

#include <cxxabi.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "core/error.h"
#include "tensor/runtime.h"

namespace sieve {
namespace {

std::mutex mutex;
std::map<const char*, KernelProfile::Entry> entries;  // by the address of the type's name: one per type

struct Interval {
  const char* name;
  Event begin, end;
};
std::vector<Interval> intervals;  // of GPU kernels, not yet read

std::string readable(const char* mangled) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> text(abi::__cxa_demangle(mangled, nullptr, nullptr, &status), std::free);
  std::string name = status == 0 ? text.get() : mangled;
  if (const auto colon = name.rfind("::"); colon != std::string::npos) name.erase(0, colon + 2);
  if (name.size() > 4 && name.ends_with("Args")) name.resize(name.size() - 4);
  return name;
}

}  // namespace

std::atomic<bool> KernelProfile::on_{false};

void KernelProfile::start() {
  const std::lock_guard lock(mutex);
  entries.clear();
  intervals.clear();
  on_ = true;
}

void KernelProfile::add(const char* mangled_name, Event begin, Event end) {
  const std::lock_guard lock(mutex);
  intervals.push_back({mangled_name, std::move(begin), std::move(end)});
}

void KernelProfile::add(const char* mangled_name, double seconds) {
  const std::lock_guard lock(mutex);
  count(mangled_name, seconds);
}

void KernelProfile::count(const char* mangled_name, double seconds) {
  Entry& entry = entries[mangled_name];
  if (entry.calls++ == 0) entry.kernel = readable(mangled_name);
  entry.seconds += seconds;
}

std::vector<KernelProfile::Entry> KernelProfile::stop() {
  const std::lock_guard lock(mutex);
  on_ = false;
  for (const Interval& i : intervals) {
    i.end.synchronize();
    count(i.name, i.end.seconds_since(i.begin));
  }
  intervals.clear();
  std::vector<Entry> out;
  for (auto& [name, entry] : entries) out.push_back(entry);
  std::sort(out.begin(), out.end(), [](const Entry& a, const Entry& b) { return a.seconds > b.seconds; });
  return out;
}

void KernelTimer::begin(const char* mangled_name, const Stream& stream) {
  name_ = mangled_name;
  stream_ = stream;
  if (stream.device.is_cuda()) {
    start_event_ = std::make_shared<Event>(stream.device);
    start_event_->record(stream);
  } else {
    start_ = std::chrono::steady_clock::now();
  }
}

void KernelTimer::end() {
  if (start_event_) {
    try {
      Event end(stream_.device);
      end.record(stream_);
      KernelProfile::add(name_, std::move(*start_event_), std::move(end));
    } catch (const Error&) {
      // Called by a destructor. After a fault of the device the next call of the step reports it.
    }
  } else {
    KernelProfile::add(name_, std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count());
  }
}

}  // namespace sieve
