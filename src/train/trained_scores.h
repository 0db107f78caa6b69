// The scores that a model's SparseK layers give to tokens, as a file for `sieve bench attention --scores FILE`: how
// much work a selection is depends on what training has made of its scores. Letters: B rows, T tokens, Hs score heads.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/error.h"
#include "nn/decoder.h"

namespace sieve {

struct TrainedScoresOptions {
  std::string checkpoint, data, output;  // checkpoint or run folder; token shards; safetensors file to write
  std::string length;                    // "16k"; empty: data.seq_len of the model
  std::int64_t rows = 4;                 // of text, evenly spread over the data
  std::int64_t layer = -1;               // one layer alone; -1: all that select
  std::string device = "auto";
};

// Writes `scores` f32 (rows * heads * layers, T); heads and layers of a row of text follow one another, so that any
// first part of the file holds all layers alike. Says what else the selection depends on: k, window, slope.
// Exit::config, Exit::data as always.
Exit write_trained_scores(const TrainedScoresOptions& options);

// tokens i32 (B, T), one document a row -> per layer (B, Hs, T) f32 on the CPU; undefined where a layer has no scores.
std::vector<Tensor> layer_scores(const Decoder& model, const Tensor& tokens);

}  // namespace sieve
