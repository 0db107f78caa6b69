// Generation of SparseK with a linear state: which key the cache drops for good at a step, and the state that it then
// enters (docs/attention.md, "SparseK with a linear state"). Memory does not grow. Which
// key leaves is known on the host, as in AttentionCache; rows and the state stay on the device of qkv.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/decode.h"
#include "attention/kernels/linear.h"
#include "attention/linear.h"
#include "attention/streaming_selection.h"

namespace sieve {

class EvictedKeys {
 public:
  EvictedKeys(const AttentionSpec& spec, const RopeSpec& rope, std::int64_t batch, std::int64_t score_heads);

  // The linear part of the next position, or of a first prompt, of every sequence; called before the cache takes the
  // same step, whose rows it reads. qkv (B, n, (H + 2 Hkv) D), scores (B, Hs, n) -> (B, n, H D).
  Tensor step(const AttentionCache& cache, const Tensor& qkv, const Tensor& scores);
  std::int64_t bytes() const;

 private:
  // A key that no later query sees, and the row of the cache that holds it.
  struct Leaving {
    std::int64_t position, row;
  };
  std::vector<Leaving> exits(std::int64_t head, double score);
  Tensor advance(const Tensor& qkv, const KeyExits& lists);
  Tensor prompt(const Tensor& qkv, const Tensor& scores);
  // rows of `cache`, at these positions, become tokens of qkv.
  void fetch(const AttentionCache& cache, const std::vector<EvictedRow>& rows,
             const std::vector<std::int64_t>& positions, Tensor& qkv) const;

  AttentionSpec spec_;
  RopeSpec rope_;
  std::int64_t B_, Hs_, length_ = 0;
  LinearShape shape_;
  std::vector<StreamingSelection> selection_;  // (B, Hs): slots as the cache's own
  std::vector<double> ring_;                   // (B, Hs, W) scores in the window (candidates on_exit)
  Tensor state_;
};

}  // namespace sieve
