// Keys and values kept for generation by the kinds of shows_pairs(): what a query sees equals what pattern_attention()
// shows it at the same position of one document that starts at 0. Rows that no later query sees are overwritten where
// positions alone decide that (cached_rows() of attention_cost.h); where contents or random blocks do, every row stays.
// Letters: B batch, n new tokens, H query heads, Hkv key-value heads, Hc heads that choose (1 or H), D head size.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "attention/cache_rows.h"

namespace sieve {

// What the newest token of a generation may look at when it chooses.
struct NewToken {
  Tensor qkv;                 // (B, 1, (H + 2 Hkv) D), not rotated
  Tensor query;               // (B, H, D), rotated at its position
  Tensor keys;                // (B, Hkv, position + 1, D), a view: row j is the key of position j, rotated there
  std::int64_t position = 0;  // its own
};
// Its choice as kernels/pattern.h lists it, i32 (B, Hc, choice_size), on any device.
using ChooseNext = std::function<Tensor(const NewToken&)>;

class PatternCache {
 public:
  // Rows are stored in `dtype`, that of the qkv to come. `max_tokens` bounds the length (0: unbounded); a step beyond
  // it is Error(Exit::config). `choose`: how a new token chooses, for kinds that look at the content and are not told.
  PatternCache(const AttentionSpec& spec, const RopeSpec& rope, std::int64_t batch, DType dtype,
               std::int64_t max_tokens, ChooseNext choose = {});

  // The next n >= 1 positions of every sequence: qkv (B, n, (H + 2 Hkv) D), not rotated. `choice` i32 (B, Hc, n, N):
  // what they chose, on the device of qkv, where the caller knows it (hash, dsa, nsa); undefined: pattern_attention()
  // chooses for a prompt and `choose` for a token. Returns (B, n, H D). The first call may bring a whole prompt and
  // runs the tiled engine on it.
  Tensor step(const Tensor& qkv, const Tensor& choice = {});

  std::int64_t length() const { return length_; }
  std::int64_t rows() const { return rows_.capacity; }  // allocated per key-value head; grows by doubling
  std::int64_t bytes() const;

 private:
  void check(const Tensor& qkv, const Tensor& choice) const;
  void reserve(std::int64_t tokens, const Stream& stream);
  Tensor prefill(const Tensor& qkv, const Tensor& choice);
  void append(const Tensor& qkv, std::int64_t t);
  Tensor chosen(const Tensor& qkv, const Tensor& choice, std::int64_t t) const;
  void remember_buckets(const Tensor& choice);
  void list_rows(const Tensor& choice, std::int64_t b, std::int64_t h, std::vector<CachedSlot>& out) const;
  void attend(const Tensor& qkv, const Tensor& choice, std::int64_t t, Tensor& out);
  Tensor query_at(const Tensor& qkv, std::int64_t t) const;

  AttentionSpec spec_;
  RopeSpec rope_;
  std::int64_t max_tokens_, length_ = 0;
  ChooseNext choose_;
  CacheRows rows_;
  std::vector<std::vector<std::int32_t>> buckets_;  // hash: (B Hc) of every position so far
};

}  // namespace sieve
