#include "data/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "core/error.h"
#include "core/rng.h"

namespace sieve {
namespace {

constexpr int kRounds = 10;
constexpr std::uint64_t kOne = std::uint64_t{1} << 32;       // 1 in the fixed point of shares
constexpr std::uint64_t kOrderStream = 0x64617461'6f726472;  // purpose: data order

std::uint64_t mix(std::uint64_t x) {  // splitmix64's finaliser
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// Of the first `i` samples, how many go to a source with this share: floor(share * i + 1/2), without overflow.
std::int64_t quota(std::int64_t i, std::uint64_t share) {
  const auto product = static_cast<unsigned __int128>(static_cast<std::uint64_t>(i)) * share;
  return static_cast<std::int64_t>((product + kOne / 2) >> 32);
}

std::int64_t checked_sum(const std::vector<SampledSource>& sources) {
  std::int64_t sum = 0;
  for (const SampledSource& s : sources) {
    if (__builtin_add_overflow(sum, s.sequences, &sum)) fail(Exit::data, "sampler", "too many sequences");
  }
  return sum;
}

}  // namespace

Permutation::Permutation(std::int64_t n, std::uint64_t key) : n_(static_cast<std::uint64_t>(n)), key_(key) {
  require(n >= 1, "sampler", "a permutation of ", n, " things");
  const int bits = std::max(1, static_cast<int>(std::bit_width(n_ - 1)));
  half_bits_ = (bits + 1) / 2;
  half_mask_ = (std::uint64_t{1} << half_bits_) - 1;
}

std::int64_t Permutation::operator()(std::int64_t i) const {
  require(i >= 0 && static_cast<std::uint64_t>(i) < n_, "sampler", "index ", i, " of a permutation of ", n_);
  auto x = static_cast<std::uint64_t>(i);
  do {
    std::uint64_t left = x >> half_bits_, right = x & half_mask_;
    for (int round = 0; round < kRounds; ++round) {
      const std::uint64_t f = mix(mix(key_ + static_cast<std::uint64_t>(round) * 0x9E3779B97F4A7C15ull) ^ right);
      left = std::exchange(right, left ^ (f & half_mask_));
    }
    x = (left << half_bits_) | right;
  } while (x >= n_);
  return static_cast<std::int64_t>(x);
}

std::int64_t sequence_count(std::int64_t tokens, std::int64_t seq_len) {
  require(seq_len >= 1, "sampler", "sequence length ", seq_len);
  return tokens > 0 ? (tokens - 1) / seq_len : 0;
}

Sampler::Sampler(std::vector<SampledSource> sources, std::uint64_t seed) : sources_(std::move(sources)), seed_(seed) {
  require(!sources_.empty(), "sampler", "no sources");
  const auto weighted =
      std::count_if(sources_.begin(), sources_.end(), [](const auto& s) { return s.weight.has_value(); });
  if (weighted != 0 && weighted != static_cast<std::int64_t>(sources_.size())) {
    fail(Exit::config, "sampler", weighted, " of ", sources_.size(),
         " data sources have a weight: give one to all of them or to none");
  }
  for (const SampledSource& s : sources_) {
    if (s.sequences < 1) fail(Exit::data, "sampler", s.name, " is shorter than one sequence");
  }
  checked_sum(sources_);
  begin_.assign(1, 0);
  for (const SampledSource& s : sources_) begin_.push_back(begin_.back() + s.sequences);
  if (weighted == 0) return;
  double rest = 0;
  for (const SampledSource& s : sources_) {
    if (!(*s.weight > 0) || !std::isfinite(*s.weight)) {
      fail(Exit::config, "sampler", s.name, ": weight ", *s.weight, " must be above 0");
    }
    rest += *s.weight;
  }
  for (std::size_t d = 0; d < sources_.size(); ++d) {
    const bool last = d + 1 == sources_.size();
    const auto share = last ? kOne : static_cast<std::uint64_t>(std::llround(*sources_[d].weight / rest * 0x1p32));
    if (share == 0 || (!last && share >= kOne)) {
      fail(Exit::config, "sampler", sources_[d].name, ": weight ", *sources_[d].weight,
           " is too far from the others (beyond 2^32 to 1)");
    }
    share_.push_back(share);
    rest -= *sources_[d].weight;
  }
}

Sample Sampler::operator()(std::int64_t index) const {
  require(index >= 0, "sampler", "sample ", index);
  Sample out;
  if (share_.empty()) {
    const std::int64_t n = begin_.back();
    out.epoch = index / n;
    const std::uint64_t key = stream_of(seed_, kOrderStream, 0, out.epoch);
    const std::int64_t at = Permutation(n, key)(index % n);
    out.source = std::upper_bound(begin_.begin(), begin_.end(), at) - begin_.begin() - 1;
    out.sequence = at - begin_[static_cast<std::size_t>(out.source)];
    return out;
  }
  for (std::size_t d = 0;; ++d) {
    const std::int64_t before = quota(index, share_[d]), after = quota(index + 1, share_[d]);
    if (after == before) {  // not this one: number it among the rest
      index -= before;
      continue;
    }
    const std::int64_t n = sources_[d].sequences;
    out.source = static_cast<std::int64_t>(d);
    out.epoch = before / n;
    out.sequence = Permutation(n, stream_of(seed_, kOrderStream, d + 1, out.epoch))(before % n);
    return out;
  }
}

std::int64_t Sampler::epoch_samples() const { return begin_.back(); }

}  // namespace sieve
