// Where and in which precision a run computes.
#pragma once

#include "tensor/runtime.h"
#include "tensor/tensor.h"
#include "train/run_config.h"

namespace sieve {

DType compute_dtype(const RunConfig& config);

// auto: a GPU where the build and the machine have one. Exit::config where a GPU is asked for and there is none.
DeviceType resolve_device(DeviceType wanted);

DeviceType device_from_name(std::string_view name);  // auto, cpu, cuda; Exit::config otherwise

// The stream a rank computes on: the CPU's, or the main stream of its GPU (gpu_of_rank).
Stream compute_stream(DeviceType resolved, int local_rank);

// "NVIDIA H200" or "CPU, 2 threads"
std::string describe_device(const Stream& stream);

}  // namespace sieve
