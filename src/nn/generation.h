// Text token by token: B sequences of equal length, one cache per layer. SparseK + window layers hold k + W rows per
// head, whatever the length. On a GPU the state lies there and a token is one captured graph (nn/token_graph.h), unless
// the model is one that it does not take.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "nn/decoder.h"

namespace sieve {

class TokenGraph;

class Generation {
 public:
  // The model must outlive it and stay on its device. max_tokens bounds the length (0: unbounded).
  Generation(const Decoder& model, std::int64_t batch, std::int64_t max_tokens);
  ~Generation();

  // Appends tokens i32 (B, T) and returns the logits of the last one, fp32 (B, V). The first tokens may be (1, T): all
  // sequences begin with them. gpt2: Error(Exit::config) beyond max_seq.
  Tensor append(const Tensor& tokens);
  // Appends `ids` i32 (B) and n - 1 times what it chose: the likeliest of the first `vocab` tokens, the first of
  // equals. Returns the n choices i32 (B, n) on the CPU, the last of them not appended. On a GPU the host queues and
  // does not take part. Error(Exit::nonfinite) where a largest logit is not finite.
  Tensor continue_greedily(const Tensor& ids, std::int64_t n, std::int64_t vocab);

  std::int64_t length() const { return length_; }
  bool captured() const { return graph_ != nullptr; }  // tokens run as a graph
  std::int64_t cache_rows() const;                     // key-value rows held, summed over layers, heads and sequences
  std::int64_t cache_bytes() const;
  // Positions in the selected slots after the last token, ascending (SparseK; empty otherwise).
  std::vector<std::int64_t> selected(std::int64_t layer, std::int64_t sequence, std::int64_t kv_head) const;

 private:
  using States = std::vector<std::unique_ptr<MixerState>>;  // one a layer
  States start(std::int64_t batch) const;
  Tensor extend(const Tensor& tokens, const States& states) const;
  Tensor prefill_on_device(const Tensor& tokens);
  Tensor append_on_device(const Tensor& tokens);
  void check(const Tensor& tokens, std::int64_t n) const;
  void check_scores() const;

  const Decoder& model_;
  std::int64_t batch_, max_tokens_, length_ = 0;
  States states_;
  std::unique_ptr<TokenGraph> graph_;
};

}  // namespace sieve
