// Keys and values kept for generation, one cache per layer. What a query sees equals what attention() shows it at the
// same position of one document that starts at 0 (docs/attention_engines.md, "Generation").
//   full            every row so far; the buffer grows by doubling
//   sliding_window  the last `window` rows in a ring, and the first `sinks` rows
//   sparsek         the last `window` rows in a ring, and k slots of selected rows: the row that leaves the window (or
//   the new
//                   row, candidates at_once) competes, and the loser's slot is overwritten in place
// so that the two sparse kinds hold the same memory at every length.
// Letters: B batch, n new tokens, H query heads, Hkv key-value heads, Hs score heads (Hkv or 1), D head size.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "attention/spec.h"
#include "tensor/tensor.h"

namespace sieve {

class AttentionCache {
 public:
  // Rows are stored in `dtype`, that of the qkv to come (f32, bf16 or f64). `max_tokens` bounds the length (0:
  // unbounded); a step beyond it is Error(Exit::config). `score_heads` is Hs, 0 standing for Hkv; used by SparseK
  // alone. Errors of the spec are those of attention().
  AttentionCache(const AttentionSpec& spec, const RopeSpec& rope, std::int64_t batch, DType dtype,
                 std::int64_t max_tokens, std::int64_t score_heads = 0);
  ~AttentionCache();
  AttentionCache(AttentionCache&&) noexcept;
  AttentionCache& operator=(AttentionCache&&) noexcept;

  // The next n >= 1 positions of every sequence: qkv (B, n, (H + 2 Hkv) D), not rotated; scores (B, Hs, n) fp32 or fp64
  // for SparseK, on the device of qkv, undefined otherwise. Returns (B, n, H D) in qkv's dtype. The first call may
  // bring a whole prompt and runs the tiled engine on it; the result is the same as that of one token at a time up to
  // rounding, the selected set is the same exactly.
  Tensor step(const Tensor& qkv, const Tensor& scores = {});

  void reset();                 // back to length 0; keeps the memory
  std::int64_t length() const;  // tokens seen so far
  std::int64_t rows() const;  // key-value rows allocated per KV head: window + k, window + sinks, or the grown buffer's
  std::int64_t bytes() const;  // all memory held, rows and scalars (not the rotary table, which layers share)
  // Positions in the selected slots after the last step, ascending: what the next query competes with (SparseK; empty
  // otherwise). `kv_head` reads the shared selection when Hs is 1.
  std::vector<std::int64_t> selected(std::int64_t batch, std::int64_t kv_head) const;

  // (B, Hkv, rows, D). sparsek: position j of the window in row j mod W, the slots from row W on; keys rotated where
  // positions are absolute.
  const Tensor& keys() const;
  const Tensor& values() const;

  // What a cache on a GPU takes over (device_cache.h). keys and values are the cache's own.
  struct Contents {
    std::int64_t batch = 0, length = 0;
    Tensor keys, values;            // (B, Hkv, rows, D)
    std::vector<double> ring;       // (B, Hs, W) ordered scores, the key at position j at j mod W (candidates on_exit)
    std::vector<double> u;          // (B, Hs, k) ordered scores of the slots
    std::vector<std::int64_t> key;  // (B, Hs, k) their positions, -1: free
    std::vector<double> pool;       // (B, Hs, pool k) what the thresholds see, -infinity: free (soft gates)
    std::vector<double> tau;        // (B, Hs) -infinity while fewer than k scores came
  };
  Contents contents() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sieve
