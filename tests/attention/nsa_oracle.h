// Native sparse attention from the definitions of docs/attention.md, with loops over everything, in fp64; and the
// compressed branch as a naive bf16 program would round it. Shares nothing with what it checks. Letters: B batch, T
// time, H query heads, Hkv key-value heads, D head size, l compress_block, s compress_stride, i query, m compressed
// key; positions count from the start of the document.
#pragma once

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include "attention/spec.h"
#include "core/dtype.h"

namespace sieve::test {

struct CompressedCase {
  std::int64_t B = 1, T = 0;
  AttentionSpec spec;
  std::vector<std::int32_t> starts;  // (B, T), or empty
  std::vector<double> q, k, v;       // (B, T, H D), (B, Hkv, M, D) twice

  std::int64_t start(std::int64_t b, std::int64_t t) const {
    return starts.empty() ? 0 : starts[static_cast<std::size_t>(b * T + t)];
  }
  // Compressed keys that row b has before position t: whole ones of every document that begins before it.
  std::int64_t passed(std::int64_t b, std::int64_t t) const {
    const std::int64_t l = spec.pattern.compress_block, s = spec.pattern.compress_stride;
    std::int64_t n = 0;
    for (std::int64_t first = 0; first < t; ++first) {
      if (start(b, first) != first) continue;
      std::int64_t end = first;
      while (end < t && start(b, end) == first) ++end;
      for (std::int64_t m = 0; first + m * s + l <= end; ++m) ++n;
    }
    return n;
  }
};

struct CompressedResult {
  std::vector<double> out, dq, dk, dv;
  std::vector<std::set<std::int64_t>> choice;  // (B, Hkv, T)
  std::vector<double> margin;                  // how far the last chosen block is from the best that is not
};

class CompressedOracle {
 public:
  // M: compressed keys that the arrays have room for.
  CompressedOracle(const CompressedCase& input, std::int64_t M, bool naive_bf16 = false)
      : in_(input), M_(M), naive_(naive_bf16) {}

  CompressedResult run(const std::vector<double>& dout) {
    const std::int64_t H = in_.spec.n_heads, Hkv = in_.spec.n_kv_heads;
    CompressedResult r;
    r.out.assign(in_.q.size(), 0), r.dq = r.out, r.dk.assign(in_.k.size(), 0), r.dv = r.dk;
    for (std::int64_t b = 0; b < in_.B; ++b) {
      for (std::int64_t kv = 0; kv < Hkv; ++kv) {
        for (std::int64_t i = 0; i < in_.T; ++i) {
          std::vector<double> sum(static_cast<std::size_t>(M_), 0.0);
          for (std::int64_t h = kv * (H / Hkv); h < (kv + 1) * (H / Hkv); ++h) query(b, h, i, dout, sum, r);
          choose(b, i, sum, r);
        }
      }
    }
    return r;
  }

 private:
  double round(double x) const {
    return naive_ ? static_cast<double>(static_cast<float>(bf16(static_cast<float>(x)))) : x;
  }
  double dot(const double* a, const double* b) const {
    double sum = 0;
    for (std::int64_t d = 0; d < in_.spec.head_dim; ++d) sum += a[d] * b[d];
    return sum;
  }
  std::int64_t seen(std::int64_t position) const {  // compressed keys that end at or before it
    const std::int64_t l = in_.spec.pattern.compress_block, s = in_.spec.pattern.compress_stride;
    std::int64_t n = 0;
    while (n * s + l - 1 <= position) ++n;
    return n;
  }

  void query(std::int64_t b, std::int64_t h, std::int64_t i, const std::vector<double>& dout, std::vector<double>& sum,
             CompressedResult& r) const {
    const std::int64_t H = in_.spec.n_heads, Hkv = in_.spec.n_kv_heads, D = in_.spec.head_dim, kv = h / (H / Hkv),
                       start = in_.start(b, i), n = seen(i - start), first = in_.passed(b, start);
    if (n == 0) return;
    const double scale = 1 / std::sqrt(static_cast<double>(D));
    const std::int64_t row = ((b * in_.T + i) * H + h) * D, keys = ((b * Hkv + kv) * M_ + first) * D;
    std::vector<double> p;
    double top = -1e300, total = 0;
    for (std::int64_t m = 0; m < n; ++m) {
      p.push_back(scale * dot(in_.q.data() + row, in_.k.data() + keys + m * D));
      top = std::max(top, p.back());
    }
    for (double& x : p) x = std::exp(x - top), total += x;
    for (std::int64_t m = 0; m < n; ++m) {
      double& x = p[static_cast<std::size_t>(m)];
      for (std::int64_t d = 0; d < D; ++d)
        r.out[static_cast<std::size_t>(row + d)] += round(x) * in_.v[static_cast<std::size_t>(keys + m * D + d)];
      x /= total, sum[static_cast<std::size_t>(m)] += x;
    }
    double* y = r.out.data() + row;
    for (std::int64_t d = 0; d < D; ++d) y[d] = round(y[d] / total);
    if (dout.empty()) return;
    const double *dy = dout.data() + row, delta = dot(dy, y);
    for (std::int64_t m = 0; m < n; ++m) {
      const double x = p[static_cast<std::size_t>(m)], *v = in_.v.data() + keys + m * D,
                   *k = in_.k.data() + keys + m * D;
      const double ds = scale * round(x * (dot(dy, v) - delta)), weight = round(x);
      for (std::int64_t d = 0; d < D; ++d) {
        r.dq[static_cast<std::size_t>(row + d)] += ds * k[d];
        r.dk[static_cast<std::size_t>(keys + m * D + d)] += ds * in_.q[static_cast<std::size_t>(row + d)];
        r.dv[static_cast<std::size_t>(keys + m * D + d)] += weight * dy[d];
      }
    }
  }

  void choose(std::int64_t b, std::int64_t i, const std::vector<double>& sum, CompressedResult& r) const {
    const PatternSpec& p = in_.spec.pattern;
    const std::int64_t position = i - in_.start(b, i), own = position / p.block;
    std::vector<std::pair<double, std::int64_t>> rest;  // importance, block
    std::set<std::int64_t> chosen;
    for (const std::int64_t forced : {own, own - 1, std::int64_t{0}})
      if (forced >= 0 && static_cast<std::int64_t>(chosen.size()) < p.blocks) chosen.insert(forced);
    for (std::int64_t block = 0; block <= own; ++block) {
      if (chosen.count(block) > 0) continue;
      double importance = 0;  // keys that a compressed key shares with the block, in strides
      for (std::int64_t m = 0; m < seen(position); ++m) {
        std::int64_t shared = 0;
        for (std::int64_t j = m * p.compress_stride; j < m * p.compress_stride + p.compress_block; ++j)
          shared += j / p.block == block;
        importance += sum[static_cast<std::size_t>(m)] * static_cast<double>(shared / p.compress_stride);
      }
      rest.emplace_back(importance, block);
    }
    std::sort(rest.rbegin(), rest.rend());
    const auto places = static_cast<std::size_t>(p.blocks) - chosen.size();
    for (std::size_t x = 0; x < std::min(places, rest.size()); ++x) chosen.insert(rest[x].second);
    r.margin.push_back(places > 0 && places < rest.size() ? rest[places - 1].first - rest[places].first : 1);
    r.choice.push_back(chosen);
  }

  const CompressedCase& in_;
  std::int64_t M_;
  bool naive_;
};

}  // namespace sieve::test
