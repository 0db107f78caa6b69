#include "support/gpu.h"

#include <cstdio>

namespace sieve::test {
namespace {
int skips = 0;
}  // namespace

bool gpu_or_note_skip() {
  if (cuda_device_count() > 0) return true;
  ++skips;
  std::puts("skipped: no CUDA device");  // tests/CMakeLists.txt looks for it
  return false;
}

int gpu_skips() { return skips; }

}  // namespace sieve::test
