#include "attention/evicted_keys.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/error.h"

namespace sieve {
namespace {

constexpr std::int64_t kMostExits = 2;  // a step: the key that leaves the window, and the one that loses its slot

}  // namespace

EvictedKeys::EvictedKeys(const AttentionSpec& spec, const RopeSpec& rope, std::int64_t batch, std::int64_t score_heads)
    : spec_(spec),
      rope_(rope),
      B_(batch),
      Hs_(score_heads),
      shape_{spec.n_heads, spec.n_kv_heads, spec.head_dim, spec.head_dim} {
  const SparsekSpec& s = spec_.sparsek;
  const auto heads = static_cast<std::size_t>(B_ * Hs_);
  selection_.assign(heads, StreamingSelection(s.k, s.pool, s.slope, s.temperature, false));
  if (s.candidates == Candidates::on_exit) ring_.resize(heads * static_cast<std::size_t>(spec_.window));
}

std::vector<EvictedKeys::Leaving> EvictedKeys::exits(std::int64_t head, double score) {
  StreamingSelection& s = selection_[static_cast<std::size_t>(head)];
  const std::int64_t W = spec_.window, leaving = length_ - W;  // a position; negative: the window is not full
  const bool on_exit = spec_.sparsek.candidates == Candidates::on_exit;
  if (on_exit) {
    std::swap(score, ring_[static_cast<std::size_t>(head * W + length_ % W)]);
    if (leaving < 0) return {};
  }
  const StreamingSelection::Offer offer = s.offer(score, on_exit ? leaving : length_);
  std::vector<Leaving> out;
  bool stays = false;
  for (std::int64_t slot = 0; slot < s.size() && leaving >= 0; ++slot) stays = stays || s.key(slot) == leaving;
  if (leaving >= 0 && !stays) out.push_back({leaving, leaving % W});
  if (offer.evicted >= 0 && offer.evicted < leaving) out.push_back({offer.evicted, W + offer.slot});
  return out;
}

// The rows of a cache whose positions are absolute lie there rotated.
template <class T>
void EvictedKeys::copy_key(const AttentionCache& cache, const Leaving& exit, std::int64_t b, std::int64_t kv,
                           Tensor& qkv, std::int64_t token) const {
  using C = compute_t<T>;
  const std::int64_t H = shape_.H, Hkv = shape_.Hkv, D = shape_.D,
                     from = ((b * Hkv + kv) * cache.rows() + exit.row) * D;
  T* key = qkv.data<T>() + (b * qkv.size(1) + token) * shape_.features() + (H + kv) * D;
  std::copy_n(cache.keys().data<T>() + from, D, key);
  std::copy_n(cache.values().data<T>() + from, D, key + Hkv * D);
  if (spec_.sparsek.positions != PositionRule::absolute) return;
  const std::int64_t R = rope_.rotary_dims / 2;
  for (std::int64_t x = 0; x < R; ++x) {
    const double angle =
        static_cast<double>(exit.position) * std::pow(rope_.theta, -static_cast<double>(x) / static_cast<double>(R));
    const C c = static_cast<C>(std::cos(angle)), s = static_cast<C>(std::sin(angle)), u = static_cast<C>(key[x]),
            v = static_cast<C>(key[R + x]);
    key[x] = static_cast<T>(u * c + v * s);
    key[R + x] = static_cast<T>(v * c - u * s);
  }
}

Tensor EvictedKeys::prompt(const Tensor& qkv, const Tensor& scores) {
  const std::int64_t T = qkv.size(1);
  KeyExits lists{zeros({B_, Hs_, T + 1}, DType::i32), zeros({B_, Hs_, T}, DType::i32)};
  for (; length_ < T; ++length_) {
    for (std::int64_t head = 0; head < B_ * Hs_; ++head) {
      std::int32_t* first = lists.first.data<std::int32_t>() + head * (T + 1) + length_;
      first[1] = first[0];
      for (const Leaving& exit : exits(head, scores.data<double>()[head * T + length_]))
        lists.keys.data<std::int32_t>()[head * T + first[1]++] = static_cast<std::int32_t>(exit.position);
    }
  }
  return linear_attention_extend(qkv, shape_, lists, state_);
}

Tensor EvictedKeys::step(const AttentionCache& cache, const Tensor& qkv, const Tensor& scores_in) {
  const std::int64_t n = qkv.size(1);
  if (!qkv.device().is_cpu())
    fail(Exit::config, "attention", "linear: true of type sparsek has no GPU kernel: run it with device.type=cpu");
  require(length_ == cache.length() && (length_ == 0 || n == 1), "evicted keys", "are at position ", length_,
          ", the cache is at ", cache.length(), "; ", n, " positions come");
  const Tensor scores = scores_in.to(DType::f64).contiguous();
  if (n > 1) return prompt(qkv, scores);
  // The keys that enter stand before the query as positions of their own.
  Tensor all = zeros({B_, kMostExits + 1, shape_.features()}, qkv.dtype());
  all.slice(1, kMostExits, kMostExits + 1).copy_from(qkv);
  KeyExits lists{zeros({B_, Hs_, kMostExits + 2}, DType::i32), zeros({B_, Hs_, kMostExits + 1}, DType::i32)};
  for (std::int64_t head = 0; head < B_ * Hs_; ++head) {
    const std::int64_t b = head / Hs_, hs = head % Hs_;
    std::int32_t* count = lists.first.data<std::int32_t>() + head * (kMostExits + 2) + kMostExits + 1;
    for (const Leaving& exit : exits(head, scores.data<double>()[head])) {
      lists.keys.data<std::int32_t>()[head * (kMostExits + 1) + *count] = *count;
      for (std::int64_t kv = Hs_ == 1 ? 0 : hs; kv < (Hs_ == 1 ? shape_.Hkv : hs + 1); ++kv) {
        if (qkv.dtype() == DType::f64) copy_key<double>(cache, exit, b, kv, all, *count);
        else if (qkv.dtype() == DType::bf16) copy_key<bf16>(cache, exit, b, kv, all, *count);
        else copy_key<float>(cache, exit, b, kv, all, *count);
      }
      ++*count;
    }
  }
  ++length_;
  return linear_attention_extend(all, shape_, lists, state_).slice(1, kMostExits, kMostExits + 1).contiguous();
}

std::int64_t EvictedKeys::bytes() const {
  std::size_t scalars = ring_.size() * sizeof(double);
  for (const StreamingSelection& s : selection_)
    scalars += static_cast<std::size_t>(s.k()) * (sizeof(TopKHeap::Entry) + sizeof(std::int32_t));
  return static_cast<std::int64_t>(scalars + (state_.defined() ? state_.nbytes() : 0));
}

}  // namespace sieve
