// The compute ABI of dense attention: full and sliding-window causal attention by a library's fused kernels, which read
// q, k and v where the projection left them. The twin on the CPU is the softmax engine with the plan of the same spec
// (kernels/softmax.h). Letters as there: B batch, T time, H query heads, Hkv key-value heads, D head size,
// F = (H + 2 Hkv) D.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "attention/kernels/softmax.h"
#include "core/dtype.h"
#include "core/error.h"
#include "tensor/dispatch.h"

namespace sieve {

// The library has no kernel for a shape (or is not there at all). Where it is thrown nothing has been launched: take
// the softmax engine. If it lasts it will be thrown again for this shape; otherwise (no memory left, for one) the next
// call may fare better.
class DenseUnsupported : public Error {
 public:
  explicit DenseUnsupported(const std::string& why, bool lasting = true)
      : Error(Exit::internal, "[dense attention] " + why), lasting_(lasting) {}
  bool lasting() const { return lasting_; }

 private:
  bool lasting_;
};

// Query i sees the keys j with i - window < j <= i; window 0: every j <= i. statistics_BHT (fp32, null: not kept):
// natural log of the softmax's denominator. rotary: far_distance -1, cos and sin fp32. dtype: bf16. D is a multiple of
// 8; qkv, out and their gradients are 16-byte aligned.
struct DenseAttentionArgs : KernelArgs {
  const void* qkv_BTF = nullptr;
  void* out_BTHD = nullptr;
  float* statistics_BHT = nullptr;
  std::int64_t B = 0, T = 0, H = 0, Hkv = 0, D = 0;
  std::int64_t window = 0;
  double scale = 1;
  DType dtype = DType::bf16;
  RotaryView rotary;
};

// dqkv_BTF, all of it. deterministic: the same bits in every run, for working memory that may grow with T^2.
struct DenseAttentionBackwardArgs : KernelArgs {
  DenseAttentionArgs forward;  // out and statistics as forward left them
  const void* dout_BTHD = nullptr;
  void* dqkv_BTF = nullptr;
  bool deterministic = false;
};

namespace cuda {
// Working memory of one call, taken and given back in stream order. Prepares the shape, which takes long the first time
// (half a second of compilation; several threads may prepare at once). No pointer is followed: only whether statistics
// are kept counts.
std::size_t workspace_bytes(const DenseAttentionArgs& a, Stream stream);
std::size_t workspace_bytes(const DenseAttentionBackwardArgs& a, Stream stream);
void run(const DenseAttentionArgs& a, Stream stream);
void run(const DenseAttentionBackwardArgs& a, Stream stream);
}  // namespace cuda

}  // namespace sieve
