#include "nn/decoder.h"

#include <algorithm>

#include "attention/random_scores.h"
#include "nn/attention_layer.h"
#include "tensor/kernels/kernels.h"

namespace sieve {

void RecomputeConfig::fields(FieldVisitor& v) {
  v.boolean({"attention", "run every layer's attention again in backward instead of keeping its tensors"}, attention);
  v.boolean({"mlp", "run every layer's MLP again in backward instead of keeping its tensors"}, mlp);
  v.integer(
      {.name = "activations",
       .doc = "gpt2: so many layers run GELU again in backward instead of keeping its output, d_ff numbers a token",
       .min = 0},
      activations);
  v.integers({"layers", "numbers of the layers that are run again whole"}, layers);
}

Block::Block(ParameterFactory& make, const ModelConfig& config, std::int64_t layer) : layer_(layer) {
  const std::string name = "layers." + std::to_string(layer);
  norm1_ = Norm(make, name + ".norm1", config);
  mixer_ = make_mixer(make, name + ".attn", config, layer);
  norm2_ = Norm(make, name + ".norm2", config);
  mlp_ = Mlp(make, name + ".mlp", config);
}

Variable Block::operator()(const Variable& x, const Documents& documents, const RecomputeConfig& again,
                           SelectionStats* stats) const {
  using Part = std::function<Variable(const Variable&)>;
  const bool whole = std::find(again.layers.begin(), again.layers.end(), layer_) != again.layers.end();
  const bool attention_again = whole || again.attention;
  // A recomputed part runs once without recording and once more in backward, when `stats` may be gone: only the first
  // run fills them.
  const Part attend = [this, documents, stats, attention_again](const Variable& in) {
    return (*mixer_)(norm1_(in), in, documents, attention_again && grad_enabled() ? nullptr : stats);
  };
  const Part think = [this, keep = layer_ >= again.activations](const Variable& in) {
    return mlp_(norm2_(in), in, keep);
  };
  const auto run = [](bool twice, const Part& part, const Variable& in) {
    return twice && grad_enabled() ? recompute(part, in) : part(in);
  };
  if (whole)
    return run(
        true, [attend, think](const Variable& in) { return think(attend(in)); }, x);
  return run(again.mlp, think, run(again.attention, attend, x));
}

Variable Block::extend(const Variable& x, MixerState& state) const {
  const Variable mid = mixer_->extend(norm1_(x), x, state);
  return mlp_(norm2_(mid), mid, false);
}

const AttentionLayer* Block::attention() const { return dynamic_cast<const AttentionLayer*>(mixer_.get()); }

Decoder::Decoder(const ModelConfig& resolved, const DecoderOptions& options) : config_(resolved), options_(options) {
  require(config_.vocab_size.has_value() && config_.n_kv_heads.has_value(), "decoder",
          "the configuration is not resolved");
  ParameterFactory make(options.compute, options.seed, options.shapes_only);
  token_embedding_ =
      make.make("embed.tokens.weight", {*config_.vocab_size, config_.d_model}, {.std = config_.init.std});
  if (config_.arch == Arch::gpt2)
    position_embedding_ =
        make.make("embed.positions.weight", {*config_.max_seq, config_.d_model}, {.std = config_.init.std});
  for (std::int64_t layer = 0; layer < config_.n_layers; ++layer) {
    blocks_.emplace_back(make, config_, layer);
    numbers_documents_ = numbers_documents_ || config_.attention_spec(layer).sparsek.random_scores;
  }
  final_norm_ = Norm(make, "final_norm", config_);
  head_ = *config_.tie_embeddings
              ? token_embedding_
              : make.make("head.weight", {*config_.vocab_size, config_.d_model}, {.std = config_.init.std});
  parameters_ = make.all();
}

Variable Decoder::embed(const Tensor& tokens, std::int64_t position) const {
  const Variable x = embedding(token_embedding_->value, tokens.to(stream()));
  if (!position_embedding_) return x;
  const std::int64_t end = position + tokens.size(1);
  if (end > *config_.max_seq)
    fail(Exit::config, "model.max_seq", "position ", end, " is beyond the ", *config_.max_seq, " learned positions");
  return add(x, slice(position_embedding_->value, 0, position, end));
}

Variable Decoder::hidden(const Tensor& tokens, const Tensor& document_starts,
                         std::vector<SelectionStats>* stats) const {
  if (stats) stats->assign(blocks_.size(), {});
  const bool packed = config_.attention.document_mask && document_starts.defined();
  const Tensor starts = packed ? document_starts.to(stream()) : Tensor();
  const Tensor ids = tokens.to(stream());
  const Documents documents{starts, numbers_documents_ ? document_numbers(ids, starts) : Tensor()};
  Variable x = embed(ids, 0);
  for (std::size_t i = 0; i < blocks_.size(); ++i)
    x = blocks_[i](x, documents, options_.recompute, stats ? &(*stats)[i] : nullptr);
  return final_norm_(x);
}

Variable Decoder::loss_sum(const TokenBatch& batch, Tensor* losses, std::vector<SelectionStats>* stats) const {
  const Variable x = hidden(batch.tokens, batch.document_starts, stats);
  const Variable rows = reshape(x, {x.size(0) * x.size(1), x.size(2)});
  return linear_cross_entropy(rows, head_->value, batch.targets.to(stream()).flatten(), losses);
}

// Logits leave the product unrounded: at bf16 a logit of 20 would move in steps of 0.125 and ties would decide samples.
Tensor Decoder::head_logits(const Tensor& x) const {
  const Tensor in = x.contiguous(), w = head_->value.value();
  Tensor out = empty({x.size(0), x.size(1), w.size(0)}, sieve::compute_dtype(x.dtype()), x.stream());
  MatmulArgs args;
  args.a = in.raw(), args.b = w.raw(), args.c = out.raw();
  args.M = x.size(0) * x.size(1), args.N = w.size(0), args.K = w.size(1);
  args.lda = args.K, args.ldb = args.K, args.ldc = args.N;
  args.transpose_b = true;
  args.dtype = x.dtype(), args.c_dtype = out.dtype();
  launch(x.stream(), args);
  return out;
}

Tensor Decoder::logits(const Tensor& tokens, const Tensor& document_starts) const {
  const NoGrad no_grad;
  return head_logits(hidden(tokens, document_starts, nullptr).value());
}

Tensor Decoder::logits_at(const Tensor& tokens, const Tensor& rows) const {
  const NoGrad no_grad;
  const Variable x = hidden(tokens, {}, nullptr);
  const std::int64_t C = x.size(2);
  const Variable some = embedding(reshape(x, {x.size(0) * x.size(1), C}), rows.to(stream()));
  return head_logits(some.value().reshape({1, rows.numel(), C})).reshape({rows.numel(), head_->value.size(0)});
}

void Decoder::visit_logits(const Tensor& tokens, std::int64_t begin, std::int64_t rows,
                           const std::function<void(std::int64_t, const Tensor&)>& visit) const {
  require(tokens.rank() == 2 && tokens.size(0) == 1 && begin >= 0 && rows >= 1, "decoder", "wants tokens (1, T), got ",
          tokens.shape(), " from ", begin, ", ", rows, " rows at once");
  const NoGrad no_grad;
  const Tensor x = hidden(tokens, {}, nullptr).value();
  for (std::int64_t first = begin; first < x.size(1); first += rows)
    visit(first, head_logits(x.slice(1, first, std::min(x.size(1), first + rows))));
}

}  // namespace sieve
