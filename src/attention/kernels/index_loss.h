// ABI of the token indexer's loss (attention/indexer.h). Letters: B batch, T time, Hi index heads, Di features of one,
// H query heads, Hkv key-value heads, D head size, M entries of a choice.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "tensor/dispatch.h"

namespace sieve {

// For query i with the chosen keys S: I_j = sum_h w_hi ReLU(qI_hi . kI_j), r = softmax of I over S, p = mean over the
// query heads of softmax(scale q_i . k_j) over S, loss_i = sum_j p_j log(p_j / r_j), 0 where S is empty. Gradients are
// those of the sum of all losses with p held fixed: dI = r - p.
struct IndexLossArgs : KernelArgs {
  const void* index_q_BHTD = nullptr;  // (B, Hi, T, Di)
  const void* index_k_BTD = nullptr;   // (B, T, Di)
  const void* weights_BHT = nullptr;   // (B, Hi, T)
  const void* q_BHTD = nullptr;        // (B, H, T, D), rotated
  const void* k_BHTD = nullptr;        // (B, Hkv, T, D), rotated
  const std::int32_t* choice_BTM = nullptr;
  std::int64_t B = 0, T = 0, Hi = 0, Di = 0, H = 0, Hkv = 0, D = 0, M = 0;
  double scale = 1;
  DType dtype = DType::f32;   // of all above and below: f32 or f64
  double* loss_BT = nullptr;  // one a query
  void* dq_BHTD = nullptr;    // like index_q; null: no gradient is wanted, of none of the three
  void* dk_BTD = nullptr;     // like index_k
  void* dweights_BHT = nullptr;
  // Of a GPU, which takes f32 alone: zeros (B, pieces, T, Di), unused without gradients. How many pieces a row is cut
  // into must not depend on the machine: it is part of the last bits.
  float* piece_sums = nullptr;
  std::int64_t pieces = 1;
};

namespace cpu {
void run(const IndexLossArgs& a);
}  // namespace cpu
namespace cuda {
void run(const IndexLossArgs& a, Stream stream);
}  // namespace cuda

}  // namespace sieve
