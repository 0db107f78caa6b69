// The compute ABI: one plain struct per kernel family, one declaration per backend. Kernels never see Tensor and hold
// no state. Pointers are to dense row-major data of the stated letters unless strides are given; extents and strides
// count elements, any extent may be 0. `dtype` is f32, bf16 or f64: bf16 computes in fp32 and rounds its outputs once.
// "compute dtype" below is fp32 for f32 and bf16, fp64 for f64: statistics and weight gradients have it. Outputs must
// not overlap inputs unless stated. No result depends on the number of threads. Wrong arguments throw
// Error(Exit::internal), wrong ids and targets Error(Exit::data).
//
// Letters: R rows, D features, M N K matrix extents, V vocabulary, C channels, B batch, T time, H heads, n elements.
// Fill an Args with designated initialisers and hand it to launch(stream, args) of tensor/dispatch.h.
#pragma once

#include <array>
#include <cstdint>

#include "core/dtype.h"
#include "core/shape.h"
#include "tensor/dispatch.h"

namespace sieve {

using Extents = std::array<std::int64_t, kMaxRank>;  // extents or strides of a view, the first `rank` entries count

// ---- Matrix product
// ------------------------------------------------------------------------------------------------------------ C =
// alpha op(A) op(B) + beta C + bias, accumulated in fp32 (fp64 for f64). op(A) is (M, K), op(B) is (K, N), C is (M, N).
// Stored shapes: A (M, K) with row stride lda, or (K, M) if transpose_a; B (K, N), or (N, K) if transpose_b.
// dtypes (A and B, C): f32 f32 | bf16 bf16 | bf16 f32 | f64 f64. bias_N has A's dtype and may be null. beta 0 never
// reads C.
//
// What is fused behind the product, in this order (all in fp32, one rounding at the end):
//   v = alpha op(A) op(B) + beta C + bias + add;   gelu: pre = v (if kept), v = GELU(v);   gelu_backward: v = v
//   GELU'(pre)
// GELU is the tanh form. `pre` has C's dtype and row stride; `add` too (a residual; it may not be C: that is beta).
// a_sum_M, if given, receives sum over K of op(A) per row of C in the compute dtype: with op(A) = dy^T, the product dW
// = dy^T x, that is the gradient of the bias.
enum class Epilogue { none, gelu, gelu_backward };
struct MatmulArgs : KernelArgs {
  const void* a = nullptr;
  const void* b = nullptr;
  void* c = nullptr;
  const void* bias_N = nullptr;
  std::int64_t M = 0, N = 0, K = 0;
  std::int64_t lda = 0, ldb = 0, ldc = 0;
  bool transpose_a = false, transpose_b = false;
  double alpha = 1, beta = 0;
  DType dtype = DType::f32;  // of A, B and bias
  DType c_dtype = DType::f32;
  const void* add_MN = nullptr;
  Epilogue epilogue = Epilogue::none;
  void* pre_MN = nullptr;  // written by gelu (null: not kept), read by gelu_backward
  void* a_sum_M = nullptr;
};

// ---- Elementwise
// ---------------------------------------------------------------------------------------------------------------
enum class Binary { add, mul };

// out = a op b over `extents`. out is dense; a and b are read through strides (0 broadcasts). out may be a or b if that
// one is dense.
struct BinaryArgs : KernelArgs {
  Binary op = Binary::add;
  const void* a = nullptr;
  const void* b = nullptr;
  void* out = nullptr;
  int rank = 0;
  Extents extents{}, a_strides{}, b_strides{};
  DType dtype = DType::f32;
};

// y = alpha x + beta y, n elements, dense. beta 0 never reads y. x and y may be the same. Any pair of float dtypes;
// computed in fp32 unless one is f64. Covers scale (beta 0), conversion, and accumulation of gradients (alpha 1, beta
// 1). alpha_factor, if given, points to one f32 (f64 where x is f64) beside x that alpha is multiplied with.
struct AxpbyArgs : KernelArgs {
  const void* x = nullptr;
  void* y = nullptr;
  std::int64_t n = 0;
  double alpha = 1, beta = 0;
  DType x_dtype = DType::f32, y_dtype = DType::f32;
  const void* alpha_factor = nullptr;
};

// dst[view] = src[view], converting; any dtypes (float to integer truncates), any strides; dst strides must not be 0
// over extents > 1.
struct CopyArgs : KernelArgs {
  const void* src = nullptr;
  void* dst = nullptr;
  int rank = 0;
  Extents extents{}, src_strides{}, dst_strides{};
  DType src_dtype = DType::f32, dst_dtype = DType::f32;
};

// dst[0..n) = value. Any dtype.
struct FillArgs : KernelArgs {
  void* dst = nullptr;
  std::int64_t n = 0;
  double value = 0;
  DType dtype = DType::f32;
};

// Element i from counter i of Philox{seed, philox_stream}: normal (a mean, b standard deviation) or uniform [a, b).
enum class Random { normal, uniform };
struct RandomArgs : KernelArgs {
  void* dst = nullptr;
  std::int64_t n = 0;
  Random kind = Random::normal;
  double a = 0, b = 1;
  std::uint64_t seed = 0, philox_stream = 0;
  DType dtype = DType::f32;
};

// ---- Reductions
// ----------------------------------------------------------------------------------------------------------------
// Un-broadcast: out = sum of x over every axis with reduce[axis], accumulated in fp64 in an order that the extents
// alone decide. x is read through strides; out is dense over the axes that stay. out_dtype: x's or its compute dtype.
struct ReduceArgs : KernelArgs {
  const void* x = nullptr;
  void* out = nullptr;
  int rank = 0;
  Extents extents{}, x_strides{};
  std::array<bool, kMaxRank> reduce{};
  DType dtype = DType::f32, out_dtype = DType::f32;
};

// *sum = sum of x, or of x^2 if `square`, in fp64 over a fixed tree of blocks. n elements, dense.
struct SumArgs : KernelArgs {
  const void* x = nullptr;
  double* sum = nullptr;
  std::int64_t n = 0;
  bool square = false;
  DType dtype = DType::f32;
};

// Bias gradient: out_N = sum over rows of x (R, N) with row stride ld, plus the old out_N if `accumulate`. out: compute
// dtype.
struct ColumnSumArgs : KernelArgs {
  const void* x_RN = nullptr;
  void* out_N = nullptr;
  std::int64_t R = 0, N = 0, ld = 0;
  bool accumulate = false;
  DType dtype = DType::f32;
};

// ---- Norms: Ba et al. 2016 (arXiv 1607.06450), Zhang & Sennrich 2019 (arXiv 1910.07467)
// ---------------------------------------- y = (x - mean) rstd w + b, rstd = 1 / sqrt(var + eps). mean_R, rstd_R:
// compute dtype, may be null in forward (then not kept). b_D may be null.
struct LayerNormArgs : KernelArgs {
  const void* x_RD = nullptr;
  const void* w_D = nullptr;
  const void* b_D = nullptr;
  void* y_RD = nullptr;
  void* mean_R = nullptr;
  void* rstd_R = nullptr;
  std::int64_t R = 0, D = 0;
  double eps = 0;
  DType dtype = DType::f32;
};
// Any of dx_RD (dtype), dw_D, db_D (compute dtype) may be null. accumulate: dw and db are added to. dx_RD may be dy_RD.
// dx_add_RD (dtype, may be dx_RD) is added to dx before its one rounding: the gradient that comes past the norm.
struct LayerNormBackwardArgs : KernelArgs {
  const void* dy_RD = nullptr;
  const void* x_RD = nullptr;
  const void* w_D = nullptr;
  const void* mean_R = nullptr;
  const void* rstd_R = nullptr;
  void* dx_RD = nullptr;
  void* dw_D = nullptr;
  void* db_D = nullptr;
  std::int64_t R = 0, D = 0;
  bool accumulate = false;
  DType dtype = DType::f32;
  const void* dx_add_RD = nullptr;
};

// y = x rstd w, rstd = 1 / sqrt(mean(x^2) + eps). rstd_R as above.
struct RmsNormArgs : KernelArgs {
  const void* x_RD = nullptr;
  const void* w_D = nullptr;
  void* y_RD = nullptr;
  void* rstd_R = nullptr;
  std::int64_t R = 0, D = 0;
  double eps = 0;
  DType dtype = DType::f32;
};
struct RmsNormBackwardArgs : KernelArgs {
  const void* dy_RD = nullptr;
  const void* x_RD = nullptr;
  const void* w_D = nullptr;
  const void* rstd_R = nullptr;
  void* dx_RD = nullptr;  // may be null or dy_RD
  void* dw_D = nullptr;   // may be null
  std::int64_t R = 0, D = 0;
  bool accumulate = false;
  DType dtype = DType::f32;
  const void* dx_add_RD = nullptr;  // as in LayerNormBackwardArgs
};

// ---- Activations
// ---------------------------------------------------------------------------------------------------------------
// Hendrycks & Gimpel 2016 (arXiv 1606.08415): exact x Phi(x), or 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) if
// tanh_form.
struct GeluArgs : KernelArgs {
  const void* x = nullptr;
  void* y = nullptr;
  std::int64_t n = 0;
  bool tanh_form = true;
  DType dtype = DType::f32;
};
struct GeluBackwardArgs : KernelArgs {
  const void* dy = nullptr;
  const void* x = nullptr;
  void* dx = nullptr;  // may be dy
  std::int64_t n = 0;
  bool tanh_form = true;
  DType dtype = DType::f32;
};

// Shazeer 2020 (arXiv 2002.05202): y (R, F) = silu(gate) up, x (R, 2F) = [gate | up].
struct SwigluArgs : KernelArgs {
  const void* x_R2F = nullptr;
  void* y_RF = nullptr;
  std::int64_t R = 0, F = 0;
  DType dtype = DType::f32;
};
struct SwigluBackwardArgs : KernelArgs {
  const void* dy_RF = nullptr;
  const void* x_R2F = nullptr;
  void* dx_R2F = nullptr;
  std::int64_t R = 0, F = 0;
  DType dtype = DType::f32;
};

// ---- Embedding
// ----------------------------------------------------------------------------------------------------------------- y_r
// = w[ids_r]. An id outside [0, V) is Error(Exit::data) that names id, row and V; nothing is read for it.
struct EmbeddingArgs : KernelArgs {
  const void* w_VC = nullptr;
  const std::int32_t* ids_R = nullptr;
  void* y_RC = nullptr;
  std::int64_t R = 0, V = 0, C = 0;
  DType dtype = DType::f32;
};
// dw (compute dtype) = for each id the sum of its dy rows in row order; rows of absent ids are 0, or unchanged if
// `accumulate`.
struct EmbeddingBackwardArgs : KernelArgs {
  const void* dy_RC = nullptr;
  const std::int32_t* ids_R = nullptr;
  void* dw_VC = nullptr;
  std::int64_t R = 0, V = 0, C = 0;
  bool accumulate = false;
  DType dtype = DType::f32;
};

// ---- Loss
// ----------------------------------------------------------------------------------------------------------------------
// losses_R (compute dtype) = logsumexp(logits_r) - logits_r[target_r], 0 for a negative target (ignored). A target >= V
// is Error(Exit::data). If dlogits_RV is given it receives grad_scale (softmax - onehot), 0 in ignored rows; it has
// dlogits_dtype and may be logits_RV itself (then the dtypes are equal). losses_R may be null. ld: row stride of both.
// grad_factor, if given, points to one number (compute dtype) beside the logits that grad_scale is multiplied with.
struct CrossEntropyArgs : KernelArgs {
  const void* logits_RV = nullptr;
  const std::int32_t* targets_R = nullptr;
  void* losses_R = nullptr;
  void* dlogits_RV = nullptr;
  std::int64_t R = 0, V = 0, ld = 0;
  double grad_scale = 1;
  DType dtype = DType::f32, dlogits_dtype = DType::f32;
  const void* grad_factor = nullptr;
};

// ---- Scores of the SparseK scoring network
// ------------------------------------------------------------------------------------- s[b,h,t] = x[b,t,:] . w[h,:] in
// the compute dtype, summed in an order that C alone decides. s and w: compute dtype (the scorer of a bf16 model is
// fp32: its scores decide an order).
struct ScoreArgs : KernelArgs {
  const void* x_BTC = nullptr;
  const void* w_HC = nullptr;
  void* s_BHT = nullptr;
  std::int64_t B = 0, T = 0, C = 0, H = 0;
  DType dtype = DType::f32;
};
struct ScoreBackwardArgs : KernelArgs {
  const void* ds_BHT = nullptr;  // compute dtype
  const void* x_BTC = nullptr;
  const void* w_HC = nullptr;
  void* dx_BTC = nullptr;  // dtype; may be null
  void* dw_HC = nullptr;   // compute dtype; may be null
  std::int64_t B = 0, T = 0, C = 0, H = 0;
  bool accumulate = false;  // dw is added to
  DType dtype = DType::f32;
};

// ---- Optimizer: Loshchilov & Hutter 2019 (arXiv 1711.05101), Algorithm 2 with bias correction
// ----------------------------------- g' = grad_scale g; m = beta1 m + (1 - beta1) g'; v = beta2 v + (1 - beta2) g'^2;
// p = p - lr (weight_decay p + (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps)). step counts from 1.
// All fp32, dense, n elements; one call updates all parameters of a model, laid out one behind the other. copy_bf16, if
// given, receives the rounded p. `segments` arrays say whose element is whose: element i lies in the first segment s
// with i < segment_end[s] and decays by weight_decay * segment_decay[s]; 0 segments: all by weight_decay.
// control (beside p, may be null): control[0] is multiplied into grad_scale; control[1] != 0: nothing is written. It
// lets the gradient's norm be used where it was computed, without the host.
struct AdamWArgs : KernelArgs {
  float* p = nullptr;
  float* m = nullptr;
  float* v = nullptr;
  const float* g = nullptr;
  bf16* copy_bf16 = nullptr;
  std::int64_t n = 0, step = 1;
  double lr = 0, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0, grad_scale = 1;
  const std::int64_t* segment_end = nullptr;  // ascending
  const float* segment_decay = nullptr;
  std::int64_t segments = 0;
  const float* control = nullptr;
};

namespace cpu {
void run(const MatmulArgs&);
void run(const BinaryArgs&);
void run(const AxpbyArgs&);
void run(const CopyArgs&);
void run(const FillArgs&);
void run(const RandomArgs&);
void run(const ReduceArgs&);
void run(const SumArgs&);
void run(const ColumnSumArgs&);
void run(const LayerNormArgs&);
void run(const LayerNormBackwardArgs&);
void run(const RmsNormArgs&);
void run(const RmsNormBackwardArgs&);
void run(const GeluArgs&);
void run(const GeluBackwardArgs&);
void run(const SwigluArgs&);
void run(const SwigluBackwardArgs&);
void run(const EmbeddingArgs&);
void run(const EmbeddingBackwardArgs&);
void run(const CrossEntropyArgs&);
void run(const ScoreArgs&);
void run(const ScoreBackwardArgs&);
void run(const AdamWArgs&);
}  // namespace cpu

// Every pointer of Args is device memory of the stream's device; ids and targets out of range write NaN (the host
// checks them where they are loaded).
namespace cuda {
void run(const MatmulArgs&, Stream);
void run(const BinaryArgs&, Stream);
void run(const AxpbyArgs&, Stream);
void run(const CopyArgs&, Stream);
void run(const FillArgs&, Stream);
void run(const RandomArgs&, Stream);
void run(const ReduceArgs&, Stream);
void run(const SumArgs&, Stream);
void run(const ColumnSumArgs&, Stream);
void run(const LayerNormArgs&, Stream);
void run(const LayerNormBackwardArgs&, Stream);
void run(const RmsNormArgs&, Stream);
void run(const RmsNormBackwardArgs&, Stream);
void run(const GeluArgs&, Stream);
void run(const GeluBackwardArgs&, Stream);
void run(const SwigluArgs&, Stream);
void run(const SwigluBackwardArgs&, Stream);
void run(const EmbeddingArgs&, Stream);
void run(const EmbeddingBackwardArgs&, Stream);
void run(const CrossEntropyArgs&, Stream);
void run(const ScoreArgs&, Stream);
void run(const ScoreBackwardArgs&, Stream);
void run(const AdamWArgs&, Stream);
}  // namespace cuda

}  // namespace sieve
