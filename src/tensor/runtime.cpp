#include "tensor/runtime.h"

#include <chrono>
#include <cstring>
#include <utility>

#include "core/build.h"
#include "core/error.h"
#include "core/parallel_for.h"
#include "tensor/allocator.h"
#include "tensor/cuda/determinism.h"
#include "tensor/cuda/runtime.h"
#include "tensor/kernels/cuda/matmul_tuning.h"

namespace sieve {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

[[noreturn]] void no_backend(Device device) {
  fail(Exit::internal, "runtime", "this build has no CUDA backend, wanted ", device.str());
}

}  // namespace

int cuda_device_count() {
  if constexpr (build::with_cuda) return cuda::device_count();
  return 0;
}

std::string no_cuda_reason() {
  if constexpr (build::with_cuda) return cuda::no_device_reason();
  return {};
}

std::int64_t free_memory_bytes(Device device) {
  if constexpr (build::with_cuda) {
    if (device.is_cuda()) return cuda::free_bytes(device);
  }
  return physical_memory_bytes();
}

DeviceInfo device_info(Device device) {
  if (device.is_cuda()) {
    if constexpr (build::with_cuda) return cuda::device_info(device);
    no_backend(device);
  }
  DeviceInfo info;
  info.name = "CPU";
  info.multiprocessors = num_threads();
  info.memory_bytes = physical_memory_bytes();
  return info;
}

Stream main_stream(Device device) {
  if (device.is_cpu()) return {device, nullptr};
  if constexpr (build::with_cuda) return {device, cuda::stream_handle(device, 0)};
  no_backend(device);
}

Stream side_stream(Device device) {
  if (device.is_cpu()) return {device, nullptr};
  if constexpr (build::with_cuda) return {device, cuda::stream_handle(device, 1)};
  no_backend(device);
}

void set_gpu_determinism(bool on) {
  cuda::set_deterministic(on);
  if constexpr (build::with_cuda) cuda::set_matmul_tuning(!on);
}

void synchronize(const Stream& stream) {
  if (stream.device.is_cpu()) return;
  if constexpr (build::with_cuda) cuda::synchronize(stream);
}

Event::Event(Device device) : device_(device) {
  if constexpr (build::with_cuda) {
    if (device.is_cuda()) handle_ = cuda::create_event(device);
  }
}

Event::~Event() {
  if constexpr (build::with_cuda) {
    if (handle_ != nullptr) cuda::destroy_event(handle_);
  }
}

Event::Event(Event&& other) noexcept
    : device_(other.device_), handle_(std::exchange(other.handle_, nullptr)), host_time_(other.host_time_) {}

Event& Event::operator=(Event&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(handle_, other.handle_);
  std::swap(host_time_, other.host_time_);
  return *this;
}

void Event::record(const Stream& stream) {
  host_time_ = now();
  if constexpr (build::with_cuda) {
    if (handle_ != nullptr) cuda::record_event(handle_, stream);
  }
}

void Event::wait_on(const Stream& stream) const {
  if constexpr (build::with_cuda) {
    if (handle_ == nullptr) return;
    if (stream.device.is_cuda()) return cuda::wait_event(handle_, stream);
    cuda::synchronize_event(handle_);  // a CPU stream is its caller
  }
}

void Event::synchronize() const {
  if constexpr (build::with_cuda) {
    if (handle_ != nullptr) cuda::synchronize_event(handle_);
  }
}

bool Event::done() const {
  if constexpr (build::with_cuda) {
    if (handle_ != nullptr) return cuda::event_done(handle_);
  }
  return true;
}

double Event::seconds_since(const Event& earlier) const {
  if constexpr (build::with_cuda) {
    if (handle_ != nullptr && earlier.handle_ != nullptr) return cuda::seconds_between(earlier.handle_, handle_);
  }
  return host_time_ - earlier.host_time_;
}

void copy_bytes(void* dst, const Stream& to, const void* src, const Stream& from, std::size_t bytes) {
  if (bytes == 0) return;
  if (to.device.is_cpu() && from.device.is_cpu()) {
    std::memcpy(dst, src, bytes);
    return;
  }
  if constexpr (build::with_cuda) return cuda::copy_bytes(dst, to, src, from, bytes);
  no_backend(to.device.is_cuda() ? to.device : from.device);
}

}  // namespace sieve
