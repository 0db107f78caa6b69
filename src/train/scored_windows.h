// The forwards of an evaluation: every scored target's loss, in the text's order, on every rank.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "data/token_source.h"
#include "dist/communicator.h"
#include "nn/decoder.h"
#include "train/eval_windows.h"

namespace sieve {

struct ScoredWindow {
  EvalWindow window;
  std::span<const std::int32_t> text;  // tokens [begin, end)
  std::span<const float> losses;       // nats, of targets [score_begin, end)
};

// Collective. Windows are spread over the ranks, `rows` of them a forward; every rank visits all, in their order, with
// the same bits for any number of ranks. From a GPU come the losses alone. starts: where the documents begin of which
// a token sees its own only; empty: a token sees all of its window.
void visit_scored_windows(const Decoder& model, const TokenSource& source, const std::vector<EvalWindow>& windows,
                          std::int64_t rows, std::span<const std::int64_t> starts, Communicator& comm,
                          const std::function<void(const ScoredWindow&)>& visit);

}  // namespace sieve
