// ABI of the token indexer's loss (attention/indexer.h). Letters: B batch, T time, Hi index heads, Di features of one,
// H query heads, Hkv key-value heads, D head size, M entries of a choice.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"
#include "tensor/dispatch.h"

namespace sieve {

// For query i with the chosen keys S: I_j = sum_h w_hi ReLU(qI_hi . kI_j), r = softmax of I over S, p = mean over the
// query heads of softmax(scale q_i . k_j) over S, loss_i = sum_j p_j log(p_j / r_j), 0 where S is empty. Gradients are
// those of the sum of all losses with p held fixed: dI = r - p. Choices as kernels/pattern.h has them; on a GPU no
// query may choose a later key.
struct IndexLossArgs : KernelArgs {
  const void* index_q_BHTD = nullptr;  // (B, Hi, T, Di)
  const void* index_k_BTD = nullptr;   // (B, T, Di)
  const void* weights_BHT = nullptr;   // (B, Hi, T), in compute_dtype(dtype)
  const void* q_BHTD = nullptr;        // (B, H, T, D), rotated
  const void* k_BHTD = nullptr;        // (B, Hkv, T, D), rotated
  const std::int32_t* choice_BTM = nullptr;
  std::int64_t B = 0, T = 0, Hi = 0, Di = 0, H = 0, Hkv = 0, D = 0, M = 0;
  double scale = 1;
  DType dtype = DType::f32;   // of both q and both k: f32 or f64 on a CPU, f32 or (by tiles) bf16 on a GPU
  double* loss_BT = nullptr;  // one a query
  void* dq_BHTD = nullptr;  // like index_q, in compute_dtype(dtype); null: no gradient is wanted, of none of the three
  void* dk_BTD = nullptr;   // like index_k
  void* dweights_BHT = nullptr;
  void* workspace = nullptr;  // of a GPU: scratch of workspace_bytes(), 64-byte aligned
};

namespace cpu {
void run(const IndexLossArgs& a);
}  // namespace cpu
namespace cuda {
// Tiles of 64 queries against blocks of 64 keys, also the keys that few queries of the tile chose. A choice so small
// beside the row that nearly all of that would be in vain is walked key by key.
constexpr bool index_loss_by_tiles(const IndexLossArgs& a) { return a.T <= 64 * a.M; }
// By tiles: which pairs count, dI of about 256 MiB of them at a time, and copies of q and k that are not bf16 with
// rows of whole 32 bytes. By keys: the index keys' gradient of up to 128 pieces of the batch.
std::size_t workspace_bytes(const IndexLossArgs& a, Stream stream);
void run(const IndexLossArgs& a, Stream stream);
}  // namespace cuda

}  // namespace sieve
