// Devices, streams, events and copies, the same on a machine without a GPU. The CUDA side lives in tensor/cuda/.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "tensor/device.h"

namespace sieve {

int cuda_device_count();  // 0 in a build without CUDA and where the driver finds no device
// Why the driver, which is there, shows none (too old, out of order); empty otherwise.
std::string no_cuda_reason();

struct DeviceInfo {
  std::string name;          // "NVIDIA H200"
  std::string driver;        // what the driver supports: "CUDA 13.0"
  std::string bus;           // PCI bus id, "0000:1B:00.0": one GPU of a machine, whatever number a process gives it
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;   // SMs; cores of a CPU
  std::int64_t memory_bytes = 0;
};
DeviceInfo device_info(Device device);
std::int64_t free_memory_bytes(Device device);  // makes a GPU the calling thread's

// The stream that a device's work runs on, and one beside it for what overlaps with that work (reductions, copies).
// Created on first use, kept to the end; they do not wait for each other nor for the legacy default stream. Asking for
// one makes the device the calling thread's: a thread that launches kernels asks first.
Stream main_stream(Device device);
Stream side_stream(Device device);
// Whether GPU libraries must give the same bits in every run. Process-wide, once, before the first kernel. Off:
// products try several algorithms at their first call and keep the fastest; fused attention adds gradients in any
// order.
void set_gpu_determinism(bool on);

void synchronize(const Stream& stream);  // the host waits for all work queued so far; errors of that work surface here

// A place in a stream. On the CPU all work is done when a call returns: there events only tell the time.
class Event {
 public:
  explicit Event(Device device);
  ~Event();
  Event(Event&& other) noexcept;
  Event& operator=(Event&& other) noexcept;

  void record(const Stream& stream);
  void wait_on(const Stream& stream) const;  // later work of `stream` waits for this event; the host does not
  void synchronize() const;                  // the host waits
  bool done() const;
  double seconds_since(const Event& earlier) const;  // both recorded and done

 private:
  Device device_;
  void* handle_ = nullptr;
  double host_time_ = 0;
};

// Bytes from one device to the other in the order of the device's stream (`to` or `from`, whichever is a GPU's; both:
// `to`). Into ordinary host memory it returns when they are there; out of it when the source may be reused; with
// pinned host memory (allocate_pinned) on either side it does not wait.
void copy_bytes(void* dst, const Stream& to, const void* src, const Stream& from, std::size_t bytes);

}  // namespace sieve
