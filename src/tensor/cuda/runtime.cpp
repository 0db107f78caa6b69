#include "tensor/cuda/runtime.h"

#include <cuda_runtime.h>

#include <array>
#include <mutex>
#include <string>
#include <vector>

#include "core/error.h"
#include "tensor/cuda/check.h"

namespace sieve::cuda {
namespace {

cudaEvent_t event_of(void* handle) { return static_cast<cudaEvent_t>(handle); }

// Makes the device the calling thread's, and leaves it so: going back to device 0 would open a context there, some
// hundreds of MiB of another rank's GPU.
void use(Device device) { check(cudaSetDevice(device.index), "cudaSetDevice"); }

cudaMemPool_t pool_of(Device device) {
  cudaMemPool_t pool = nullptr;
  check(cudaDeviceGetDefaultMemPool(&pool, device.index), "cudaDeviceGetDefaultMemPool");
  return pool;
}

std::array<void*, 2> create_streams(Device device) {
  use(device);
  // Freed memory stays with the pool: giving it back at every synchronisation would map it again in every step.
  std::uint64_t keep = UINT64_MAX;
  check(cudaMemPoolSetAttribute(pool_of(device), cudaMemPoolAttrReleaseThreshold, &keep), "cudaMemPoolSetAttribute");
  std::array<void*, 2> streams{};
  int least = 0, greatest = 0;
  check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
  for (std::size_t i = 0; i < streams.size(); ++i) {
    cudaStream_t stream = nullptr;
    // The side stream goes first where both have work: what overlaps must not become what is waited for.
    check(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, i == 0 ? least : greatest), "cudaStreamCreate");
    streams[i] = stream;
  }
  return streams;
}

struct Devices {
  int count = 0;
  std::string reason;  // why there is none, unless there simply is none
};
const Devices& devices() {
  static const Devices found = [] {
    Devices d;
    const cudaError_t error = cudaGetDeviceCount(&d.count);
    if (error == cudaSuccess) return d;
    d.count = 0;
    if (error != cudaErrorNoDevice) d.reason = cat(cudaGetErrorName(error), ": ", cudaGetErrorString(error));
    return d;
  }();
  return found;
}

}  // namespace

int device_count() { return devices().count; }
std::string no_device_reason() { return devices().reason; }

// Opens no context: any rank may ask about any GPU.
DeviceInfo device_info(Device device) {
  cudaDeviceProp prop{};
  check(cudaGetDeviceProperties(&prop, device.index), "cudaGetDeviceProperties");
  int driver = 0;
  check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  DeviceInfo info;
  info.name = prop.name;
  char bus[32] = {};
  check(cudaDeviceGetPCIBusId(bus, sizeof bus, device.index), "cudaDeviceGetPCIBusId");
  info.bus = bus;
  info.driver = "CUDA " + std::to_string(driver / 1000) + "." + std::to_string(driver % 1000 / 10);
  info.major = prop.major;
  info.minor = prop.minor;
  info.multiprocessors = prop.multiProcessorCount;
  info.memory_bytes = static_cast<std::int64_t>(prop.totalGlobalMem);
  return info;
}

void* stream_handle(Device device, int which) {
  require(device.index >= 0 && device.index < device_count(), "cuda", device.str(), " of ", device_count(), " devices");
  static std::mutex mutex;
  static std::vector<std::array<void*, 2>> streams;
  const std::lock_guard lock(mutex);
  const auto index = static_cast<std::size_t>(device.index);
  if (streams.size() <= index) streams.resize(index + 1);
  if (streams[index][0] == nullptr) streams[index] = create_streams(device);
  use(device);  // launches want their stream's device to be the thread's
  return streams[index][static_cast<std::size_t>(which)];
}

void synchronize(const Stream& stream) { check(cudaStreamSynchronize(handle_of(stream)), "cudaStreamSynchronize"); }

void* create_event(Device device) {
  use(device);
  cudaEvent_t event = nullptr;
  check(cudaEventCreate(&event), "cudaEventCreate");
  return event;
}
void destroy_event(void* event) { cudaEventDestroy(event_of(event)); }
void record_event(void* event, const Stream& stream) {
  check(cudaEventRecord(event_of(event), handle_of(stream)), "cudaEventRecord");
}
void wait_event(void* event, const Stream& stream) {
  check(cudaStreamWaitEvent(handle_of(stream), event_of(event), 0), "cudaStreamWaitEvent");
}
void synchronize_event(void* event) { check(cudaEventSynchronize(event_of(event)), "cudaEventSynchronize"); }
bool event_done(void* event) {
  const cudaError_t state = cudaEventQuery(event_of(event));
  if (state == cudaErrorNotReady) return false;
  check(state, "cudaEventQuery");
  return true;
}
double seconds_between(void* earlier, void* later) {
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, event_of(earlier), event_of(later)), "cudaEventElapsedTime");
  return static_cast<double>(milliseconds) * 1e-3;
}

void copy_bytes(void* dst, const Stream& to, const void* src, const Stream& from, std::size_t bytes) {
  const Stream& on = to.device.is_cuda() ? to : from;
  check(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, handle_of(on)), "cudaMemcpyAsync");
  if (!to.device.is_cpu()) return;
  cudaPointerAttributes attributes{};
  check(cudaPointerGetAttributes(&attributes, dst), "cudaPointerGetAttributes");
  if (attributes.type != cudaMemoryTypeHost) cuda::synchronize(on);
}

void* allocate(std::size_t bytes, const Stream& stream) {
  for (const bool last : {false, true}) {
    void* data = nullptr;
    const cudaError_t error = cudaMallocAsync(&data, bytes, handle_of(stream));
    if (error == cudaSuccess) return data;
    if (error != cudaErrorMemoryAllocation) check(error, "cudaMallocAsync");
    cudaGetLastError();  // it is handled
    // What other streams or earlier steps left in the pool may be in pieces: give it back and ask once more.
    if (!last) trim_pool(stream.device);
  }
  return nullptr;
}

void release(void* data, const Stream& stream) {
  // Called by destructors: after a fault of the device nothing can be given back, and the fault is reported elsewhere.
  static_cast<void>(cudaFreeAsync(data, handle_of(stream)));
}

void trim_pool(Device device) {
  use(device);
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  check(cudaMemPoolTrimTo(pool_of(device), 0), "cudaMemPoolTrimTo");
}

std::int64_t reserved_bytes(Device device) {
  std::uint64_t bytes = 0;
  check(cudaMemPoolGetAttribute(pool_of(device), cudaMemPoolAttrReservedMemCurrent, &bytes), "cudaMemPoolGetAttribute");
  return static_cast<std::int64_t>(bytes);
}

std::int64_t peak_bytes(Device device) {
  std::uint64_t bytes = 0;
  check(cudaMemPoolGetAttribute(pool_of(device), cudaMemPoolAttrUsedMemHigh, &bytes), "cudaMemPoolGetAttribute");
  return static_cast<std::int64_t>(bytes);
}

void reset_peak_bytes(Device device) {
  std::uint64_t zero = 0;  // the driver takes it as "what is in use now"
  check(cudaMemPoolSetAttribute(pool_of(device), cudaMemPoolAttrUsedMemHigh, &zero), "cudaMemPoolSetAttribute");
}

std::int64_t free_bytes(Device device) {
  use(device);
  std::size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return static_cast<std::int64_t>(free);
}

void* allocate_pinned(std::size_t bytes) {
  void* data = nullptr;
  if (cudaMallocHost(&data, bytes) == cudaSuccess) return data;
  cudaGetLastError();
  return nullptr;
}

void release_pinned(void* data) { cudaFreeHost(data); }

}  // namespace sieve::cuda
