#include "attention/evicted_keys.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "attention/cache_rows.h"
#include "core/error.h"
#include "tensor/same_device.h"

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
void EvictedKeys::fetch(const AttentionCache& cache, const std::vector<EvictedRow>& rows,
                        const std::vector<std::int64_t>& positions, Tensor& qkv) const {
  if (rows.empty()) return;
  const Tensor list = uploaded(rows, qkv.stream());
  Tensor cos, sin;
  EvictedRowArgs args;
  args.rows = static_cast<const EvictedRow*>(list.raw()), args.count = static_cast<std::int64_t>(rows.size());
  args.keys_BKCD = cache.keys().raw(), args.values_BKCD = cache.values().raw(), args.qkv_BNF = qkv.raw();
  args.N = qkv.size(1), args.H = shape_.H, args.Hkv = shape_.Hkv, args.D = shape_.D, args.capacity = cache.rows();
  args.dtype = qkv.dtype();
  const std::int64_t R = rope_.rotary_dims / 2;
  if (spec_.sparsek.positions == PositionRule::absolute && R > 0) {
    std::vector<double> c, s;
    for (std::int64_t x = 0; x < args.count * R; ++x) {
      const double angle = static_cast<double>(positions[static_cast<std::size_t>(x / R)]) *
                           std::pow(rope_.theta, -static_cast<double>(x % R) / static_cast<double>(R));
      c.push_back(std::cos(angle)), s.push_back(std::sin(angle));
    }
    const auto table = [&](const std::vector<double>& values) {
      return from_values<double>(values, {args.count, R}).to(compute_dtype(qkv.dtype())).to(qkv.stream());
    };
    cos = table(c), sin = table(s);
    args.rotary_dims = 2 * R, args.cos_XR = cos.raw(), args.sin_XR = sin.raw();
  }
  launch(qkv.stream(), args);
}

// lists: on the host.
Tensor EvictedKeys::advance(const Tensor& qkv, const KeyExits& lists) {
  const KeyExits there{lists.first.to(qkv.stream()), lists.keys.to(qkv.stream())};
  return linear_attention_extend(qkv, shape_, there, state_);
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
  return advance(qkv, lists);
}

Tensor EvictedKeys::step(const AttentionCache& cache, const Tensor& qkv, const Tensor& scores_in) {
  const std::int64_t n = qkv.size(1);
  require(length_ == cache.length() && (length_ == 0 || n == 1), "evicted keys", "are at position ", length_,
          ", the cache is at ", cache.length(), "; ", n, " positions come");
  // Before anything changes. A cache that has seen nothing lies where it was made, and nothing of it is read.
  require_on(qkv.device(), "evicted keys", {{"scores", scores_in}, {"the state", state_}});
  if (length_ > 0) require_on(qkv.device(), "evicted keys", {{"the cache's keys", cache.keys()}});
  const Tensor scores = scores_in.to(Stream{}).to(DType::f64).contiguous();
  if (n > 1) return prompt(qkv, scores);
  // The keys that enter stand before the query as positions of their own.
  Tensor all = zeros({B_, kMostExits + 1, shape_.features()}, qkv.dtype(), qkv.stream());
  all.slice(1, kMostExits, kMostExits + 1).copy_from(qkv);
  KeyExits lists{zeros({B_, Hs_, kMostExits + 2}, DType::i32), zeros({B_, Hs_, kMostExits + 1}, DType::i32)};
  std::vector<EvictedRow> rows;
  std::vector<std::int64_t> positions;
  for (std::int64_t head = 0; head < B_ * Hs_; ++head) {
    const std::int64_t b = head / Hs_, hs = head % Hs_;
    std::int32_t* count = lists.first.data<std::int32_t>() + head * (kMostExits + 2) + kMostExits + 1;
    for (const Leaving& exit : exits(head, scores.data<double>()[head])) {
      lists.keys.data<std::int32_t>()[head * (kMostExits + 1) + *count] = *count;
      for (std::int64_t kv = Hs_ == 1 ? 0 : hs; kv < (Hs_ == 1 ? shape_.Hkv : hs + 1); ++kv) {
        rows.push_back(
            {static_cast<std::int32_t>(b), static_cast<std::int32_t>(kv), static_cast<std::int32_t>(exit.row), *count});
        positions.push_back(exit.position);
      }
      ++*count;
    }
  }
  ++length_;
  fetch(cache, rows, positions, all);
  return advance(all, lists).slice(1, kMostExits, kMostExits + 1).contiguous();
}

std::int64_t EvictedKeys::bytes() const {
  std::size_t scalars = ring_.size() * sizeof(double);
  for (const StreamingSelection& s : selection_)
    scalars += static_cast<std::size_t>(s.k()) * (sizeof(TopKHeap::Entry) + sizeof(std::int32_t));
  return static_cast<std::int64_t>(scalars + (state_.defined() ? state_.nbytes() : 0));
}

}  // namespace sieve
