// One token of B sequences on a GPU as a fixed sequence of launches, captured once and replayed: all state (caches,
// selection, position, the token to come) lies on the device, and nothing is allocated after the first two tokens.
// A layer of a small batch is five launches: norm + qkv + scores, attention, join + projection, norm + up, down. One
// sequence is two launches for the whole token where its weights pass through the shared memory (kernels/token_run.h):
// selection, and all the rest.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "attention/device_cache.h"
#include "nn/attention_layer.h"
#include "nn/decoder.h"
#include "nn/kernels/token.h"
#include "nn/kernels/token_run.h"
#include "tensor/graph.h"

namespace sieve {

class TokenGraph {
 public:
  // Whether the model lies on a GPU and every layer's cache can (DeviceCache::takes).
  static bool takes(const Decoder& model, std::int64_t max_tokens);
  // The model must outlive it and stay where it is. Starts at position 0.
  TokenGraph(const Decoder& model, std::int64_t batch, std::int64_t max_tokens);

  // Sequences first .. go on where these states stand (a layer each); then start_at() their length.
  void load(std::int64_t first, const std::vector<std::unique_ptr<MixerState>>& states);
  void start_at(std::int64_t position);
  void set_tokens(const Tensor& ids);     // i32 (B): the next input
  void choose_among(std::int64_t vocab);  // the first so many tokens; waits for nothing, records anew

  // Queues one token: the input becomes part of the sequences, logits() are its, and the likeliest token the next
  // input.
  void step();
  const Tensor& logits() const { return logits_; }  // fp32 (B, V), of the last step; overwritten by the next
  static constexpr std::int64_t kKept = 64;
  // i32 (B, kKept): the choice after the input at position p in entry p mod kKept. Waits for the GPU.
  Tensor choices() const { return history_.to(Stream{}); }
  std::int64_t nan_scores() const;  // scores that were not numbers so far; waits for the GPU

  const DeviceCache& cache(std::int64_t layer) const { return layers_[static_cast<std::size_t>(layer)].cache; }

 private:
  struct Layer {
    DeviceCache cache;
    TokenLinearArgs qkv, out, up, down;
    DecodeAttendArgs attend;
    Tensor count, sum, squares;  // (B, Hs) where scores are normalised
  };
  void add_layer(const Block& block, std::int64_t index, std::int64_t max_tokens);
  TokenLinearArgs product(const Linear& linear, const Tensor& out) const;
  void add_norm(TokenLinearArgs& args, const Norm& norm) const;
  void upload_selections();
  void plan_one_launch();
  void queue_token() const;
  void queue(const TokenLinearArgs& args) const;
  void queue_by_library(const TokenLinearArgs& args) const;
  const void* input_of(const TokenLinearArgs& args) const;
  void queue_selections(std::int64_t first, std::int64_t count, bool follows) const;

  const Decoder& model_;
  std::int64_t B_;
  Stream stream_;
  DType dtype_;
  bool small_;  // products by our own kernels; launches overlap then, and never with a library's
  std::vector<Layer> layers_;
  TokenLinearArgs head_;
  TokenEmbedArgs embed_;
  TokenChoiceArgs choice_;
  DecodeParts parts_;
  Tensor x_, qkv_, hidden_, input_, scores_, logits_;               // (B, ...)
  Tensor sums_, stats_, partial_, ids_, history_, position_, nan_;  // of the kernels
  Tensor frequency_, turn_cos_, turn_sin_;                          // (R)
  Tensor selections_;                // DecodeSelection of the layers, those whose candidates leave the window first
  std::vector<std::int64_t> place_;  // of a layer in it, -1: none
  std::int64_t on_exit_ = 0;         // how many of the first kind
  TokenRunArgs run_;
  Tensor run_layers_, words_, best_, epoch_;
  bool one_launch_ = false;
  bool warm_ = false;  // a token has run
  StreamGraph graph_;
};

}  // namespace sieve
