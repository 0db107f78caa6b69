// Letters: B batch, H query heads, Hkv key-value heads, Hs score heads, D head size, W window, i query, j key.
#include "attention/decode.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/attention.h"
#include "attention/cache_rows.h"
#include "attention/kernels/select.h"
#include "attention/rotary.h"
#include "attention/sparsek.h"
#include "attention/streaming_selection.h"
#include "core/parallel_for.h"
#include "tensor/dispatch.h"
#include "tensor/same_device.h"

namespace sieve {

// Rows of a cache: full: row j is position j. sliding_window: the sinks, then the ring: position j >= sinks in row
// sinks + (j - sinks) mod W. sparsek: the ring, position j in row j mod W, then the slots.
struct AttentionCache::State {
  AttentionSpec spec;
  RopeSpec rope;
  std::int64_t B, Hs, max_tokens, length = 0;
  DType dtype;
  CacheRows rows;
  bool rotate_keys;                 // before storing; else keys turn when they are read (far ones differently)
  std::int64_t far_distance = 0;    // of keys that are not rotated
  RotaryTable distances;            // by distance, for keys that are not rotated; made by the first step
  std::vector<double> ring_scores;  // (B, Hs, W): scores of rows that still compete when they leave
  std::vector<StreamingSelection> selection;  // (B, Hs)
  std::vector<CachedSlot> slots;              // (B, Hs, k), what the query at hand sees
  std::vector<std::int64_t> slot_count;       // (B, Hs)

  State(const AttentionSpec& s, const RopeSpec& r, std::int64_t batch, DType type, std::int64_t most,
        std::int64_t score_heads);
  void reserve(std::int64_t tokens, const Stream& stream);
  void check(const Tensor& qkv, const Tensor& scores) const;
  void append(const Tensor& qkv, const Tensor& scores, std::int64_t t);
  void attend(const Tensor& qkv, std::int64_t t, Tensor& out);
  // Scores on the device of qkv, and on the host.
  Tensor prefill(const Tensor& qkv, const Tensor& scores_there, const Tensor& scores);

  bool sparse() const { return spec.kind == AttentionKind::sparsek; }
  std::int64_t plain_rows() const {
    return spec.kind == AttentionKind::full ? length : std::min(length, spec.sinks + spec.window);
  }

 private:
  std::int64_t row_of(std::int64_t position) const;
  std::int64_t admit(std::int64_t x, std::int64_t position, double score);
  template <class F>
  void for_each_head(std::int64_t hs, F f) const;
  void list_slots();
};

namespace {

double score_at(const Tensor& scores, std::int64_t b, std::int64_t hs, std::int64_t t) {
  const std::int64_t at = (b * scores.size(1) + hs) * scores.size(2) + t;
  return scores.dtype() == DType::f64 ? scores.data<double>()[at] : static_cast<double>(scores.data<float>()[at]);
}

}  // namespace

AttentionCache::State::State(const AttentionSpec& s, const RopeSpec& r, std::int64_t batch, DType type,
                             std::int64_t most, std::int64_t score_heads)
    : spec(s), rope(r), B(batch), Hs(score_heads == 0 ? s.n_kv_heads : score_heads), max_tokens(most), dtype(type) {
  check_attention(spec, rope);
  require(B >= 1 && is_float(dtype) && (Hs == 1 || Hs == spec.n_kv_heads), "cache",
          "wants batch >= 1, a float dtype and 1 or ", spec.n_kv_heads, " score heads; got ", B, ", ", name_of(dtype),
          ", ", Hs);
  if (spec.kind == AttentionKind::full) spec.window = 0;
  if (spec.kind != AttentionKind::sliding_window) spec.sinks = 0;
  const PositionRule rule = sparse() ? spec.sparsek.positions : PositionRule::absolute;
  rotate_keys = rule == PositionRule::absolute;
  rows.B = B, rows.H = spec.n_heads, rows.Hkv = spec.n_kv_heads, rows.D = spec.head_dim;
  rows.dtype = dtype, rows.rope = rope;
  if (!rotate_keys && rope.rotary_dims > 0) {
    far_distance = rule == PositionRule::none ? 0 : spec.sparsek.clamp_distance;
    if (max_tokens > 0) far_distance = std::min(far_distance, max_tokens);  // no key is farther
    if (far_distance > (std::int64_t{1} << 20)) {
      fail(Exit::config, "cache", "clamp_distance ", far_distance,
           " needs a table of that many rotations: bound the cache's tokens");
    }
  }
  if (sparse()) {
    const SparsekSpec& k = spec.sparsek;
    const auto heads = static_cast<std::size_t>(B * Hs);
    selection.assign(heads, StreamingSelection(k.k, k.pool, k.slope, k.temperature, k.gate != GateMode::hard));
    slot_count.assign(heads, 0);
    slots.resize(heads * static_cast<std::size_t>(k.k));
    if (k.candidates == Candidates::on_exit) ring_scores.resize(heads * static_cast<std::size_t>(spec.window));
  }
  reserve(1, {});
}

// The sparse kinds have all their rows from the start; the full one doubles. The first step says which device holds
// them.
void AttentionCache::State::reserve(std::int64_t tokens, const Stream& stream) {
  if (rows.capacity > 0 && rows.keys.device() != stream.device) {
    require(length == 0, "cache", "holds rows on ", rows.keys.device().str(), ", the step is on ", stream.device.str());
    rows.capacity = 0;
  }
  if (!rotate_keys && rope.rotary_dims > 0)
    distances = rotary_table(rope, std::max(spec.window, far_distance + 1), compute_dtype(dtype), stream);
  std::int64_t wanted = spec.sinks + spec.window + (sparse() ? spec.sparsek.k : 0);
  if (spec.kind == AttentionKind::full) {
    wanted = std::max<std::int64_t>(rows.capacity, 64);
    while (wanted < tokens) wanted *= 2;
    if (max_tokens > 0) wanted = std::min(wanted, max_tokens);
  }
  rows.grow(wanted, std::min(length, rows.capacity), stream);
}

void AttentionCache::State::check(const Tensor& qkv, const Tensor& scores) const {
  require(qkv.defined() && qkv.rank() == 3 && qkv.size(0) == B && qkv.size(1) >= 1 &&
              qkv.size(2) == spec.qkv_features() && qkv.dtype() == dtype,
          "cache", "wants qkv ", name_of(dtype), " (", B, ", n >= 1, ", spec.qkv_features(), "), got ",
          qkv.defined() ? cat(name_of(qkv.dtype()), " ", qkv.shape()) : "nothing");
  require(scores.defined() == sparse(), "cache", sparse() ? "sparsek wants scores" : "only sparsek takes scores");
  if (sparse()) {
    require(
        scores.shape() == Shape{B, Hs, qkv.size(1)} && (scores.dtype() == DType::f32 || scores.dtype() == DType::f64),
        "cache", "wants scores f32 or f64 ", Shape{B, Hs, qkv.size(1)}, ", got ", name_of(scores.dtype()), " ",
        scores.shape());
  }
  std::int64_t nan = 0;
  for (std::int64_t x = 0; sparse() && x < scores.numel(); ++x) {
    const std::int64_t n = qkv.size(1);
    nan += std::isnan(score_at(scores, x / (Hs * n), x / n % Hs, x % n));
  }
  if (nan > 0) {
    fail(Exit::nonfinite, "cache", nan, " of ", scores.numel(),
         " scores are NaN: the scorer's weights or its inputs are not finite");
  }
  if (max_tokens > 0 && length + qkv.size(1) > max_tokens) {
    fail(Exit::config, "cache", "position ", length + qkv.size(1), " exceeds the ", max_tokens,
         " tokens that this cache was made for");
  }
}

std::int64_t AttentionCache::State::row_of(std::int64_t position) const {
  if (spec.kind == AttentionKind::full || position < spec.sinks) return position;
  return spec.sinks + (position - spec.sinks) % spec.window;
}

// Of (batch row, score head) x, the token at `position` (at once) or the one that leaves the window for it competes:
// its slot's row, or -1.
std::int64_t AttentionCache::State::admit(std::int64_t x, std::int64_t position, double score) {
  if (spec.sparsek.candidates == Candidates::on_exit) {
    std::swap(score, ring_scores[static_cast<std::size_t>(x * spec.window + position % spec.window)]);
    if (position < spec.window) return -1;
  }
  const std::int64_t left = spec.sparsek.candidates == Candidates::on_exit ? spec.window : 0;
  const std::int64_t slot = selection[static_cast<std::size_t>(x)].offer(score, position - left).slot;
  return slot < 0 ? -1 : spec.window + slot;
}

// The key-value heads that a selection serves.
template <class F>
void AttentionCache::State::for_each_head(std::int64_t hs, F f) const {
  const std::int64_t last = Hs == 1 ? spec.n_kv_heads : hs + 1;
  for (std::int64_t kv = Hs == 1 ? 0 : hs; kv < last; ++kv) f(static_cast<std::int32_t>(kv));
}

// Token t becomes position `length`. The row that leaves the window moves to its slot before its place is overwritten.
void AttentionCache::State::append(const Tensor& qkv, const Tensor& scores, std::int64_t t) {
  std::vector<CacheMove> leave, enter;
  const auto token = static_cast<std::int32_t>(t), place = static_cast<std::int32_t>(row_of(length));
  for (std::int64_t b = 0; b < B; ++b) {
    const auto row = static_cast<std::int32_t>(b);
    for (std::int64_t hs = 0; sparse() && hs < Hs; ++hs) {
      const std::int64_t slot = admit(b * Hs + hs, length, score_at(scores, b, hs, t));
      if (slot < 0) continue;
      const bool at_once = spec.sparsek.candidates == Candidates::at_once;
      for_each_head(hs, [&](std::int32_t kv) {
        (at_once ? enter : leave).push_back({row, kv, at_once ? token : -1 - place, static_cast<std::int32_t>(slot)});
      });
    }
    for (std::int32_t kv = 0; kv < spec.n_kv_heads; ++kv) enter.push_back({row, kv, token, place});
  }
  rows.store(qkv, leave);
  rows.store(qkv, enter);
  ++length;
}

// The slots that the last position sees: not those whose key the window still shows (candidates at_once).
void AttentionCache::State::list_slots() {
  const std::int64_t i = length - 1;
  for (std::size_t x = 0; x < selection.size(); ++x) {
    const StreamingSelection& s = selection[x];
    CachedSlot* out = slots.data() + x * static_cast<std::size_t>(spec.sparsek.k);
    slot_count[x] = 0;
    for (std::int64_t slot = 0; slot < s.size(); ++slot) {
      const std::int64_t distance = i - s.key(slot);
      if (distance < spec.window) continue;
      out[slot_count[x]++] = {static_cast<std::int32_t>(spec.window + slot),
                              static_cast<std::int32_t>(std::min(distance, far_distance + 1)),
                              spec.sparsek.gate == GateMode::hard ? 1.0 : s.gate(slot)};
    }
  }
}

// out (B, n, H D)[t] from token t of qkv, which append() has stored.
void AttentionCache::State::attend(const Tensor& qkv, std::int64_t t, Tensor& out) {
  Tensor seen, counts;
  DecodeArgs args = rows.arguments(qkv, t, out);
  args.plain_rows = plain_rows();
  if (sparse()) {
    list_slots();
    seen = uploaded(slots, out.stream()), counts = uploaded(slot_count, out.stream());
    args.slots = static_cast<const CachedSlot*>(seen.raw());
    args.slot_count = static_cast<const std::int64_t*>(counts.raw());
    args.slot_stride = spec.sparsek.k, args.Hs = Hs, args.gate = spec.sparsek.gate;
  }
  if (distances.cos.defined()) {
    args.distance_cos = distances.cos.raw(), args.distance_sin = distances.sin.raw();
    args.position = length - 1, args.ring = spec.window, args.far_distance = far_distance;
  }
  launch(out.stream(), args);
}

// A whole prompt: the tiled engine computes, the cache only takes notes.
Tensor AttentionCache::State::prefill(const Tensor& qkv, const Tensor& scores_there, const Tensor& scores) {
  const NoGrad no_grad;
  const Tensor out = attention(Variable(qkv), sparse() ? Variable(scores_there) : Variable(), {spec, rope, {}}).value();
  // Which position every row ends up with: (B, Hs, capacity), -1 for none. Rows of the ring are the same for all heads.
  std::vector<std::int32_t> held(static_cast<std::size_t>(B * Hs * rows.capacity), -1);
  const std::int64_t tokens = qkv.size(1);
  const bool at_once = sparse() && spec.sparsek.candidates == Candidates::at_once;
  // Selections of long prompts take seconds on one thread, and know nothing of each other.
  parallel_for(B * Hs, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t x = begin; x < end; ++x) {
      std::int32_t* places = held.data() + x * rows.capacity;
      for (std::int64_t t = length; t < tokens; ++t) {
        const std::int64_t row = row_of(t), slot = sparse() ? admit(x, t, score_at(scores, x / Hs, x % Hs, t)) : -1;
        if (slot >= 0) places[slot] = at_once ? static_cast<std::int32_t>(t) : places[row];
        places[row] = static_cast<std::int32_t>(t);
      }
    }
  });
  length = tokens;
  std::vector<CacheMove> moves;
  for (std::int64_t x = 0; x < B * Hs; ++x) {
    for (std::int64_t r = 0; r < rows.capacity; ++r) {
      const std::int32_t from = held[static_cast<std::size_t>(x * rows.capacity + r)];
      if (from < 0) continue;
      for_each_head(x % Hs, [&](std::int32_t kv) {
        moves.push_back({static_cast<std::int32_t>(x / Hs), kv, from, static_cast<std::int32_t>(r)});
      });
    }
  }
  rows.store(qkv, moves);
  return out;
}

AttentionCache::AttentionCache(const AttentionSpec& spec, const RopeSpec& rope, std::int64_t batch, DType dtype,
                               std::int64_t max_tokens, std::int64_t score_heads)
    : state_(std::make_unique<State>(spec, rope, batch, dtype, max_tokens, score_heads)) {}
AttentionCache::~AttentionCache() = default;
AttentionCache::AttentionCache(AttentionCache&&) noexcept = default;
AttentionCache& AttentionCache::operator=(AttentionCache&&) noexcept = default;

Tensor AttentionCache::step(const Tensor& qkv_in, const Tensor& scores_in) {
  State& s = *state_;
  const Tensor qkv = qkv_in.defined() ? qkv_in.contiguous() : Tensor(),
               scores = scores_in.defined() ? scores_in.to(Stream{}).contiguous() : Tensor();
  s.check(qkv, scores);  // before anything changes
  require_on(qkv.device(), "cache", {{"scores", scores_in}});
  const std::int64_t n = qkv.size(1);
  s.reserve(s.length + n, qkv.stream());
  if (s.rotate_keys) s.rows.turn(s.length, n, qkv.stream());
  if (s.length == 0 && n > 1) return s.prefill(qkv, scores_in, scores);
  Tensor out = empty({s.B, n, s.spec.n_heads * s.spec.head_dim}, s.dtype, qkv.stream());
  for (std::int64_t t = 0; t < n; ++t) {
    s.append(qkv, scores, t);
    s.attend(qkv, t, out);
  }
  return out;
}

void AttentionCache::reset() {
  state_->length = 0;
  for (StreamingSelection& s : state_->selection) s.reset();
}

AttentionCache::Contents AttentionCache::contents() const {
  const State& s = *state_;
  Contents out;
  out.batch = s.B, out.length = s.length, out.keys = s.rows.keys, out.values = s.rows.values;
  if (!s.sparse()) return out;
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const SparsekSpec& spec = s.spec.sparsek;
  const auto k = static_cast<std::size_t>(spec.k), heads = s.selection.size();
  const std::size_t pool = spec.gate == GateMode::hard ? 0 : static_cast<std::size_t>(pool_scores(spec.pool, spec.k));
  out.u.resize(heads * k), out.key.assign(heads * k, -1);
  out.pool.assign(heads * pool, -kInfinity), out.tau.resize(heads);
  for (std::size_t x = 0; x < heads; ++x) {
    const StreamingSelection& chosen = s.selection[x];
    for (std::int64_t slot = 0; slot < chosen.size(); ++slot) {
      const std::size_t at = x * k + static_cast<std::size_t>(slot);
      out.u[at] = chosen.u(slot), out.key[at] = chosen.key(slot);
    }
    out.tau[x] = chosen.thresholds().tau();
    const std::vector<double> kept = chosen.thresholds().scores();
    std::copy_n(kept.begin(), std::min(pool, kept.size()), out.pool.begin() + static_cast<std::ptrdiff_t>(x * pool));
  }
  for (std::size_t x = 0; x < s.ring_scores.size(); ++x) {
    const auto place = static_cast<std::int64_t>(x) % s.spec.window, last = s.length - 1;
    const std::int64_t position = last - (last - place + s.spec.window) % s.spec.window;
    out.ring.push_back(position < 0 ? 0 : order_score(s.ring_scores[x], spec.slope, position));
  }
  return out;
}

const Tensor& AttentionCache::keys() const { return state_->rows.keys; }
const Tensor& AttentionCache::values() const { return state_->rows.values; }
std::int64_t AttentionCache::length() const { return state_->length; }
std::int64_t AttentionCache::rows() const { return state_->rows.capacity; }

std::int64_t AttentionCache::bytes() const {
  const State& s = *state_;
  // A selection keeps (u, key, slot) and a heap place per slot, and pool * k thresholds' scores (all in the band where
  // the pool is unbounded, which alone may grow).
  std::size_t scalars = s.ring_scores.size() * sizeof(double) + s.slots.size() * sizeof(CachedSlot);
  for (const StreamingSelection& x : s.selection) {
    const auto k = static_cast<std::size_t>(x.k());
    const auto kept = s.spec.sparsek.gate == GateMode::hard ? 0
                      : s.spec.sparsek.pool == 0            ? static_cast<std::size_t>(x.scalars())
                                                            : k * static_cast<std::size_t>(s.spec.sparsek.pool);
    scalars += k * (sizeof(TopKHeap::Entry) + sizeof(std::int32_t)) + kept * sizeof(double);
  }
  return static_cast<std::int64_t>(s.rows.keys.nbytes() + s.rows.values.nbytes() + scalars);
}

std::vector<std::int64_t> AttentionCache::selected(std::int64_t batch, std::int64_t kv_head) const {
  const State& s = *state_;
  require(batch >= 0 && batch < s.B && kv_head >= 0 && kv_head < s.spec.n_kv_heads, "cache", "no sequence ", batch,
          " or head ", kv_head);
  std::vector<std::int64_t> out;
  if (!s.sparse()) return out;
  const StreamingSelection& x = s.selection[static_cast<std::size_t>(batch * s.Hs + (s.Hs == 1 ? 0 : kv_head))];
  for (std::int64_t slot = 0; slot < x.size(); ++slot) out.push_back(x.key(slot));
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace sieve
