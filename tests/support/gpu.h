// Cases tagged [gpu] begin with SIEVE_NEEDS_GPU(). Without a device they print a line that makes ctest list them as
// skipped, and the program counts them at its end.
#pragma once

#include "tensor/runtime.h"
#include "tensor/tensor.h"

namespace sieve::test {

inline Stream gpu_stream() { return main_stream({Device::Kind::cuda, 0}); }
bool gpu_or_note_skip();
int gpu_skips();  // so far

}  // namespace sieve::test

#define SIEVE_NEEDS_GPU() \
  if (!sieve::test::gpu_or_note_skip()) return
