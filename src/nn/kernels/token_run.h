// The compute ABI of one token of one sequence as a single launch: as many blocks as the GPU has multiprocessors run
// through all layers and hand each other features as words of payload and tag, so that whoever waits for a value polls
// the value itself and nothing else has to be waited for. The weights of the next layer are on their way meanwhile.
// Letters as in token.h; F features of the MLP, G blocks.
#pragma once

#include <cstdint>

#include "attention/kernels/decode_step.h"

namespace sieve {

struct TokenProduct {
  const void* w_NK = nullptr;
  const void* bias_N = nullptr;  // may be null
  std::int64_t N = 0, K = 0;
};

struct TokenRunLayer {
  TokenProduct qkv, out, up, down;
  const void* gain1_C = nullptr;
  const void* shift1_C = nullptr;  // null: root mean square norm
  const void* gain2_C = nullptr;
  const void* shift2_C = nullptr;
  DecodeAttendArgs attend;  // without qkv, parts and angles
  const float* score_w_HC = nullptr;
  DecodeScores scores;
};

// Appends *id at *position; logits are fp32. Choice and history as in TokenChoiceArgs.
struct TokenRunArgs : KernelArgs {
  const TokenRunLayer* layers = nullptr;  // on the device
  std::int64_t count = 0;
  std::int64_t C = 0, H = 0, Hkv = 0, D = 0, F = 0, V = 0;
  bool swiglu = false;  // up has N = 2 F; else GELU
  double eps = 0;       // of all norms
  const void* tokens_VC = nullptr;
  const void* positions_TC = nullptr;  // may be null
  const void* gain_C = nullptr;        // the last norm's
  const void* shift_C = nullptr;
  const void* head_VC = nullptr;
  float* logits_V = nullptr;
  const double* frequency_R = nullptr;
  std::int64_t R = 0;
  std::int64_t vocab = 0, kept = 0;
  std::int32_t* id = nullptr;
  std::int32_t* history_T = nullptr;
  std::int64_t* position = nullptr;
  DType dtype = DType::f32;
  // Filled by plan_token_run.
  std::int64_t G = 0, S = 0;
  std::int64_t held = 0;  // rows of a split in shared memory
  int lanes_log2 = 0;     // of the lanes that share such a row
  int group = 1;          // query heads of a key-value head
  std::int64_t qkv_words = 0, part_words = 0, x_words = 0, up_words = 0, layer_words = 0;
  // Zeros before the first token.
  std::uint64_t* words = nullptr;  // (count, layer_words)
  std::uint64_t* best = nullptr;   // (G)
  std::uint32_t* epoch = nullptr;  // (2) tokens so far, blocks that are through
};

namespace cuda {
// Whether such a token runs in one launch on the stream's device; fills what it says. `rows`: most that a layer keeps
// for a key-value head.
bool plan_token_run(TokenRunArgs& a, std::int64_t rows, const Stream& stream);
void run(const TokenRunArgs& a, Stream stream);
}  // namespace cuda

}  // namespace sieve
