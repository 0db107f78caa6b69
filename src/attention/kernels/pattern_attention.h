// The compute ABI of pattern attention on a GPU: the softmax over the pairs that a PairPattern shows. On the CPU the
// softmax engine runs it (kernels/softmax.h, PlanView::pair_bits). Letters as there.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/kernels/pattern.h"
#include "attention/kernels/softmax.h"
#include "tensor/dispatch.h"

namespace sieve {

// softmax: everything but `plan`, `device_plan` and `gate`; rotary.far_distance -1. Pointers of `pattern` are on the
// device. pattern_heads: 1, or Hkv where these see different keys.
struct PatternForwardArgs : KernelArgs {
  SoftmaxForwardArgs softmax;
  PairPattern pattern;
  std::int64_t pattern_heads = 1;
};

// dqkv_BTF, all of it; out and statistics as forward left them.
struct PatternBackwardArgs : KernelArgs {
  PatternForwardArgs forward;
  const void* dout_BTHD = nullptr;
  void* dqkv_BTF = nullptr;
};

// The workspace (softmax.workspace): rotated queries and keys, and which blocks of keys a part of the tiles visits with
// a bit a pair, at most about 256 MiB of those at a time. Error(Exit::config) above head_dim 256.
namespace cuda {
std::size_t workspace_bytes(const PatternForwardArgs& a, Stream stream);
std::size_t workspace_bytes(const PatternBackwardArgs& a, Stream stream);
void run(const PatternForwardArgs& a, Stream stream);
void run(const PatternBackwardArgs& a, Stream stream);
}  // namespace cuda

}  // namespace sieve
