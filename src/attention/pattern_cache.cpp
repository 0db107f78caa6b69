#include "attention/pattern_cache.h"

#include <algorithm>
#include <limits>

#include "attention/attention.h"
#include "attention/attention_cost.h"
#include "attention/pattern.h"
#include "tensor/dispatch.h"

namespace sieve {
namespace {

constexpr std::int64_t kUnbounded = std::int64_t{1} << 40;  // tokens

// The row of a position, -1 where nobody will ever see it again, not even its own query.
std::int64_t row_of(const AttentionSpec& spec, std::int64_t position) {
  const PatternSpec& p = spec.pattern;
  switch (spec.kind) {
    case AttentionKind::strided: return p.part == PatternPart::local ? position % p.stride : position;
    case AttentionKind::fixed: {
      const std::int64_t place = position % p.stride, plain = p.stride - p.summary;
      if (p.part == PatternPart::local) return place;
      const std::int64_t ring = p.part == PatternPart::columns ? 0 : plain;
      if (place < plain) return p.part == PatternPart::columns ? -1 : place;
      return ring + position / p.stride * p.summary + place - plain;
    }
    case AttentionKind::longformer: {
      const std::int64_t reach = (spec.window - 1) * p.dilation + 1;
      return position < p.globals ? position : p.globals + (position - p.globals) % reach;
    }
    default: return position;
  }
}

// List x of row b, i32 on the host, of a choice (B, Hc, 1, N).
const std::int32_t* list_of(const Tensor& choice, std::int64_t b, std::int64_t h) {
  const std::int64_t heads = choice.size(1);
  return choice.data<std::int32_t>() + (b * heads + (heads == 1 ? 0 : h)) * choice.size(3);
}

}  // namespace

PatternCache::PatternCache(const AttentionSpec& spec, const RopeSpec& rope, std::int64_t batch, DType dtype,
                           std::int64_t max_tokens, ChooseNext choose)
    : spec_(spec), rope_(rope), max_tokens_(max_tokens), choose_(std::move(choose)) {
  check_attention(spec, rope);
  require(shows_pairs(spec.kind) && batch >= 1 && is_float(dtype), "cache",
          "wants a pattern of pairs, batch >= 1 and a float dtype; got ",
          kAttentionKindNames[static_cast<std::size_t>(spec.kind)], ", ", batch, ", ", name_of(dtype));
  rows_.B = batch, rows_.H = spec.n_heads, rows_.Hkv = spec.n_kv_heads, rows_.D = spec.head_dim;
  rows_.dtype = dtype, rows_.rope = rope;
}

void PatternCache::check(const Tensor& qkv, const Tensor& choice) const {
  require(qkv.defined() && qkv.rank() == 3 && qkv.size(0) == rows_.B && qkv.size(1) >= 1 &&
              qkv.size(2) == rows_.features() && qkv.dtype() == rows_.dtype,
          "cache", "wants qkv ", name_of(rows_.dtype), " (", rows_.B, ", n >= 1, ", rows_.features(), "), got ",
          qkv.defined() ? cat(name_of(qkv.dtype()), " ", qkv.shape()) : "nothing");
  check_choice(choice, spec_, rows_.B, qkv.size(1), qkv.device(), "cache");
  const bool by_content = spec_.kind >= AttentionKind::hash;
  require(!by_content || choice.defined() || (choose_ && spec_.kind != AttentionKind::hash), "cache",
          "wants to be told what tokens of type ", kAttentionKindNames[static_cast<std::size_t>(spec_.kind)],
          " choose");
  if (max_tokens_ > 0 && length_ + qkv.size(1) > max_tokens_)
    fail(Exit::config, "cache", "position ", length_ + qkv.size(1), " exceeds the ", max_tokens_,
         " tokens that this cache was made for");
}

void PatternCache::reserve(std::int64_t tokens, const Stream& stream) {
  require(rows_.capacity == 0 || rows_.keys.device() == stream.device, "cache", "holds rows on another device than ",
          stream.device.str());
  const std::int64_t needed = std::max<std::int64_t>(1, cached_rows(spec_, tokens)),
                     most = cached_rows(spec_, max_tokens_ > 0 ? max_tokens_ : kUnbounded);
  if (needed <= rows_.capacity) return;
  std::int64_t wanted = std::max<std::int64_t>(rows_.capacity, 64);
  while (wanted < needed) wanted *= 2;
  rows_.grow(std::max(needed, std::min(wanted, most)), rows_.capacity, stream);
}

// A whole prompt: the tiled engine computes, the cache keeps what later queries may see.
Tensor PatternCache::prefill(const Tensor& qkv, const Tensor& choice) {
  const NoGrad no_grad;
  const Tensor out = pattern_attention(Variable(qkv), choice, {spec_, rope_, {}}).value();
  length_ = qkv.size(1);
  std::vector<std::int32_t> held(static_cast<std::size_t>(rows_.capacity), -1);  // the last position of every row
  for (std::int64_t j = 0; j < length_; ++j)
    if (const std::int64_t row = row_of(spec_, j); row >= 0)
      held[static_cast<std::size_t>(row)] = static_cast<std::int32_t>(j);
  std::vector<CacheMove> moves;
  for (std::int64_t x = 0; x < rows_.B * rows_.Hkv; ++x) {
    for (std::size_t row = 0; row < held.size(); ++row)
      if (held[row] >= 0)
        moves.push_back({static_cast<std::int32_t>(x / rows_.Hkv), static_cast<std::int32_t>(x % rows_.Hkv), held[row],
                         static_cast<std::int32_t>(row)});
  }
  rows_.store(qkv, moves);
  return out;
}

// Token t of qkv becomes position `length`.
void PatternCache::append(const Tensor& qkv, std::int64_t t) {
  const std::int64_t row = row_of(spec_, length_++);
  if (row < 0) return;
  std::vector<CacheMove> moves;
  for (std::int64_t x = 0; x < rows_.B * rows_.Hkv; ++x)
    moves.push_back({static_cast<std::int32_t>(x / rows_.Hkv), static_cast<std::int32_t>(x % rows_.Hkv),
                     static_cast<std::int32_t>(t), static_cast<std::int32_t>(row)});
  rows_.store(qkv, moves);
}

// (B, H, D), token t's query heads rotated as keys are: they are stored as keys of a cache of one row.
Tensor PatternCache::query_at(const Tensor& qkv, std::int64_t t) const {
  const std::int64_t HD = rows_.H * rows_.D;
  const Tensor query = qkv.slice(1, t, t + 1).slice(2, 0, HD);
  Tensor twice = empty({rows_.B, 1, 2 * HD}, rows_.dtype, qkv.stream());
  twice.slice(2, 0, HD).copy_from(query), twice.slice(2, HD, 2 * HD).copy_from(query);
  CacheRows one;
  one.B = rows_.B, one.H = 0, one.Hkv = rows_.H, one.D = rows_.D, one.dtype = rows_.dtype, one.rope = rope_;
  one.grow(1, 0, qkv.stream());
  one.turn(length_ - 1, 1, qkv.stream());
  std::vector<CacheMove> moves;
  for (std::int64_t x = 0; x < rows_.B * rows_.H; ++x)
    moves.push_back({static_cast<std::int32_t>(x / rows_.H), static_cast<std::int32_t>(x % rows_.H), 0, 0});
  one.store(twice, moves);
  return one.keys.reshape({rows_.B, rows_.H, rows_.D});
}

// What token t, the newest, chose: (B, Hc, 1, N) on the host; undefined where positions alone decide.
Tensor PatternCache::chosen(const Tensor& qkv, const Tensor& choice, std::int64_t t) const {
  if (choice.defined()) return choice.slice(2, t, t + 1).to(Stream{}).contiguous();
  if (!choose_) return {};
  const Tensor lists = choose_({.qkv = qkv.slice(1, t, t + 1).contiguous(),
                                .query = query_at(qkv, t),
                                .keys = rows_.keys.slice(2, 0, length_),
                                .position = length_ - 1})
                           .to(Stream{})
                           .contiguous();
  require(lists.dtype() == DType::i32 && lists.rank() == 3 && lists.size(0) == rows_.B, "cache",
          "a new token's choice is ", name_of(lists.dtype()), " ", lists.shape());
  return lists.reshape({rows_.B, lists.size(1), 1, lists.size(2)});
}

void PatternCache::remember_buckets(const Tensor& choice) {
  const Tensor here = choice.to(Stream{}).contiguous();
  const std::int64_t n = here.size(2);
  buckets_.resize(static_cast<std::size_t>(here.size(0) * here.size(1)));
  for (std::size_t x = 0; x < buckets_.size(); ++x) {
    const std::int32_t* list = here.data<std::int32_t>() + static_cast<std::int64_t>(x) * n;
    buckets_[x].insert(buckets_[x].end(), list, list + n);
  }
}

// The rows that the newest position sees.
void PatternCache::list_rows(const Tensor& choice, std::int64_t b, std::int64_t h, std::vector<CachedSlot>& out) const {
  const std::int64_t i = length_ - 1;
  const auto add = [&](std::int64_t j) { out.push_back({static_cast<std::int32_t>(row_of(spec_, j)), 0, 1.0}); };
  const std::int64_t N = choice.defined() ? choice.size(3) : 0;
  const std::int32_t* list = choice.defined() ? list_of(choice, b, h) : nullptr;
  switch (spec_.kind) {
    case AttentionKind::hash: {
      const std::size_t heads = buckets_.size() / static_cast<std::size_t>(rows_.B);
      const std::vector<std::int32_t>& bucket =
          buckets_[static_cast<std::size_t>(b) * heads + (heads == 1 ? 0 : static_cast<std::size_t>(h))];
      for (std::int64_t j = 0; j < i; ++j)
        if (bucket[static_cast<std::size_t>(j)] == bucket[static_cast<std::size_t>(i)]) add(j);
      return;
    }
    case AttentionKind::top_k:
    case AttentionKind::dsa:
      for (std::int64_t x = 0; x < N && list[x] != kNoChoice; ++x) add(list[x]);
      return;
    case AttentionKind::moba:
      for (std::int64_t x = 0; x < N && list[x] != kNoChoice; ++x) {
        const std::int64_t first = list[x] * spec_.pattern.block;
        for (std::int64_t j = first; j < std::min(i + 1, first + spec_.pattern.block); ++j) add(j);
      }
      return;
    default: break;
  }
  const PairPattern pattern = pattern_of(spec_, {}, {}, length_);
  for (std::int64_t j = 0; j <= i; ++j)
    if (sees(pattern, b, h, i, j)) add(j);
}

// out (B, n, H D)[t] from token t of qkv, which append() has stored. Where query heads of a group see different keys,
// each of the group reads its own list in a launch of its own.
void PatternCache::attend(const Tensor& qkv, const Tensor& choice, std::int64_t t, Tensor& out) {
  const std::int64_t queries_own = differs_by_head(spec_) ? rows_.H : 1;
  const std::int64_t B = rows_.B, D = rows_.D, own = choice.defined() ? choice.size(1) : queries_own,
                     G = own > rows_.Hkv ? spec_.group() : 1, lists = own / G;
  const bool by_row = choice.defined();
  std::vector<std::vector<CachedSlot>> seen(static_cast<std::size_t>(G * B * lists));  // (G, B, lists)
  std::size_t longest = 1;
  for (std::size_t x = 0; x < seen.size(); ++x) {
    const auto at = static_cast<std::int64_t>(x);
    const std::int64_t b = at / lists % B, h = at % lists * G + at / lists / B;
    if (by_row || b == 0) list_rows(choice, b, h, seen[x]);
    else seen[x] = seen[x - static_cast<std::size_t>(lists)];
    longest = std::max(longest, seen[x].size());
  }
  std::vector<CachedSlot> slots(seen.size() * longest);
  std::vector<std::int64_t> counts;
  for (std::size_t x = 0; x < seen.size(); ++x) {
    std::copy(seen[x].begin(), seen[x].end(), slots.begin() + static_cast<std::ptrdiff_t>(x * longest));
    counts.push_back(static_cast<std::int64_t>(seen[x].size()));
  }
  const Tensor slots_there = uploaded(slots, out.stream()), counts_there = uploaded(counts, out.stream());
  DecodeArgs args = rows_.arguments(qkv, t, out);
  args.slots = static_cast<const CachedSlot*>(slots_there.raw());
  args.slot_count = static_cast<const std::int64_t*>(counts_there.raw());
  args.slot_stride = static_cast<std::int64_t>(longest), args.Hs = lists;
  if (G == 1) return launch(out.stream(), args);
  const Shape split{B, rows_.Hkv, G, D};
  const Tensor queries = qkv.slice(1, t, t + 1).slice(2, 0, rows_.H * D).contiguous().reshape(split);
  Tensor joined = empty(split, rows_.dtype, out.stream()),
         part = empty({B, rows_.Hkv, 1, D}, rows_.dtype, out.stream());
  for (std::int64_t g = 0; g < G; ++g) {
    const Tensor query = queries.slice(2, g, g + 1).contiguous();
    args.qkv_BF = query.raw(), args.out_BHD = part.raw();
    args.qkv_stride = args.out_stride = rows_.Hkv * D, args.H = rows_.Hkv;
    launch(out.stream(), args);
    joined.slice(2, g, g + 1).copy_from(part);
    args.slots += B * lists * args.slot_stride, args.slot_count += B * lists;
  }
  out.slice(1, t, t + 1).copy_from(joined.reshape({B, 1, rows_.H * D}));
}

Tensor PatternCache::step(const Tensor& qkv_in, const Tensor& choice) {
  const Tensor qkv = qkv_in.defined() ? qkv_in.contiguous() : Tensor();
  check(qkv, choice);  // before anything changes
  const std::int64_t n = qkv.size(1);
  reserve(length_ + n, qkv.stream());
  rows_.turn(length_, n, qkv.stream());
  if (spec_.kind == AttentionKind::hash) remember_buckets(choice);
  if (length_ == 0 && n > 1) return prefill(qkv, choice);
  Tensor out = empty({rows_.B, n, rows_.H * rows_.D}, rows_.dtype, qkv.stream());
  for (std::int64_t t = 0; t < n; ++t) {
    append(qkv, t);
    attend(qkv, chosen(qkv, choice, t), t, out);
  }
  return out;
}

std::int64_t PatternCache::bytes() const {
  std::size_t scalars = 0;
  for (const auto& list : buckets_) scalars += list.size() * sizeof(std::int32_t);
  return rows_.capacity == 0 ? 0 : static_cast<std::int64_t>(rows_.keys.nbytes() + rows_.values.nbytes() + scalars);
}

}  // namespace sieve
