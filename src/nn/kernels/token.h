// The compute ABI of one token of a small batch on a GPU: the products read each weight once for the whole batch, with
// what comes before and behind them in the same kernel (attention/kernels/decode_step.h has the attention).
// Letters: B sequences, K and N features in and out, C d_model, V vocabulary, R = rotary_dims / 2.
#pragma once

#include <cstdint>

#include "attention/kernels/decode_step.h"

namespace sieve {

// What the product takes: x as it is, normed, SwiGLU of [gate | up], or the joined parts of the attention.
enum class TokenInput { plain, layer_norm, rms_norm, swiglu, attention };

// y = op(x) W^T + bias (+ add, or GELU of it), accumulated in fp32, op(x) and y rounded once. Scores of a scoring
// network over the same op(x) come along, summed in the order of ScoreArgs.
struct TokenLinearArgs : KernelArgs {
  TokenInput input = TokenInput::plain;
  const void* x_BK = nullptr;  // swiglu: (B, 2K); attention: null
  const void* gain_K = nullptr;
  const void* shift_K = nullptr;  // layer_norm
  double eps = 0;
  DecodeParts parts;
  const void* w_NK = nullptr;
  const void* bias_N = nullptr;  // may be null
  const void* add_BN = nullptr;  // may be y, may be null
  bool gelu = false;
  void* y_BN = nullptr;
  std::int64_t B = 0, N = 0, K = 0;
  DType dtype = DType::f32;    // f32 or bf16: x, weights, bias, add
  DType y_dtype = DType::f32;  // that, or f32
  const float* score_w_HK = nullptr;
  DecodeScores scores;
};

// x = token embedding (+ position embedding); cos and sin of the position's rotation.
struct TokenEmbedArgs : KernelArgs {
  const void* tokens_VC = nullptr;
  const void* positions_TC = nullptr;  // may be null
  const std::int32_t* ids_B = nullptr;
  const std::int64_t* position = nullptr;
  void* x_BC = nullptr;
  std::int64_t B = 0, V = 0, C = 0;
  DType dtype = DType::f32;
  bool follows = true;                  // a launch of the same token precedes
  const double* frequency_R = nullptr;  // angle per position
  float* turn_cos_R = nullptr;
  float* turn_sin_R = nullptr;
  std::int64_t R = 0;
};

// The likeliest of the first `vocab` tokens, the first of equals; -1 where the largest logit is not finite or one is
// NaN. It becomes the next input and entry `position` mod `kept` of the history; then the position moves on.
struct TokenChoiceArgs : KernelArgs {
  const float* logits_BV = nullptr;
  std::int64_t B = 0, V = 0, vocab = 0;
  void* partial = nullptr;  // partial_bytes()
  std::int32_t* ids_B = nullptr;
  std::int32_t* history_BT = nullptr;  // (B, kept)
  std::int64_t kept = 0;
  std::int64_t* position = nullptr;
  bool follows = true;

  static constexpr std::int64_t kParts = 32;
  static std::int64_t partial_bytes(std::int64_t B) { return B * kParts * 8; }
};

namespace cuda {
void run(const TokenLinearArgs& a, Stream stream);
void run(const TokenEmbedArgs& a, Stream stream);
void run(const TokenChoiceArgs& a, Stream stream);
// Whether TokenLinearArgs takes a product of such extents; larger ones are a library's.
bool takes_token_product(std::int64_t B, std::int64_t K, DType dtype);
}  // namespace cuda

}  // namespace sieve
