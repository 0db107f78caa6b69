// ABI of the choices by content (attention/choose.h): the best keys or blocks of every query, and hash buckets.
// Letters: B batch, H heads of queries, Hk heads of keys, N queries, T keys, D features of a head, M entries of a list.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "tensor/dispatch.h"

namespace sieve {

// The M best of what every query may choose from, in the total order (larger logit first, then the later one): the
// logit of a key is q . k, that of a block of keys q . (mean of its keys). NaN counts as the largest, so that who sees
// it cannot pass it over. Nothing larger than a tile of logits is stored.
struct ChooseArgs : KernelArgs {
  const void* q_BHND = nullptr;  // rotated; query n is position T - N + n
  const void* k_BHTD = nullptr;  // rotated; query head h reads h / (H / Hk)
  std::int64_t k_stride = 0;     // elements from one head's keys to the next head's, at least T * D
  // Null: every head chooses for itself. Else (B, H, N): sum_h w_h ReLU(q_h . k) decides for all heads together.
  const void* weights_BHN = nullptr;
  const std::int32_t* document_starts_BT = nullptr;  // null: one document a row
  std::int64_t B = 0, H = 0, Hk = 0, N = 0, T = 0, D = 0;
  std::int64_t block = 0;  // 0: keys. Else: blocks of so many keys of the document; the query's own is always chosen
  std::int64_t size = 0;   // M
  // Of q and k; weights have its compute dtype. The CPU takes f32 and f64, a GPU f32 and bf16.
  DType dtype = DType::f32;
  float* means_BHSD = nullptr;          // scratch of a GPU where block > 0: (B, Hk, ceil(T / block), D)
  std::int32_t* choice_BHNM = nullptr;  // ascending, filled up with kNoChoice; (B, 1, N, M) with weights
};

// The bucket of x: argmax of [x R; -x R], the first of equal ones.
struct HashArgs : KernelArgs {
  const void* x_BTF = nullptr;  // head h of position (b, t) begins at (b * T + t) * F + h * D
  const double* directions_HRD = nullptr;
  std::int64_t B = 0, T = 0, F = 0, H = 0, R = 0, D = 0;
  DType dtype = DType::f32;
  std::int32_t* bucket_BHT = nullptr;
};

namespace cpu {
void run(const ChooseArgs& a);
void run(const HashArgs& a);
}  // namespace cpu
namespace cuda {
void run(const ChooseArgs& a, Stream stream);
void run(const HashArgs& a, Stream stream);
}  // namespace cuda

}  // namespace sieve
