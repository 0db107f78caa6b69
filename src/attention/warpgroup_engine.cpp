#include "attention/warpgroup_engine.h"

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>

#include "core/build.h"
#include "tensor/runtime.h"

namespace sieve {
namespace {

std::atomic<bool> allowed{true};
constexpr bool kCompiled = build::with_cuda && SIEVE_SM90A_CODE;  // by CMakeLists.txt: CMAKE_CUDA_ARCHITECTURES has 90a

bool is_hopper(Device device) {
  static std::mutex mutex;
  static auto& answers = *new std::map<int, bool>;  // by device: a machine may hold GPUs of several kinds
  const std::lock_guard lock(mutex);
  const auto found = answers.find(device.index);
  if (found != answers.end()) return found->second;
  const DeviceInfo info = device_info(device);
  return answers[device.index] = info.major == 9 && info.minor == 0;
}
bool positions_fit(const AttentionSpec& spec, const RopeSpec& rope) {
  if (rope.rotary_dims == 0) return true;
  const bool turns_alike = spec.kind != AttentionKind::sparsek || spec.sparsek.positions == PositionRule::absolute;
  return turns_alike && rope.rotary_dims % 16 == 0;
}

}  // namespace

bool warpgroup_engine(const AttentionSpec& spec, const RopeSpec& rope, const Tensor& qkv) {
  if (!kCompiled || !qkv.device().is_cuda() || !allowed.load(std::memory_order_relaxed)) return false;
  const bool aligned = reinterpret_cast<std::uintptr_t>(qkv.raw()) % 16 == 0;  // a slice may begin anywhere
  return qkv.dtype() == DType::bf16 && aligned && (spec.head_dim == 64 || spec.head_dim == 128) &&
         (spec.kind != AttentionKind::sliding_window || spec.sinks == 0) && positions_fit(spec, rope) &&
         is_hopper(qkv.device());
}

void allow_warpgroup_engine(bool value) { allowed.store(value, std::memory_order_relaxed); }

}  // namespace sieve
