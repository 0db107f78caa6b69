// Memory of tensors: 64-byte aligned, cached by size class, counted. Blocks go back to the cache when the last Tensor that
// views them dies. Exhaustion throws Error(Exit::memory) with the numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "tensor/device.h"

namespace sieve {

struct MemoryStats {
  std::int64_t current_bytes = 0;  // in live tensors
  std::int64_t peak_bytes = 0;     // highest current_bytes since reset_peak
  std::int64_t cached_bytes = 0;   // held for reuse
  std::int64_t allocations = 0;
};

class Buffer {
 public:
  Buffer(void* data, std::size_t bytes, std::size_t capacity, Stream stream)
      : data_(data), bytes_(bytes), capacity_(capacity), stream_(stream) {}
  ~Buffer();  // returns the block to its allocator
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  const Stream& stream() const { return stream_; }

 private:
  void* data_;
  std::size_t bytes_, capacity_;
  Stream stream_;
};

std::shared_ptr<Buffer> allocate(std::size_t bytes, const Stream& stream);
MemoryStats memory_stats(Device device);
void reset_peak_memory(Device device);
void release_cached_memory(Device device);

}  // namespace sieve
