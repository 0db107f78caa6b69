#include "nn/generation.h"

#include <algorithm>
#include <cmath>

#include "nn/token_graph.h"

namespace sieve {
namespace {

constexpr std::int64_t kPrefillTokens = std::int64_t{1} << 17;  // of the sequences that are prefilled at once

// What continue_greedily() promises, of one sequence's logits on the CPU.
std::int32_t likeliest(std::span<const float> logits) {
  std::size_t best = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i])) return -1;
    if (logits[i] > logits[best]) best = i;
  }
  return std::isfinite(logits[best]) ? static_cast<std::int32_t>(best) : -1;
}

}  // namespace

Generation::Generation(const Decoder& model, std::int64_t batch, std::int64_t max_tokens)
    : model_(model), batch_(batch), max_tokens_(max_tokens) {
  require(batch >= 1, "generation", "of ", batch, " sequences");
  if (TokenGraph::takes(model, max_tokens)) graph_ = std::make_unique<TokenGraph>(model, batch, max_tokens);
  else states_ = start(batch);
}
Generation::~Generation() = default;

Generation::States Generation::start(std::int64_t batch) const {
  States states;
  for (const Block& block : model_.blocks())
    states.push_back(block.mixer().start(batch, model_.compute_dtype(), max_tokens_));
  return states;
}

Tensor Generation::extend(const Tensor& tokens, const States& states) const {
  const NoGrad no_grad;
  const Tensor ids = tokens.to(model_.stream());
  Variable x = model_.embed(ids, length_);
  for (std::size_t i = 0; i < states.size(); ++i) {
    states[i]->meet(ids);
    x = model_.blocks()[i].extend(x, *states[i]);
  }
  const Variable last = slice(x, 1, tokens.size(1) - 1, tokens.size(1));
  const Tensor out = model_.head_logits(model_.final_norm_(last).value());
  return out.reshape({tokens.size(0), out.size(2)});
}

// n more tokens, whose ids may be undefined where a GPU chose them.
void Generation::check(const Tensor& tokens, std::int64_t n) const {
  const std::int64_t end = length_ + n;
  if (model_.config().arch == Arch::gpt2 && end > *model_.config().max_seq)
    fail(Exit::config, "model.max_seq", "position ", end, " is beyond the ", *model_.config().max_seq,
         " learned positions");
  if (max_tokens_ > 0 && end > max_tokens_)
    fail(Exit::config, "cache", "position ", end, " exceeds the ", max_tokens_, " tokens that this cache was made for");
  if (!tokens.defined() || !tokens.device().is_cpu()) return;
  const Tensor ids = tokens.contiguous();
  for (const std::int32_t id : ids.span<std::int32_t>())
    if (id < 0 || id >= *model_.config().vocab_size)
      fail(Exit::data, "generation", "token ", id, " of a vocabulary of ", *model_.config().vocab_size);
}

Tensor Generation::append(const Tensor& tokens) {
  const bool shared = length_ == 0 && tokens.size(0) == 1 && batch_ > 1;
  require(tokens.rank() == 2 && tokens.size(1) >= 1 && (tokens.size(0) == batch_ || shared), "generation",
          "wants tokens (", batch_, ", T >= 1), got ", tokens.shape());
  if (graph_) return append_on_device(tokens);
  const Tensor all = shared ? tokens.expand({batch_, tokens.size(1)}).contiguous() : tokens;
  const Tensor out = extend(all, states_);
  length_ += tokens.size(1);
  return out;
}

// A prompt runs whole through the tiled engine, a few sequences at a time; the graph goes on from what it leaves.
Tensor Generation::prefill_on_device(const Tensor& tokens) {
  const std::int64_t T = tokens.size(1), rows = tokens.size(0);
  const std::int64_t each = std::min(rows, std::max<std::int64_t>(1, kPrefillTokens / T));
  Tensor out = empty({batch_, *model_.config().vocab_size}, DType::f32, model_.stream());
  for (std::int64_t first = 0; first < rows; first += each) {
    const std::int64_t end = std::min(rows, first + each);
    const States states = start(end - first);
    const Tensor logits = extend(tokens.slice(0, first, end).contiguous(), states);
    if (rows == batch_) {
      graph_->load(first, states);
      out.slice(0, first, end).copy_from(logits);
      continue;
    }
    for (std::int64_t b = 0; b < batch_; ++b) {  // one prompt for all
      graph_->load(b, states);
      out.slice(0, b, b + 1).copy_from(logits);
    }
  }
  graph_->start_at(T);
  length_ = T;
  return out;
}

Tensor Generation::append_on_device(const Tensor& tokens) {
  check(tokens, tokens.size(1));
  if (length_ == 0 && tokens.size(1) > 1) return prefill_on_device(tokens);
  const Tensor all = tokens.expand({batch_, tokens.size(1)}).contiguous();
  for (std::int64_t t = 0; t < all.size(1); ++t) {
    graph_->set_tokens(all.slice(1, t, t + 1).contiguous());
    graph_->step();
    ++length_;
  }
  check_scores();
  return graph_->logits().clone();
}

void Generation::check_scores() const {
  if (const std::int64_t nan = graph_->nan_scores(); nan > 0)
    fail(Exit::nonfinite, "cache", nan, " scores are NaN: the scorer's weights or its inputs are not finite");
}

Tensor Generation::continue_greedily(const Tensor& ids, std::int64_t n, std::int64_t vocab) {
  require(n >= 1 && ids.numel() == batch_ && vocab >= 1 && vocab <= *model_.config().vocab_size, "generation", "wants ",
          batch_, " ids, got ", ids.numel(), "; ", n, " tokens of ", vocab);
  Tensor out = empty({batch_, n}, DType::i32);
  const auto choice = [&](std::int64_t b, std::int64_t t, std::int32_t id) {
    if (id < 0) fail(Exit::nonfinite, "generation", "the logits of sequence ", b, " are not finite");
    out.data<std::int32_t>()[b * n + t] = id;
  };
  if (!graph_) {
    Tensor next = ids.reshape({batch_, 1});
    for (std::int64_t t = 0; t < n; ++t) {
      const Tensor logits = append(next).to(Stream{});
      next = empty({batch_, 1}, DType::i32);
      for (std::int64_t b = 0; b < batch_; ++b) {
        const auto row = logits.span<float>().subspan(static_cast<std::size_t>(b * logits.size(1)));
        choice(b, t, next.data<std::int32_t>()[b] = likeliest(row.first(static_cast<std::size_t>(vocab))));
      }
    }
    return out;
  }
  check(ids, n);
  graph_->choose_among(vocab);
  graph_->set_tokens(ids);
  for (std::int64_t done = 0; done < n;) {
    const std::int64_t now = std::min(n - done, TokenGraph::kKept);
    for (std::int64_t t = 0; t < now; ++t) graph_->step();
    const Tensor kept = graph_->choices();
    check_scores();
    for (std::int64_t x = 0; x < batch_ * now; ++x) {
      const std::int64_t b = x / now, t = x % now;
      choice(b, done + t, kept.data<std::int32_t>()[b * TokenGraph::kKept + (length_ + t) % TokenGraph::kKept]);
    }
    done += now;
    length_ += now;
  }
  return out;
}

std::int64_t Generation::cache_rows() const {
  std::int64_t n = 0;
  for (std::int64_t layer = 0; layer < model_.config().n_layers; ++layer) {
    const std::int64_t rows = graph_ ? graph_->cache(layer).rows() : states_[static_cast<std::size_t>(layer)]->rows();
    n += rows * batch_ * *model_.config().n_kv_heads;
  }
  return n;
}

std::int64_t Generation::cache_bytes() const {
  std::int64_t n = 0;
  for (std::int64_t layer = 0; layer < model_.config().n_layers; ++layer)
    n += graph_ ? graph_->cache(layer).bytes() : states_[static_cast<std::size_t>(layer)]->bytes();
  return n;
}

std::vector<std::int64_t> Generation::selected(std::int64_t layer, std::int64_t sequence, std::int64_t kv_head) const {
  require(layer >= 0 && layer < model_.config().n_layers, "generation", "no layer ", layer);
  return graph_ ? graph_->cache(layer).selected(sequence, kv_head)
                : states_[static_cast<std::size_t>(layer)]->selected(sequence, kv_head);
}

}  // namespace sieve
