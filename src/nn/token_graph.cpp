#include "nn/token_graph.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <typeinfo>

#include "core/build.h"
#include "tensor/kernels/kernels.h"
#include "tensor/profile.h"

namespace sieve {
namespace {

// Kernels that exist on a GPU alone.
template <class Args>
void queue_on_gpu(const Stream& stream, const Args& args) {
  if constexpr (build::with_cuda) {
    const KernelTimer timer(typeid(Args).name(), stream);
    cuda::run(args, stream);
  }
}

// Blocks enough to fill a GPU, few enough that joining their parts stays cheap.
std::int64_t splits_of(const Decoder& model, std::int64_t batch) {
  std::int64_t most = 8;
  for (const Block& block : model.blocks())
    if (block.attention()->spec().kind == AttentionKind::full) most = 32;  // rows grow with the length
  const std::int64_t heads = batch * *model.config().n_kv_heads;
  return std::clamp<std::int64_t>((132 + heads - 1) / heads, 1, most);
}

const void* pointer(const Variable& v) { return v.defined() ? v.value().raw() : nullptr; }

// Whether they all begin at whole 16 bytes, as the one launch copies them.
bool whole(std::initializer_list<const void*> pointers) {
  return std::all_of(pointers.begin(), pointers.end(),
                     [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; });
}
bool whole(const TokenRunLayer& l) {
  return whole({l.qkv.w_NK, l.qkv.bias_N, l.out.w_NK, l.out.bias_N, l.up.w_NK, l.up.bias_N, l.down.w_NK, l.down.bias_N,
                l.gain1_C, l.shift1_C, l.gain2_C, l.shift2_C, l.attend.keys_BKCD, l.attend.values_BKCD, l.score_w_HC});
}

}  // namespace

bool TokenGraph::takes(const Decoder& model, std::int64_t max_tokens) {
  if (!model.stream().device.is_cuda()) return false;
  return std::all_of(model.blocks().begin(), model.blocks().end(), [&](const Block& block) {
    const AttentionLayer* attention = block.attention();
    return attention != nullptr &&
           DeviceCache::takes(attention->spec(), attention->rope(), model.compute_dtype(), max_tokens);
  });
}

TokenGraph::TokenGraph(const Decoder& model, std::int64_t batch, std::int64_t max_tokens)
    : model_(model), B_(batch), stream_(model.stream()), dtype_(model.compute_dtype()) {
  const ModelConfig& c = model.config();
  const std::int64_t C = c.d_model, H = c.n_heads, D = *c.head_dim, V = *c.vocab_size, F = *c.d_ff;
  const std::int64_t up = c.arch == Arch::gpt2 ? F : 2 * F, widest = std::max({C, H * D, F});
  small_ = false;
  if constexpr (build::with_cuda) {
    small_ = cuda::takes_token_product(B_, C, dtype_) && cuda::takes_token_product(B_, H * D, dtype_) &&
             cuda::takes_token_product(B_, F, dtype_);
  }
  const auto make = [&](const Shape& shape, DType dtype) { return zeros(shape, dtype, stream_); };
  x_ = make({B_, C}, dtype_), qkv_ = make({B_, (H + 2 * *c.n_kv_heads) * D}, dtype_), hidden_ = make({B_, up}, dtype_);
  logits_ = make({B_, V}, DType::f32);
  if (!small_) input_ = make({B_, widest}, dtype_), scores_ = make({B_, *c.n_kv_heads}, DType::f32);
  const std::int64_t S = splits_of(model, B_), R = c.rope_spec().rotary_dims / 2;
  sums_ = make({B_, H, S, D}, DType::f32), stats_ = make({B_, H, S, 2}, DType::f32);
  parts_ = {.sums = sums_.data<float>(), .stats = stats_.data<float>(), .H = H, .S = S, .D = D};
  partial_ = make({TokenChoiceArgs::partial_bytes(B_)}, DType::u8);
  ids_ = make({B_}, DType::i32), history_ = make({B_, kKept}, DType::i32);
  position_ = make({1}, DType::i64), nan_ = make({1}, DType::i64);
  std::vector<double> frequencies;  // as AttentionCache turns
  for (std::int64_t r = 0; r < R; ++r)
    frequencies.push_back(std::pow(c.rope_spec().theta, -2.0 * static_cast<double>(r) / static_cast<double>(2 * R)));
  frequency_ = from_values<double>(frequencies, {R}).to(stream_);
  turn_cos_ = make({R}, DType::f32), turn_sin_ = make({R}, DType::f32);
  layers_.reserve(model.blocks().size());
  for (std::size_t i = 0; i < model.blocks().size(); ++i)
    add_layer(model.blocks()[i], static_cast<std::int64_t>(i), max_tokens);
  upload_selections();

  embed_.tokens_VC = pointer(model.token_embedding_->value);
  if (model.position_embedding_) embed_.positions_TC = pointer(model.position_embedding_->value);
  embed_.ids_B = ids_.data<std::int32_t>(), embed_.position = position_.data<std::int64_t>();
  embed_.x_BC = x_.raw(), embed_.B = B_, embed_.V = V, embed_.C = C, embed_.dtype = dtype_;
  embed_.follows = on_exit_ > 0;
  embed_.frequency_R = frequency_.data<double>(), embed_.R = R;
  embed_.turn_cos_R = turn_cos_.data<float>(), embed_.turn_sin_R = turn_sin_.data<float>();
  head_.w_NK = pointer(model.head_->value), head_.y_BN = logits_.raw(), head_.x_BK = x_.raw();
  head_.B = B_, head_.N = V, head_.K = C, head_.dtype = dtype_, head_.y_dtype = DType::f32;
  add_norm(head_, model.final_norm_);
  choice_.logits_BV = logits_.data<float>(), choice_.B = B_, choice_.V = V, choice_.vocab = V;
  choice_.partial = partial_.raw(), choice_.ids_B = ids_.data<std::int32_t>();
  choice_.history_BT = history_.data<std::int32_t>(), choice_.kept = kKept;
  choice_.position = position_.data<std::int64_t>(), choice_.follows = small_;
  plan_one_launch();
}

void TokenGraph::plan_one_launch() {
  if (B_ != 1) return;
  const auto product = [](const TokenLinearArgs& p) { return TokenProduct{p.w_NK, p.bias_N, p.N, p.K}; };
  const ModelConfig& c = model_.config();
  TokenRunArgs& a = run_;
  std::vector<TokenRunLayer> list;
  std::int64_t rows = 0;
  for (const Layer& layer : layers_) {
    if (layer.attend.distance_cos != nullptr || layer.cache.selects_at_once()) return;
    rows = std::max(rows, layer.cache.rows());
    list.push_back({product(layer.qkv), product(layer.out), product(layer.up), product(layer.down), layer.qkv.gain_K,
                    layer.qkv.shift_K, layer.up.gain_K, layer.up.shift_K, layer.attend, layer.qkv.score_w_HK,
                    layer.qkv.scores});
  }
  a.count = static_cast<std::int64_t>(list.size()), a.C = c.d_model, a.H = c.n_heads, a.Hkv = *c.n_kv_heads;
  a.D = *c.head_dim, a.F = *c.d_ff, a.V = *c.vocab_size, a.swiglu = c.arch != Arch::gpt2, a.eps = head_.eps;
  a.dtype = dtype_, a.R = embed_.R, a.frequency_R = embed_.frequency_R;
  if (!whole({head_.w_NK, head_.gain_K, head_.shift_K})) return;
  if (!std::all_of(list.begin(), list.end(), [](const TokenRunLayer& l) { return whole(l); })) return;
  if constexpr (build::with_cuda) one_launch_ = cuda::plan_token_run(a, rows, stream_);
  if (!one_launch_) return;
  a.tokens_VC = embed_.tokens_VC, a.positions_TC = embed_.positions_TC;
  a.gain_C = head_.gain_K, a.shift_C = head_.shift_K, a.head_VC = head_.w_NK, a.logits_V = logits_.data<float>();
  a.vocab = choice_.vocab, a.kept = kKept, a.id = choice_.ids_B, a.history_T = choice_.history_BT;
  a.position = choice_.position;
  Tensor host = empty({static_cast<std::int64_t>(list.size() * sizeof(TokenRunLayer))}, DType::u8);
  std::memcpy(host.raw(), list.data(), list.size() * sizeof(TokenRunLayer));
  run_layers_ = host.to(stream_), a.layers = static_cast<const TokenRunLayer*>(run_layers_.raw());
  words_ = zeros({a.count, a.layer_words}, DType::i64, stream_), a.words = static_cast<std::uint64_t*>(words_.raw());
  best_ = zeros({a.G}, DType::i64, stream_), a.best = static_cast<std::uint64_t*>(best_.raw());
  epoch_ = zeros({2}, DType::i32, stream_), a.epoch = static_cast<std::uint32_t*>(epoch_.raw());
}

TokenLinearArgs TokenGraph::product(const Linear& linear, const Tensor& out) const {
  TokenLinearArgs a;
  a.x_BK = x_.raw(), a.y_BN = out.raw();
  a.w_NK = pointer(linear.weight()), a.bias_N = pointer(linear.bias());
  a.B = B_, a.N = linear.weight().size(0), a.K = linear.weight().size(1);
  a.dtype = a.y_dtype = dtype_;
  return a;
}

void TokenGraph::add_norm(TokenLinearArgs& a, const Norm& norm) const {
  a.gain_K = pointer(norm.weight()), a.shift_K = pointer(norm.bias()), a.eps = norm.eps();
  a.input = a.shift_K != nullptr ? TokenInput::layer_norm : TokenInput::rms_norm;
}

void TokenGraph::add_layer(const Block& block, std::int64_t index, std::int64_t max_tokens) {
  const AttentionLayer& attention = *block.attention();
  const std::int64_t score_heads = model_.config().score_heads(index);
  Layer layer{DeviceCache(attention.spec(), attention.rope(), B_, dtype_, max_tokens, score_heads, stream_),
              product(attention.qkv(), qkv_),
              product(attention.out(), x_),
              product(block.mlp().up(), hidden_),
              product(block.mlp().down(), x_),
              {},
              {},
              {},
              {}};
  add_norm(layer.qkv, block.norm1());
  add_norm(layer.up, block.norm2());
  layer.out.input = TokenInput::attention, layer.out.x_BK = nullptr, layer.out.parts = parts_;
  layer.out.add_BN = layer.down.add_BN = x_.raw();
  layer.down.x_BK = hidden_.raw();
  if (model_.config().arch == Arch::gpt2) layer.up.gelu = true;
  else layer.down.input = TokenInput::swiglu;
  layer.attend = layer.cache.attend_arguments();
  layer.attend.qkv_BF = qkv_.raw(), layer.attend.position = position_.data<std::int64_t>();
  layer.attend.parts = parts_, layer.attend.follows = small_;
  layer.attend.turn_cos = turn_cos_.data<float>(), layer.attend.turn_sin = turn_sin_.data<float>();
  if (attention.has_scorer()) {
    DecodeScores& s = layer.qkv.scores;
    s = layer.cache.score_arguments();
    s.position = position_.data<std::int64_t>(), s.eps = kTimestepEps;
    s.nan_count = static_cast<unsigned long long*>(nan_.raw());
    layer.qkv.score_w_HK = attention.score_weight().value().data<float>();
    if (attention.score_gain().defined()) {
      layer.count = full({B_, s.Hs}, kTimestepPriorCount, DType::f64, stream_);
      layer.sum = zeros({B_, s.Hs}, DType::f64, stream_);
      layer.squares = full({B_, s.Hs}, kTimestepPriorCount, DType::f64, stream_);
      s.gain_H = attention.score_gain().value().data<float>();
      s.count = layer.count.data<double>(), s.sum = layer.sum.data<double>(), s.squares = layer.squares.data<double>();
    }
  }
  layers_.push_back(std::move(layer));
}

// Candidates that leave the window are known before the token: all their layers select in one launch.
void TokenGraph::upload_selections() {
  std::vector<DecodeSelection> list;
  place_.assign(layers_.size(), -1);
  for (const bool at_once : {false, true}) {
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      if (!layers_[i].cache.sparse() || layers_[i].cache.selects_at_once() != at_once) continue;
      place_[i] = static_cast<std::int64_t>(list.size());
      list.push_back(layers_[i].cache.selection());
    }
    if (!at_once) on_exit_ = static_cast<std::int64_t>(list.size());
  }
  if (list.empty()) return;
  Tensor host = empty({static_cast<std::int64_t>(list.size() * sizeof(DecodeSelection))}, DType::u8);
  std::memcpy(host.raw(), list.data(), list.size() * sizeof(DecodeSelection));
  selections_ = host.to(stream_);
}

void TokenGraph::load(std::int64_t first, const std::vector<std::unique_ptr<MixerState>>& states) {
  require(states.size() == layers_.size(), "token graph", states.size(), " states for ", layers_.size(), " layers");
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    Layer& layer = layers_[i];
    const auto& from = dynamic_cast<const AttentionState&>(*states[i]);
    layer.cache.load(from.cache, first);
    const RunningScore& running = from.running;
    if (!layer.count.defined() || !running.count.defined()) continue;
    const std::int64_t Hs = layer.count.size(1), rows = running.count.numel() / Hs;
    const auto take = [&](Tensor& to, const Tensor& source) {
      to.slice(0, first, first + rows).copy_from(source.reshape({rows, Hs}));
    };
    take(layer.count, running.count), take(layer.sum, running.sum), take(layer.squares, running.squares);
  }
}

void TokenGraph::start_at(std::int64_t position) {
  position_.copy_from(from_values<std::int64_t>(std::vector<std::int64_t>{position}, {1}));
}

void TokenGraph::set_tokens(const Tensor& ids) { ids_.copy_from(ids.reshape({B_})); }

void TokenGraph::choose_among(std::int64_t vocab) {
  require(vocab >= 1 && vocab <= choice_.V, "token graph", vocab, " of ", choice_.V, " tokens");
  if (vocab == choice_.vocab) return;
  choice_.vocab = run_.vocab = vocab;
  graph_ = StreamGraph();
}

std::int64_t TokenGraph::nan_scores() const { return static_cast<std::int64_t>(nan_.item()); }

void TokenGraph::step() {
  if (!warm_ || KernelProfile::on()) {  // libraries load, and choose their algorithms, at their first call
    queue_token();
    warm_ = true;
    return;
  }
  if (!graph_.recorded()) graph_.record(stream_, [this] { queue_token(); });
  graph_.launch(stream_);
}

void TokenGraph::queue_selections(std::int64_t first, std::int64_t count, bool follows) const {
  DecodeSelectArgs args;
  args.layers = static_cast<const DecodeSelection*>(selections_.raw()) + first;
  args.count = count, args.position = position_.data<std::int64_t>(), args.follows = follows;
  args.most_rows = B_ * *model_.config().n_kv_heads;
  queue_on_gpu(stream_, args);
}

void TokenGraph::queue_token() const {
  if (on_exit_ > 0) queue_selections(0, on_exit_, false);
  if (one_launch_) return queue_on_gpu(stream_, run_);
  queue_on_gpu(stream_, embed_);
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    queue(layer.qkv);
    if (place_[i] >= on_exit_) queue_selections(place_[i], 1, small_);
    queue_on_gpu(stream_, layer.attend);
    queue(layer.out);
    queue(layer.up);
    queue(layer.down);
  }
  queue(head_);
  queue_on_gpu(stream_, choice_);
}

void TokenGraph::queue(const TokenLinearArgs& args) const {
  if (small_) queue_on_gpu(stream_, args);
  else queue_by_library(args);
}

// The product's input, made by a launch of its own where it is not x itself.
const void* TokenGraph::input_of(const TokenLinearArgs& a) const {
  void* const in = input_.raw();
  switch (a.input) {
    case TokenInput::plain: return a.x_BK;
    case TokenInput::layer_norm: {
      LayerNormArgs norm;
      norm.x_RD = a.x_BK, norm.w_D = a.gain_K, norm.b_D = a.shift_K, norm.y_RD = in;
      norm.R = a.B, norm.D = a.K, norm.eps = a.eps, norm.dtype = a.dtype;
      launch(stream_, norm);
      break;
    }
    case TokenInput::rms_norm: {
      RmsNormArgs norm;
      norm.x_RD = a.x_BK, norm.w_D = a.gain_K, norm.y_RD = in;
      norm.R = a.B, norm.D = a.K, norm.eps = a.eps, norm.dtype = a.dtype;
      launch(stream_, norm);
      break;
    }
    case TokenInput::swiglu: {
      SwigluArgs act;
      act.x_R2F = a.x_BK, act.y_RF = in, act.R = a.B, act.F = a.K, act.dtype = a.dtype;
      launch(stream_, act);
      break;
    }
    case TokenInput::attention: {
      DecodeMergeArgs merge;
      merge.parts = a.parts, merge.out_BHD = in, merge.B = a.B, merge.dtype = a.dtype, merge.follows = false;
      queue_on_gpu(stream_, merge);
      break;
    }
  }
  return in;
}

void TokenGraph::queue_by_library(const TokenLinearArgs& a) const {
  const void* in = input_of(a);
  MatmulArgs m;
  m.a = in, m.b = a.w_NK, m.c = a.y_BN, m.bias_N = a.bias_N;
  m.M = a.B, m.N = a.N, m.K = a.K, m.lda = a.K, m.ldb = a.K, m.ldc = a.N;
  m.transpose_b = true, m.dtype = a.dtype, m.c_dtype = a.y_dtype;
  m.beta = a.add_BN != nullptr ? 1 : 0;  // what is added is y itself
  m.epilogue = a.gelu ? Epilogue::gelu : Epilogue::none;
  launch(stream_, m);
  if (a.scores.Hs == 0) return;
  ScoreArgs score;
  score.x_BTC = in, score.w_HC = a.score_w_HK, score.s_BHT = scores_.raw();
  score.B = a.B, score.T = 1, score.C = a.K, score.H = a.scores.Hs, score.dtype = a.dtype;
  launch(stream_, score);
  DecodePushArgs push;
  push.scores = a.scores, push.s_BH = scores_.data<float>(), push.B = a.B, push.follows = false;
  queue_on_gpu(stream_, push);
}

}  // namespace sieve
