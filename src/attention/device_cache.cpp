#include "attention/device_cache.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/attention.h"
#include "attention/kernels/select.h"
#include "core/build.h"

namespace sieve {
namespace {

constexpr std::int64_t kMostDistances = std::int64_t{1} << 20;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Keys that are not rotated in the cache turn by their distance, those beyond this one by this one.
std::int64_t far_of(const AttentionSpec& spec, const RopeSpec& rope, std::int64_t max_tokens) {
  if (spec.kind != AttentionKind::sparsek || rope.rotary_dims == 0) return 0;
  if (spec.sparsek.positions != PositionRule::clamp) return 0;
  const std::int64_t far = spec.sparsek.clamp_distance;
  return max_tokens > 0 ? std::min(far, max_tokens) : far;
}

bool has_thresholds(const AttentionSpec& spec) {
  return spec.kind == AttentionKind::sparsek && spec.sparsek.gate != GateMode::hard;
}

template <class T>
void copy_rows(Tensor& to, std::int64_t first_row, const std::vector<T>& values) {
  if (values.empty()) return;
  const std::int64_t each = to.numel() / to.size(0), rows = static_cast<std::int64_t>(values.size()) / each;
  Tensor place = to.slice(0, first_row, first_row + rows);
  place.copy_from(from_values<T>(values, place.shape()).to(to.stream()));
}

}  // namespace

bool DeviceCache::takes(const AttentionSpec& spec, const RopeSpec& rope, DType dtype, std::int64_t max_tokens) {
  if constexpr (build::with_cuda) {
    if (!cuda::decodes(spec.head_dim, dtype)) return false;
    if (spec.kind > AttentionKind::sparsek || spec.sparsek.random_scores || spec.sparsek.linear) return false;
    if (spec.kind == AttentionKind::full && max_tokens <= 0) return false;
    if (has_thresholds(spec) && pool_scores(spec.sparsek.pool, spec.sparsek.k) == 0) return false;
    return far_of(spec, rope, max_tokens) <= kMostDistances;
  }
  return false;
}

DeviceCache::DeviceCache(const AttentionSpec& spec, const RopeSpec& rope, std::int64_t batch, DType dtype,
                         std::int64_t max_tokens, std::int64_t score_heads, const Stream& stream)
    : spec_(spec),
      rope_(rope),
      B_(batch),
      Hs_(score_heads == 0 ? spec.n_kv_heads : score_heads),
      dtype_(dtype),
      stream_(stream) {
  check_attention(spec_, rope_);
  require(stream.device.is_cuda() && B_ >= 1 && takes(spec, rope, dtype, max_tokens), "device cache",
          "does not take this layer");
  if (spec_.kind == AttentionKind::full) spec_.window = 0;
  if (spec_.kind != AttentionKind::sliding_window) spec_.sinks = 0;
  const std::int64_t k = sparse() ? spec_.sparsek.k : 0;
  capacity_ = spec_.kind == AttentionKind::full ? max_tokens : spec_.sinks + spec_.window + k;
  for (Tensor* t : {&keys_, &values_}) *t = zeros({B_, spec_.n_kv_heads, capacity_, spec_.head_dim}, dtype_, stream);
  if (!sparse()) return;
  far_distance_ = far_of(spec_, rope_, max_tokens);
  if (rope_.rotary_dims > 0 && spec_.sparsek.positions != PositionRule::absolute)
    distances_ = rotary_table(rope_, std::max(spec_.window, far_distance_ + 1), DType::f32, stream);
  const std::int64_t rows = B_ * Hs_;
  pool_ = has_thresholds(spec_) ? pool_scores(spec_.sparsek.pool, k) : 0;
  ring_ = zeros({rows, selects_at_once() ? 1 : spec_.window}, DType::f64, stream);
  u_ = zeros({rows, k}, DType::f64, stream);
  key_ = full({rows, k}, -1, DType::i64, stream);
  seen_ = full({rows, k}, -1, DType::f32, stream);
  pool_scores_ = full({rows, pool_}, -kInfinity, DType::f64, stream);
  least_ = zeros({rows}, DType::i32, stream);
  incoming_ = full({rows}, -1, DType::i32, stream);
  tau_ = full({rows}, -kInfinity, DType::f64, stream);
}

void DeviceCache::load(const AttentionCache& from, std::int64_t first) {
  const AttentionCache::Contents c = from.contents();
  require(first >= 0 && first + c.batch <= B_ && c.keys.dtype() == dtype_, "device cache", c.batch, " sequences of ",
          name_of(c.keys.dtype()), " do not fit behind ", first, " of ", B_);
  const std::int64_t rows = spec_.kind == AttentionKind::full ? c.length : capacity_;
  require(rows <= capacity_ && rows <= c.keys.size(2), "device cache", rows, " rows for ", capacity_);
  keys_.slice(0, first, first + c.batch).slice(2, 0, rows).copy_from(c.keys.slice(2, 0, rows));
  values_.slice(0, first, first + c.batch).slice(2, 0, rows).copy_from(c.values.slice(2, 0, rows));
  if (!sparse()) return;
  const std::int64_t row = first * Hs_;
  const auto k = static_cast<std::size_t>(spec_.sparsek.k);
  std::vector<std::int32_t> least;
  for (std::size_t x = 0; x < c.tau.size(); ++x) {
    std::size_t at = 0;
    const double* u = c.u.data() + x * k;
    const std::int64_t* key = c.key.data() + x * k;
    for (std::size_t slot = 1; slot < k && key[slot] >= 0; ++slot)
      if (u[slot] < u[at] || (u[slot] == u[at] && key[slot] < key[at])) at = slot;
    least.push_back(static_cast<std::int32_t>(at));
  }
  copy_rows(ring_, row, c.ring);
  copy_rows(u_, row, c.u);
  copy_rows(key_, row, c.key);
  copy_rows(pool_scores_, row, c.pool);
  copy_rows(tau_, row, c.tau);
  copy_rows(least_, row, least);
}

DecodeSelection DeviceCache::selection() const {
  DecodeSelection s;
  if (!sparse()) return s;
  const SparsekSpec& spec = spec_.sparsek;
  s.ring = ring_.data<double>(), s.ring_size = ring_.size(1);
  s.u = u_.data<double>(), s.key = key_.data<std::int64_t>(), s.seen = seen_.data<float>();
  s.least = least_.data<std::int32_t>(), s.incoming = incoming_.data<std::int32_t>();
  s.pool = pool_scores_.data<double>(), s.tau = tau_.data<double>();
  s.rows = B_ * Hs_, s.k = spec.k, s.C = pool_, s.window = spec_.window;
  s.slope = spec.slope, s.temperature = spec.temperature;
  s.thresholds = has_thresholds(spec_), s.at_once = selects_at_once();
  return s;
}

DecodeAttendArgs DeviceCache::attend_arguments() const {
  DecodeAttendArgs a;
  a.keys_BKCD = keys_.raw(), a.values_BKCD = values_.raw(), a.capacity = capacity_;
  a.kind = spec_.kind, a.window = spec_.window, a.sinks = spec_.sinks;
  a.selection = selection(), a.Hs = Hs_, a.gate = spec_.sparsek.gate;
  a.B = B_, a.H = spec_.n_heads, a.Hkv = spec_.n_kv_heads, a.D = spec_.head_dim;
  a.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(spec_.head_dim)));
  a.dtype = dtype_;
  a.rotary_dims = rope_.rotary_dims;
  if (distances_.cos.defined()) {
    a.distance_cos = distances_.cos.data<float>(), a.distance_sin = distances_.sin.data<float>();
    a.far_distance = far_distance_;
  }
  return a;
}

DecodeScores DeviceCache::score_arguments() const {
  DecodeScores s;
  if (!sparse()) return s;
  s.Hs = Hs_, s.slope = spec_.sparsek.slope;
  s.ring = ring_.data<double>(), s.ring_size = ring_.size(1);
  return s;
}

std::int64_t DeviceCache::bytes() const {
  std::size_t n = 0;
  for (const Tensor* t : {&keys_, &values_, &ring_, &u_, &key_, &seen_, &pool_scores_, &least_, &incoming_, &tau_})
    n += t->defined() ? t->nbytes() : 0;
  return static_cast<std::int64_t>(n);
}

std::vector<std::int64_t> DeviceCache::selected(std::int64_t batch, std::int64_t kv_head) const {
  require(batch >= 0 && batch < B_ && kv_head >= 0 && kv_head < spec_.n_kv_heads, "device cache", "no sequence ", batch,
          " or head ", kv_head);
  std::vector<std::int64_t> out;
  if (!sparse()) return out;
  const std::int64_t row = batch * Hs_ + (Hs_ == 1 ? 0 : kv_head);
  const Tensor keys = key_.slice(0, row, row + 1).to(Stream{});
  for (const std::int64_t key : keys.span<std::int64_t>())
    if (key >= 0) out.push_back(key);
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace sieve
