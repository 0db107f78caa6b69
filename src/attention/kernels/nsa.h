// ABI of NSA's own operations (attention/nsa.h); its selected and window branches run on kernels that others share.
// Letters: B batch, T positions, N queries (the last N of the T positions), H query heads, Hkv key-value heads, D head
// size, M compressed keys, l keys of a compressed key, s keys from one compressed key to the next.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "tensor/dispatch.h"

namespace sieve {

// Compressed keys of a document of n positions: m stands for the positions [m s, m s + l), all of them inside.
SIEVE_HD constexpr std::int64_t compressed_count(std::int64_t n, std::int64_t l, std::int64_t s) {
  return n < l ? 0 : (n - l) / s + 1;
}

// Where compressed keys lie: the documents of a row one behind the other, each with a grid of its own. Their number
// differs from row to row but never exceeds compressed_count(T, l, s) where l is a multiple of s; rows of arrays over M
// that stand for nothing are zeros.
struct CompressedGrid {
  const std::int32_t* document_starts_BT = nullptr;  // null: one document a row
  std::int64_t B = 0, T = 0, l = 0, s = 0;
  std::int64_t M() const { return compressed_count(T, l, s); }
};

// out (B, H, M, l D): the l rows of head h that a compressed key stands for, each plus positions[its place].
// x (B, T, H D), positions (l, D).
struct CompressRowsArgs : KernelArgs {
  const void* x_BTF = nullptr;
  const void* positions_LD = nullptr;
  void* out_BHML = nullptr;
  CompressedGrid grid;
  std::int64_t H = 0, D = 0;
  DType dtype = DType::f32;
};
struct CompressRowsBackwardArgs : KernelArgs {
  CompressRowsArgs forward;  // without its results
  const void* grad_BHML = nullptr;
  void* dx_BTF = nullptr;
  void* dpositions_LD = nullptr;  // compute dtype, summed in fp64; null: not wanted
};

// Softmax attention of queries over the compressed keys that end at or before them; 0 where there are none. Scale as
// given, nothing is rotated. Query head h reads head h / (H / Hkv).
//
// choice_BHNC, if given (B, Hkv, N, C = blocks): blocks of `block` keys of the document, ascending, filled up with
// kNoChoice. In this order: the query's own block, the one before it, the document's first, then those of the largest
//   importance_j = sum over query heads of the group, sum over compressed keys m of p_m * (stretches of s keys that m
//   and block j share)
// with p the attention probabilities; of equal ones the later. NaN counts as the largest.
struct CompressedAttentionArgs : KernelArgs {
  const void* q_BNF = nullptr;   // F = H D
  const void* k_BHMD = nullptr;  // on the CPU the compute dtype, on a GPU that of q; as v
  const void* v_BHMD = nullptr;
  void* out_BNF = nullptr;
  void* statistics_BHN = nullptr;  // GPU only, compute dtype: log2 of the softmax's denominator, for backward
  CompressedGrid grid;             // documents only with N = T
  std::int64_t N = 0, H = 0, Hkv = 0, D = 0;
  double scale = 1;
  DType dtype = DType::f32;  // of q and out
  std::int64_t block = 0, blocks = 0;
  std::int32_t* choice_BHNC = nullptr;
};
struct CompressedAttentionBackwardArgs : KernelArgs {
  CompressedAttentionArgs forward;  // of its results a GPU reads out and statistics, the CPU none
  const void* dout_BNF = nullptr;
  void* dq_BNF = nullptr;
  void* dk_BHMD = nullptr;  // compute dtype, as dv; all of them
  void* dv_BHMD = nullptr;
};

// out[r, h, :] = sum over branches c of sigmoid(gates[r, c, h]) x_c[r, h, :].  x_c (R, H D), gates (R, 3, H).
struct GateBranchesArgs : KernelArgs {
  const void* x_RF[3] = {};
  const void* gates_RCH = nullptr;
  void* out_RF = nullptr;
  std::int64_t R = 0, H = 0, D = 0;
  DType dtype = DType::f32;
};
struct GateBranchesBackwardArgs : KernelArgs {
  GateBranchesArgs forward;
  const void* dout_RF = nullptr;
  void* dx_RF[3] = {};
  void* dgates_RCH = nullptr;
};

namespace cpu {
void run(const CompressRowsArgs& a);
void run(const CompressRowsBackwardArgs& a);
void run(const CompressedAttentionArgs& a);
void run(const CompressedAttentionBackwardArgs& a);
void run(const GateBranchesArgs& a);
void run(const GateBranchesBackwardArgs& a);
}  // namespace cpu

namespace cuda {
void run(const CompressRowsArgs& a, Stream stream);
void run(const CompressRowsBackwardArgs& a, Stream stream);
// Keys and values of any head size to 256.
void run(const CompressedAttentionArgs& a, Stream stream);
void run(const CompressedAttentionBackwardArgs& a, Stream stream);
void run(const GateBranchesArgs& a, Stream stream);
void run(const GateBranchesBackwardArgs& a, Stream stream);
}  // namespace cuda

}  // namespace sieve
