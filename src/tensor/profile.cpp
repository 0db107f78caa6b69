#include "tensor/profile.h"

#include <cxxabi.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>

namespace sieve {
namespace {

std::mutex mutex;
std::map<const char*, KernelProfile::Entry> entries;  // by the address of the type's name: one per type

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
  on_ = true;
}

void KernelProfile::add(const char* mangled_name, double seconds) {
  const std::lock_guard lock(mutex);
  Entry& entry = entries[mangled_name];
  if (entry.calls++ == 0) entry.kernel = readable(mangled_name);
  entry.seconds += seconds;
}

std::vector<KernelProfile::Entry> KernelProfile::stop() {
  const std::lock_guard lock(mutex);
  on_ = false;
  std::vector<Entry> out;
  for (auto& [name, entry] : entries) out.push_back(entry);
  std::sort(out.begin(), out.end(), [](const Entry& a, const Entry& b) { return a.seconds > b.seconds; });
  return out;
}

}  // namespace sieve
