#include "tensor/allocator.h"

#include <sanitizer/asan_interface.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <list>
#include <map>
#include <mutex>
#include <new>
#include <string>

#include "core/error.h"

namespace sieve {
namespace {

constexpr std::size_t kAlignment = 64;
constexpr std::size_t kSmall = 1024;
constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::int64_t kSlack = std::int64_t{64} << 20;

std::size_t round_up(std::size_t n, std::size_t step) { return (n + step - 1) / step * step; }

std::size_t size_class(std::size_t bytes) {
  if (bytes <= kSmall) return std::max(kAlignment, round_up(bytes, kAlignment));
  return round_up(bytes, std::bit_floor(bytes) / 8);
}

std::string mebibytes(std::int64_t bytes) {
  constexpr std::int64_t kMiB = std::int64_t{1} << 20;
  return std::to_string(bytes / kMiB) + "." + std::to_string(bytes % kMiB * 10 / kMiB) + " MiB";
}

class CpuPool {
 public:
  std::shared_ptr<Buffer> allocate(std::size_t bytes, const Stream& stream) {
    if (bytes > static_cast<std::size_t>(physical_memory_bytes())) exhausted(bytes);
    const std::size_t capacity = size_class(bytes);
    Block block = take(bytes, capacity);
    ASAN_UNPOISON_MEMORY_REGION(block.data, bytes);
    try {
      return std::make_shared<Buffer>(block.data, bytes, block.capacity, stream);
    } catch (...) {
      give_back(block.data, bytes, block.capacity);
      throw;
    }
  }

  void give_back(void* data, std::size_t bytes, std::size_t capacity) {
    std::lock_guard lock(mutex_);
    stats_.current_bytes -= static_cast<std::int64_t>(bytes);
    live_capacity_ -= static_cast<std::int64_t>(capacity);
    // A use after this point is a bug that AddressSanitizer then reports, as it would without a cache.
    ASAN_POISON_MEMORY_REGION(data, capacity);
    stats_.cached_bytes += static_cast<std::int64_t>(capacity);
    by_age_.push_back({data, capacity});
    by_capacity_.emplace(capacity, std::prev(by_age_.end()));
    trim(peak_capacity_ + peak_capacity_ / 4 + kSlack);
  }

  MemoryStats stats() {
    std::lock_guard lock(mutex_);
    return stats_;
  }
  void reset_peak() {
    std::lock_guard lock(mutex_);
    stats_.peak_bytes = stats_.current_bytes;
  }
  void release() {
    std::lock_guard lock(mutex_);
    trim(0);
    peak_capacity_ = live_capacity_;
  }

 private:
  struct Block {
    void* data;
    std::size_t capacity;
  };
  using ByAge = std::list<Block>;
  using ByCapacity = std::multimap<std::size_t, ByAge::iterator>;

  Block take(std::size_t bytes, std::size_t capacity) {
    std::lock_guard lock(mutex_);
    Block block{nullptr, capacity};
    auto hit = by_capacity_.lower_bound(capacity);
    if (hit != by_capacity_.end() && hit->first <= capacity + capacity / 4) {
      hit = std::prev(
          by_capacity_.upper_bound(hit->first));  // of equals the one returned last: the likeliest to be in cache
      block = forget(hit);
    } else {
      block.data = from_system(capacity);
      if (block.data == nullptr) {
        trim(0);
        block.data = from_system(capacity);
      }
      if (block.data == nullptr) exhausted_locked(bytes);
      ++stats_.system_allocations;
      ASAN_POISON_MEMORY_REGION(block.data, capacity);  // the tail behind `bytes` stays poisoned
    }
    ++stats_.allocations;
    stats_.current_bytes += static_cast<std::int64_t>(bytes);
    stats_.peak_bytes = std::max(stats_.peak_bytes, stats_.current_bytes);
    live_capacity_ += static_cast<std::int64_t>(block.capacity);
    peak_capacity_ = std::max(peak_capacity_, live_capacity_);
    return block;
  }

  void* from_system(std::size_t capacity) {
    // The check against physical memory comes first: Linux promises more than there is and kills whoever believes it.
    if (live_capacity_ + stats_.cached_bytes + static_cast<std::int64_t>(capacity) > physical_memory_bytes()) {
      trim(physical_memory_bytes() - static_cast<std::int64_t>(capacity));
      if (live_capacity_ + static_cast<std::int64_t>(capacity) > physical_memory_bytes()) return nullptr;
    }
    // Large blocks start at a huge page, so that the kernel can back them with such pages.
    const std::size_t alignment = capacity >= 2 * kHugePage ? kHugePage : kAlignment;
    return std::aligned_alloc(alignment, round_up(capacity, alignment));
  }

  Block forget(ByCapacity::iterator entry) {
    const Block block = *entry->second;
    by_age_.erase(entry->second);
    by_capacity_.erase(entry);
    stats_.cached_bytes -= static_cast<std::int64_t>(block.capacity);
    return block;
  }

  // Frees cached blocks, those unused for longest first, until live and cached blocks together fit `limit` bytes.
  void trim(std::int64_t limit) {
    while (!by_age_.empty() && live_capacity_ + stats_.cached_bytes > limit) {
      auto [entry, end] = by_capacity_.equal_range(by_age_.front().capacity);
      while (entry->second != by_age_.begin()) ++entry;
      const Block block = forget(entry);
      ASAN_UNPOISON_MEMORY_REGION(block.data, block.capacity);
      std::free(block.data);
    }
  }

  [[noreturn]] void exhausted(std::size_t bytes) {
    std::lock_guard lock(mutex_);
    exhausted_locked(bytes);
  }
  [[noreturn]] void exhausted_locked(std::size_t bytes) const {
    fail(Exit::memory, "allocator", "out of memory on the cpu: ", bytes, " bytes wanted (",
         mebibytes(static_cast<std::int64_t>(std::min<std::size_t>(bytes, std::size_t{1} << 62))), "), ",
         mebibytes(stats_.current_bytes), " in live tensors (peak ", mebibytes(stats_.peak_bytes), "), ",
         mebibytes(physical_memory_bytes()),
         " of physical memory; smaller batches, shorter sequences or recompute need less");
  }

  std::mutex mutex_;
  ByAge by_age_;            // cached blocks, the one returned first in front
  ByCapacity by_capacity_;  // the same blocks
  MemoryStats stats_;
  std::int64_t live_capacity_ = 0, peak_capacity_ = 0;
};

// Never destroyed: tensors in static variables give their blocks back after main.
CpuPool& cpu_pool() {
  static CpuPool* instance = new CpuPool;
  return *instance;
}

CpuPool& pool_of(Device device) {
  if (device.is_cuda())
    fail(Exit::internal, "allocator", "this build has no CUDA backend, wanted memory of ", device.str());
  return cpu_pool();
}

std::int64_t detect_physical_memory() {
  std::int64_t bytes = static_cast<std::int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  std::int64_t limit = 0;
  if (std::ifstream file("/sys/fs/cgroup/memory.max"); file >> limit && limit > 0) bytes = std::min(bytes, limit);
  return bytes;
}

}  // namespace

std::int64_t physical_memory_bytes() {
  static const std::int64_t bytes = detect_physical_memory();
  return bytes;
}

Buffer::~Buffer() { pool_of(stream_.device).give_back(data_, bytes_, capacity_); }

std::shared_ptr<Buffer> allocate(std::size_t bytes, const Stream& stream) {
  return pool_of(stream.device).allocate(bytes, stream);
}
MemoryStats memory_stats(Device device) { return pool_of(device).stats(); }
void reset_peak_memory(Device device) { pool_of(device).reset_peak(); }
void release_cached_memory(Device device) { pool_of(device).release(); }

}  // namespace sieve
