// The compute ABI of generation whose whole state lies on a GPU: a token is a fixed sequence of launches with fixed
// arguments (only memory changes), so that it can be captured once and replayed. What a query sees, the order of keys
// and the arithmetic are those of kernels/select.h and kernels/decode.h.
// Letters: B batch, H query heads, Hkv key-value heads, Hs score heads (Hkv or 1), D head size, F = (H + 2 Hkv) D,
// W window, k slots, C = pool k scores that the thresholds see, S splits of a head's rows, R = rotary_dims / 2.
#pragma once

#include <cstdint>

#include "attention/spec.h"
#include "core/dtype.h"
#include "tensor/dispatch.h"

namespace sieve {

// SparseK's selection of one layer. Plain pointers to the device.
struct DecodeSelection {
  double* ring = nullptr;         // (B, Hs, ring_size) ordered scores of keys that still compete: key j at j mod size
  std::int64_t ring_size = 0;     // W; candidates at_once: 1
  double* u = nullptr;            // (B, Hs, k) ordered score of each slot
  std::int64_t* key = nullptr;    // (B, Hs, k) its position
  float* seen = nullptr;          // (B, Hs, k) gate m of the slot for the query at hand, -1: not visible
  std::int32_t* least = nullptr;  // (B, Hs) slot of the least member, once all are taken
  std::int32_t* incoming = nullptr;  // (B, Hs) slot that this step's candidate takes, -1: none
  double* pool = nullptr;            // (B, Hs, C) scores above tau as the operator sees them; at most tau: free place
  double* tau = nullptr;             // (B, Hs)
  std::int64_t rows = 0;             // B Hs
  std::int64_t k = 0, C = 0, window = 0;
  double slope = 0, temperature = 1;
  bool thresholds = false;  // soft gates
  bool at_once = false;     // the candidate is the new key; else the one that leaves the window
};

// One candidate a row of each layer competes: the slot it takes, tau, the gates of all slots.
struct DecodeSelectArgs : KernelArgs {
  const DecodeSelection* layers = nullptr;  // on the device
  std::int64_t count = 0;
  std::int64_t most_rows = 0;              // of any layer
  const std::int64_t* position = nullptr;  // of the new token
  bool follows =
      true;  // the launch before is one of the same token that may overlap (tensor/kernels/cuda/dependent.cuh)
};

// What becomes of the score of a new key: normalised where there are running statistics, then kept in the ring.
struct DecodeScores {
  std::int64_t Hs = 0;  // 0: the layer has no scorer
  const float* gain_H = nullptr;
  double* count = nullptr;  // (B, Hs) statistics of timestep_norm, with gain
  double* sum = nullptr;
  double* squares = nullptr;
  double eps = 0, slope = 0;
  double* ring = nullptr;  // as in DecodeSelection
  std::int64_t ring_size = 0;
  const std::int64_t* position = nullptr;
  unsigned long long* nan_count = nullptr;
};

// The same for scores that another kernel computed.
struct DecodePushArgs : KernelArgs {
  DecodeScores scores;
  const float* s_BH = nullptr;
  std::int64_t B = 0;
  bool follows = true;
};

// A head's softmax over S parts of its rows: sum of weight times value (not divided), and the maximum of the logits and
// the sum of the weights about it.
struct DecodeParts {
  float* sums = nullptr;   // (B, H, S, D)
  float* stats = nullptr;  // (B, H, S, 2)
  std::int64_t H = 0, S = 0, D = 0;
};

// The new token's query against its cache, which takes its key and value: rows as in AttentionCache (full: row j is
// position j; sliding_window: sinks, then the ring; sparsek: the ring, then the slots). Where a candidate takes a slot,
// its row moves there before its place in the ring is overwritten.
struct DecodeAttendArgs : KernelArgs {
  const void* qkv_BF = nullptr;
  void* keys_BKCD = nullptr;
  void* values_BKCD = nullptr;
  std::int64_t capacity = 0;
  const std::int64_t* position = nullptr;
  AttentionKind kind = AttentionKind::full;
  std::int64_t window = 0, sinks = 0;
  DecodeSelection selection;  // sparsek
  std::int64_t Hs = 1;
  GateMode gate = GateMode::hard;
  std::int64_t B = 0, H = 0, Hkv = 0, D = 0;
  float scale = 1;
  DType dtype = DType::f32;  // f32 or bf16
  DecodeParts parts;
  std::int64_t rotary_dims = 0;
  const float* turn_cos = nullptr;  // (R) of the new position: keys are stored rotated
  const float* turn_sin = nullptr;
  const float* distance_cos = nullptr;  // (distances, R): keys are not, queries turn by the distance to each
  const float* distance_sin = nullptr;
  std::int64_t far_distance = 0;  // of selected keys at most
  bool follows = true;
};

// The parts of each head joined in their order: out (B, H D).
struct DecodeMergeArgs : KernelArgs {
  DecodeParts parts;
  void* out_BHD = nullptr;
  std::int64_t B = 0;
  DType dtype = DType::f32;
  bool follows = true;
};

namespace cuda {
void run(const DecodeSelectArgs& a, Stream stream);
void run(const DecodePushArgs& a, Stream stream);
void run(const DecodeAttendArgs& a, Stream stream);
void run(const DecodeMergeArgs& a, Stream stream);
// Head sizes and dtypes that DecodeAttendArgs takes.
bool decodes(std::int64_t head_dim, DType dtype);
}  // namespace cuda

}  // namespace sieve
