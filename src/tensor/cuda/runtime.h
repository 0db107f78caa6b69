// What tensor/runtime.cpp and the allocator need from CUDA. No CUDA header in sight: handles are void*.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "tensor/device.h"
#include "tensor/runtime.h"

namespace sieve::cuda {

int device_count();
std::string no_device_reason();
DeviceInfo device_info(Device device);
void* stream_handle(Device device, int which);  // 0 main, 1 side
void synchronize(const Stream& stream);

void* create_event(Device device);
void destroy_event(void* event);
void record_event(void* event, const Stream& stream);
void wait_event(void* event, const Stream& stream);
void synchronize_event(void* event);
bool event_done(void* event);
double seconds_between(void* earlier, void* later);

void copy_bytes(void* dst, const Stream& to, const void* src, const Stream& from, std::size_t bytes);

// Stream-ordered: the block may be used by work queued on `stream` after allocate, and up to the work queued before
// release. Null where the device has no memory left, also after what the pool kept went back to the driver.
void* allocate(std::size_t bytes, const Stream& stream);
void release(void* data, const Stream& stream);
void trim_pool(Device device);               // what is free goes back to the driver
std::int64_t reserved_bytes(Device device);  // held by the pool, in use or not
std::int64_t peak_bytes(Device device);      // most in use at once: tensors and the working memory of kernels
void reset_peak_bytes(Device device);
std::int64_t free_bytes(Device device);

void* allocate_pinned(std::size_t bytes);  // null if refused
void release_pinned(void* data);

}  // namespace sieve::cuda
