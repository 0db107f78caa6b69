#include "nn/nsa_layer.h"

#include <algorithm>
#include <cmath>

#include "attention/kernels/nsa.h"
#include "attention/nsa.h"
#include "attention/pattern.h"

namespace sieve {
namespace {

// The rows of one sequence behind those of another, along time: (B, n, F) each; `held` may be undefined.
Tensor behind(const Tensor& held, const Tensor& fresh) {
  if (!held.defined() || held.size(1) == 0) return fresh;
  const std::int64_t n = held.size(1), all = n + fresh.size(1);
  Tensor out = empty({fresh.size(0), all, fresh.size(2)}, fresh.dtype(), fresh.stream());
  out.slice(1, 0, n).copy_from(held);
  out.slice(1, n, all).copy_from(fresh);
  return out;
}

double fan_in_std(std::int64_t features) { return 1 / std::sqrt(static_cast<double>(features)); }

std::int64_t size_in_bytes(const Tensor& t) { return t.defined() ? static_cast<std::int64_t>(t.nbytes()) : 0; }

}  // namespace

// Weights of the two products keep the size of what passes through, whatever l: rows of many features would
// otherwise vanish.
Compressor::Compressor(ParameterFactory& make, const std::string& name, const ModelConfig& config,
                       const AttentionSpec& spec)
    : heads_(spec.n_kv_heads), pattern_(spec.pattern) {
  const std::int64_t D = spec.head_dim, l = pattern_.compress_block;
  project_ = Linear(make, name + ".project", config.d_model, heads_ * D, config.arch == Arch::gpt2, config.init.std);
  places_ = make.make(name + ".compress.places", {l, D}, {.std = config.init.std});
  up_ = Linear(make, name + ".compress.up", l * D, D, true, fan_in_std(l * D));
  down_ = Linear(make, name + ".compress.down", D, D, true, fan_in_std(D));
}

Variable Compressor::compress(const Variable& rows, const Tensor& document_starts) const {
  const Variable blocks = compress_rows(rows, places_->value, heads_, pattern_, document_starts);
  return gelu_mlp(blocks, up_.weight(), up_.bias(), down_.weight(), down_.bias(), {});
}

void CompressedRows::append(const Compressor& compressor, const Variable& x, const PatternSpec& pattern) {
  const Tensor all = behind(tail, compressor.project(x).value());
  const std::int64_t fresh = compressed_count(all.size(1), pattern.compress_block, pattern.compress_stride);
  if (fresh > 0) {
    const Tensor added = compressor.compress(Variable(all)).value();
    if (count + fresh > capacity()) {
      const std::int64_t doubled = std::max<std::int64_t>(16, 2 * capacity());
      Tensor grown = zeros({added.size(0), added.size(1),
                            std::max(count + fresh, most > 0 ? std::min(doubled, most) : doubled), added.size(3)},
                           added.dtype(), added.stream());
      if (count > 0) grown.slice(2, 0, count).copy_from(rows.slice(2, 0, count));
      rows = grown;
    }
    rows.slice(2, count, count + fresh).copy_from(added);
    count += fresh;
  }
  tail = all.slice(1, fresh * pattern.compress_stride, all.size(1)).clone();  // not the memory of a whole prompt
}

Variable CompressedRows::kept(const AttentionSpec& spec, const Tensor& like) const {
  if (count > 0) return Variable(rows.slice(2, 0, count));
  return Variable(empty({like.size(0), spec.n_kv_heads, 0, spec.head_dim}, like.dtype(), like.stream()));
}

std::int64_t CompressedRows::capacity() const { return rows.defined() ? rows.size(2) : 0; }
std::int64_t CompressedRows::bytes() const { return size_in_bytes(rows) + size_in_bytes(tail); }

std::int64_t NsaState::rows() const {
  return selected_branch.rows() + window_branch.rows() + keys.capacity() +
         (keys.tail.defined() ? keys.tail.size(1) : 0);
}
std::int64_t NsaState::bytes() const {
  return selected_branch.bytes() + window_branch.bytes() + keys.bytes() + values.bytes();
}

NsaLayer::NsaLayer(ParameterFactory& make, const std::string& name, const ModelConfig& config, std::int64_t layer)
    : spec_(config.attention_spec(layer)), selected_spec_(spec_), window_spec_(spec_), rope_(config.rope_spec()) {
  selected_spec_.kind = AttentionKind::moba;  // the same pattern: blocks of a list, which this layer hands it
  window_spec_.kind = AttentionKind::sliding_window;
  const bool bias = config.arch == Arch::gpt2;
  const std::int64_t C = config.d_model, HD = spec_.n_heads * spec_.head_dim, kvD = spec_.n_kv_heads * spec_.head_dim;
  q_ = Linear(make, name + ".q", C, HD, bias, config.init.std);
  keys_ = Compressor(make, name + ".keys", config, spec_);
  values_ = Compressor(make, name + ".values", config, spec_);
  selected_ = Linear(make, name + ".selected", C, 2 * kvD, bias, config.init.std);
  window_ = Linear(make, name + ".window", C, 2 * kvD, bias, config.init.std);
  gates_ = Linear(make, name + ".gates", C, 3 * spec_.n_heads, bias, config.init.std);
  out_ = Linear(make, name + ".out", HD, C, bias, residual_std(config));
}

Variable NsaLayer::operator()(const Variable& x, const Variable& residual, const Documents& documents,
                              SelectionStats*) const {
  const Variable q = q_(x);
  Tensor choice;
  const Variable compressed = compressed_attention(q, keys_.compress(keys_.project(x), documents.starts),
                                                   values_.compress(values_.project(x), documents.starts), spec_,
                                                   x.size(1), documents.starts, &choice);
  const Variable selected =
      pattern_attention(join_features(q, selected_(x)), choice,
                        {.spec = selected_spec_, .rope = rope_, .document_starts = documents.starts});
  const Variable window = attention(join_features(q, window_(x)), {},
                                    {.spec = window_spec_, .rope = rope_, .document_starts = documents.starts});
  return out_(gate_branches(compressed, selected, window, gates_(x), spec_.n_heads), residual);
}

std::unique_ptr<MixerState> NsaLayer::start(std::int64_t batch, DType compute, std::int64_t max_tokens) const {
  auto state = std::make_unique<NsaState>(PatternCache(selected_spec_, rope_, batch, compute, max_tokens),
                                          AttentionCache(window_spec_, rope_, batch, compute, max_tokens));
  const PatternSpec& p = spec_.pattern;
  state->keys.most = state->values.most = compressed_count(max_tokens, p.compress_block, p.compress_stride);
  return state;
}

Variable NsaLayer::extend(const Variable& x, const Variable& residual, MixerState& state) const {
  const NoGrad no_grad;
  auto& own = dynamic_cast<NsaState&>(state);
  own.keys.append(keys_, x, spec_.pattern), own.values.append(values_, x, spec_.pattern);
  const Variable q = q_(x);
  Tensor choice;
  const Variable compressed =
      compressed_attention(q, own.keys.kept(spec_, q.value()), own.values.kept(spec_, q.value()), spec_,
                           own.selected_branch.length() + x.size(1), {}, &choice);
  const Variable selected(own.selected_branch.step(join_features(q, selected_(x)).value(), choice)),
      window(own.window_branch.step(join_features(q, window_(x)).value()));
  return out_(gate_branches(compressed, selected, window, gates_(x), spec_.n_heads), residual);
}

}  // namespace sieve
