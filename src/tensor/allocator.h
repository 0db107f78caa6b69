// Memory of tensors: 64-byte aligned (GPU: 256), cached, counted. Blocks go back to the cache when the last Tensor
// that views them dies. Exhaustion throws Error(Exit::memory) with the numbers.
//
// Size classes on the CPU: multiples of 64 bytes up to 1 KiB, then eight steps per doubling, so a block wastes at most
// one eighth; a request may also take a cached block up to a quarter larger. What is held (live and cached) never
// exceeds the highest need so far by more than a quarter plus 64 MiB: beyond that returned blocks go to the system.
// Everything here is thread safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "tensor/device.h"

namespace sieve {

struct MemoryStats {
  std::int64_t current_bytes = 0;  // in live tensors
  std::int64_t peak_bytes = 0;     // highest current_bytes since reset_peak; on a GPU with the kernels' working memory
  std::int64_t cached_bytes = 0;   // held for reuse
  std::int64_t allocations = 0;    // blocks handed out since the start
  std::int64_t system_allocations = 0;  // of them, those that the cache could not serve
};

class MemoryPool;  // where a block came from and goes back to

class Buffer {
 public:
  Buffer(void* data, std::size_t bytes, std::size_t capacity, Stream stream, MemoryPool* pool)
      : data_(data), bytes_(bytes), capacity_(capacity), stream_(stream), pool_(pool) {}
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
  MemoryPool* pool_;
};

// The content is undefined. Zero bytes are allowed. On a GPU memory is stream-ordered (cudaMallocAsync): a block that
// its last Tensor gave back serves later work of the same stream, while the work that used it may still be queued. Work
// on another stream that uses it must have been waited for by `stream` before.
std::shared_ptr<Buffer> allocate(std::size_t bytes, const Stream& stream);
// CPU memory that a GPU copies from and to without the host's help (page-locked). Ordinary memory without CUDA.
std::shared_ptr<Buffer> allocate_pinned(std::size_t bytes);
MemoryStats memory_stats(Device device);
void reset_peak_memory(Device device);
void release_cached_memory(Device device);
// Physical memory this process may use: the machine's, or less where a control group says so.
std::int64_t physical_memory_bytes();

}  // namespace sieve
