// A layer's cache whose whole state lies on a GPU, for batches that generate token by token: rows as AttentionCache
// keeps them, in place and of fixed number (exactly k + W a key-value head for SparseK), and the selection beside them.
// A step reads and writes the same memory with the same launches whatever the position (kernels/decode_step.h).
#pragma once

#include <cstdint>
#include <vector>

#include "attention/decode.h"
#include "attention/kernels/decode_step.h"
#include "attention/rotary.h"

namespace sieve {

class DeviceCache {
 public:
  // Whether such a layer can be kept so: f32 or bf16, head sizes of whole 16-byte packs up to 256, a bounded pool where
  // gates are soft, and a bounded length (max_tokens > 0) where attention is full.
  static bool takes(const AttentionSpec& spec, const RopeSpec& rope, DType dtype, std::int64_t max_tokens);
  // score_heads as in AttentionCache. All memory is allocated here.
  DeviceCache(const AttentionSpec& spec, const RopeSpec& rope, std::int64_t batch, DType dtype, std::int64_t max_tokens,
              std::int64_t score_heads, const Stream& stream);

  // Sequences first .. first + from's batch go on where that cache stands. All of a batch must stand at one length.
  void load(const AttentionCache& from, std::int64_t first);

  // Pointers of a step; who launches adds the token's position and memory, and `slope` and normalisation of scores.
  DecodeSelection selection() const;
  DecodeAttendArgs attend_arguments() const;
  DecodeScores score_arguments() const;  // Hs 0 where the layer has no scorer

  bool sparse() const { return spec_.kind == AttentionKind::sparsek; }
  bool selects_at_once() const { return sparse() && spec_.sparsek.candidates == Candidates::at_once; }
  std::int64_t score_heads() const { return Hs_; }
  std::int64_t rows() const { return capacity_; }  // a key-value head
  std::int64_t bytes() const;
  std::vector<std::int64_t> selected(std::int64_t batch, std::int64_t kv_head) const;  // ascending; waits for the GPU

 private:
  AttentionSpec spec_;
  RopeSpec rope_;
  std::int64_t B_, Hs_, capacity_ = 0, pool_ = 0, far_distance_ = 0;
  DType dtype_;
  Stream stream_;
  Tensor keys_, values_;                        // (B, Hkv, capacity, D)
  Tensor ring_, u_, key_, seen_, pool_scores_;  // (B Hs, ...)
  Tensor least_, incoming_, tau_;               // (B Hs)
  RotaryTable distances_;
};

}  // namespace sieve
