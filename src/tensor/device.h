// Small values that say where memory lives and in which order work on it runs.
#pragma once

#include <cstdint>
#include <string>

namespace sieve {

struct Device {
  enum class Kind : std::uint8_t { cpu, cuda };
  Kind kind = Kind::cpu;
  int index = 0;

  bool is_cpu() const { return kind == Kind::cpu; }
  bool is_cuda() const { return kind == Kind::cuda; }
  bool operator==(const Device&) const = default;
  std::string str() const { return is_cpu() ? "cpu" : "cuda:" + std::to_string(index); }
};

// An ordered queue of work on one device. On the CPU work runs in the caller and `handle` is null; on CUDA it is a
// cudaStream_t.
struct Stream {
  Device device;
  void* handle = nullptr;
};

}  // namespace sieve
