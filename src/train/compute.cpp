#include "train/compute.h"

#include <iterator>

#include "core/build.h"
#include "core/error.h"
#include "core/log.h"
#include "core/parallel_for.h"
#include "dist/gpus.h"

namespace sieve {

DType compute_dtype(const RunConfig& config) {
  return config.device.precision == Precision::bf16 ? DType::bf16 : DType::f32;
}

DeviceType resolve_device(DeviceType wanted) {
  const bool there = cuda_device_count() > 0;
  const std::string reason = no_cuda_reason();
  if (wanted == DeviceType::automatic && !reason.empty()) log_warn("no GPU is used: ", reason);
  if (wanted == DeviceType::cuda && !reason.empty()) fail(Exit::config, "device.type", "cuda: ", reason);
  if (wanted == DeviceType::automatic) return there ? DeviceType::cuda : DeviceType::cpu;
  if (wanted == DeviceType::cuda && !there)
    fail(Exit::config, "device.type",
         build::with_cuda ? "cuda: the driver shows no GPU (nvidia-smi; CUDA_VISIBLE_DEVICES); use auto or cpu"
                          : "cuda: this program was built without CUDA; build the cuda preset, or use auto or cpu");
  return wanted;
}

DeviceType device_from_name(std::string_view name) {
  for (std::size_t i = 0; i < std::size(kDeviceTypeNames); ++i) {
    if (kDeviceTypeNames[i] == name) return static_cast<DeviceType>(i);
  }
  fail(Exit::config, "device", "unknown device \"", name, "\" (auto, cpu, cuda)");
}

Stream compute_stream(DeviceType resolved, int local_rank) {
  if (resolved != DeviceType::cuda) return main_stream({});
  return main_stream(gpu_of_rank(local_rank, cuda_device_count()));
}

std::string describe_device(const Stream& stream) {
  if (stream.device.is_cpu()) return cat("CPU, ", num_threads(), num_threads() == 1 ? " thread" : " threads");
  return device_info(stream.device).name;
}

}  // namespace sieve
