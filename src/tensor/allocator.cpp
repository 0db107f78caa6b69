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
#include <vector>

#include "core/build.h"
#include "core/error.h"
#include "tensor/cuda/runtime.h"
#include "tensor/runtime.h"

namespace sieve {

class MemoryPool {
 public:
  virtual ~MemoryPool() = default;
  virtual std::shared_ptr<Buffer> allocate(std::size_t bytes, const Stream& stream) = 0;
  virtual void give_back(void* data, std::size_t bytes, std::size_t capacity, const Stream& stream) = 0;
  virtual MemoryStats stats() = 0;
  virtual void reset_peak() = 0;
  virtual void release() = 0;
};

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

class CpuPool final : public MemoryPool {
 public:
  std::shared_ptr<Buffer> allocate(std::size_t bytes, const Stream& stream) override {
    if (bytes > static_cast<std::size_t>(physical_memory_bytes())) exhausted(bytes);
    const std::size_t capacity = size_class(bytes);
    Block block = take(bytes, capacity);
    ASAN_UNPOISON_MEMORY_REGION(block.data, bytes);
    try {
      return std::make_shared<Buffer>(block.data, bytes, block.capacity, stream, this);
    } catch (...) {
      give_back(block.data, bytes, block.capacity, stream);
      throw;
    }
  }

  void give_back(void* data, std::size_t bytes, std::size_t capacity, const Stream&) override {
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

  MemoryStats stats() override {
    std::lock_guard lock(mutex_);
    return stats_;
  }
  void reset_peak() override {
    std::lock_guard lock(mutex_);
    stats_.peak_bytes = stats_.current_bytes;
  }
  void release() override {
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

std::int64_t detect_physical_memory() {
  std::int64_t bytes = static_cast<std::int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  std::int64_t limit = 0;
  if (std::ifstream file("/sys/fs/cgroup/memory.max"); file >> limit && limit > 0) bytes = std::min(bytes, limit);
  return bytes;
}

// Device memory. The driver's pool does the caching; here it is counted.
class CudaPool final : public MemoryPool {
 public:
  explicit CudaPool(Device device) : device_(device) {}

  std::shared_ptr<Buffer> allocate(std::size_t bytes, const Stream& stream) override {
    void* data = take(std::max<std::size_t>(bytes, 1), stream);  // no tensor's data is null, as on the CPU
    {
      std::lock_guard lock(mutex_);
      ++stats_.allocations;
      stats_.current_bytes += static_cast<std::int64_t>(bytes);
    }
    return std::make_shared<Buffer>(data, bytes, bytes, stream, this);
  }
  void give_back(void* data, std::size_t bytes, std::size_t, const Stream& stream) override {
    if constexpr (build::with_cuda) {
      if (data != nullptr) cuda::release(data, stream);
    }
    std::lock_guard lock(mutex_);
    stats_.current_bytes -= static_cast<std::int64_t>(bytes);
  }
  MemoryStats stats() override {
    std::lock_guard lock(mutex_);
    MemoryStats out = stats_;
    if constexpr (build::with_cuda) {
      out.cached_bytes = cuda::reserved_bytes(device_) - stats_.current_bytes;
      out.peak_bytes = cuda::peak_bytes(device_);
    }
    return out;
  }
  void reset_peak() override {
    if constexpr (build::with_cuda) cuda::reset_peak_bytes(device_);
  }
  void release() override {
    if constexpr (build::with_cuda) cuda::trim_pool(device_);
  }

 private:
  void* take(std::size_t bytes, const Stream& stream) {
    void* data = nullptr;
    if constexpr (build::with_cuda) data = cuda::allocate(bytes, stream);
    if (data == nullptr) exhausted(bytes);
    return data;
  }
  [[noreturn]] void exhausted(std::size_t bytes) {
    const MemoryStats now = stats();
    std::int64_t free = 0;
    if constexpr (build::with_cuda) free = cuda::free_bytes(device_);
    fail(Exit::memory, "allocator", "out of memory on ", device_.str(), ": ",
         mebibytes(static_cast<std::int64_t>(std::min<std::size_t>(bytes, std::size_t{1} << 62))), " wanted, ",
         mebibytes(now.current_bytes), " in live tensors (peak ", mebibytes(now.peak_bytes), "), ", mebibytes(free),
         " free on the device; smaller micro-batches, shorter sequences or recompute need less");
  }

  Device device_;
  std::mutex mutex_;
  MemoryStats stats_;
};

class PinnedPool final : public MemoryPool {
 public:
  std::shared_ptr<Buffer> allocate(std::size_t bytes, const Stream& stream) override {
    void* data = nullptr;
    if constexpr (build::with_cuda) data = cuda::allocate_pinned(std::max<std::size_t>(bytes, 1));
    if (data == nullptr)
      fail(Exit::memory, "allocator", "no page-locked memory for ", bytes, " bytes (is the machine's memory full?)");
    return std::make_shared<Buffer>(data, bytes, bytes, stream, this);
  }
  void give_back(void* data, std::size_t, std::size_t, const Stream&) override {
    if constexpr (build::with_cuda) cuda::release_pinned(data);
  }
  MemoryStats stats() override { return {}; }
  void reset_peak() override {}
  void release() override {}
};

MemoryPool& pool_of(Device device) {
  if (device.is_cpu()) return cpu_pool();
  if constexpr (!build::with_cuda)
    fail(Exit::internal, "allocator", "this build has no CUDA backend, wanted memory of ", device.str());
  static std::mutex mutex;
  static std::vector<CudaPool*> pools;  // never destroyed, as above
  const std::lock_guard lock(mutex);
  const auto index = static_cast<std::size_t>(device.index);
  while (pools.size() <= index) pools.push_back(new CudaPool({Device::Kind::cuda, static_cast<int>(pools.size())}));
  return *pools[index];
}

}  // namespace

std::int64_t physical_memory_bytes() {
  static const std::int64_t bytes = detect_physical_memory();
  return bytes;
}

Buffer::~Buffer() { pool_->give_back(data_, bytes_, capacity_, stream_); }

std::shared_ptr<Buffer> allocate(std::size_t bytes, const Stream& stream) {
  return pool_of(stream.device).allocate(bytes, stream);
}
std::shared_ptr<Buffer> allocate_pinned(std::size_t bytes) {
  if constexpr (!build::with_cuda) return allocate(bytes, {});
  if (cuda_device_count() == 0) return allocate(bytes, {});
  static auto* pool = new PinnedPool;
  return pool->allocate(bytes, {});
}
MemoryStats memory_stats(Device device) { return pool_of(device).stats(); }
void reset_peak_memory(Device device) { pool_of(device).reset_peak(); }
void release_cached_memory(Device device) { pool_of(device).release(); }

}  // namespace sieve
