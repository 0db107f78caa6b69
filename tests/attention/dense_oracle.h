// Attention over any set of pairs straight from its definition, dense, in fp64, with its gradient; and the same as a
// naive bf16 program would round it. Shares nothing with the engine but the layout of qkv.
// Letters: B batch, T time, H query heads, Hkv key-value heads, D head size, i query, j key, positions of the row.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "attention/reference.h"
#include "core/dtype.h"

namespace sieve::test {

using Visible = std::function<bool(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j)>;  // j <= i

struct DenseResult {
  std::vector<double> out, dqkv;  // (B, T, H D), like qkv
};

class DenseOracle {
 public:
  DenseOracle(const ReferenceInput& input, Visible visible, bool naive_bf16 = false)
      : in_(input), sees_(std::move(visible)), naive_(naive_bf16), qkv_(input.qkv) {
    turn(qkv_, 1);
  }

  // dout (B, T, H D), or empty: no gradient.
  DenseResult run(const std::vector<double>& dout) {
    const std::int64_t H = in_.spec.n_heads, D = in_.spec.head_dim;
    DenseResult r;
    r.out.assign(static_cast<std::size_t>(in_.B * in_.T * H * D), 0);
    r.dqkv.assign(qkv_.size(), 0);
    for (std::int64_t b = 0; b < in_.B; ++b)
      for (std::int64_t h = 0; h < H; ++h)
        for (std::int64_t i = 0; i < in_.T; ++i) query(b, h, i, dout, r);
    turn(r.dqkv, -1);
    return r;
  }

 private:
  double round(double x) const {
    return naive_ ? static_cast<double>(static_cast<float>(bf16(static_cast<float>(x)))) : x;
  }
  std::size_t at(std::int64_t b, std::int64_t t, std::int64_t head) const {
    return static_cast<std::size_t>((b * in_.T + t) * in_.spec.qkv_features() + head * in_.spec.head_dim);
  }

  void query(std::int64_t b, std::int64_t h, std::int64_t i, const std::vector<double>& dout, DenseResult& r) const {
    const std::int64_t H = in_.spec.n_heads, Hkv = in_.spec.n_kv_heads, D = in_.spec.head_dim, kv = h / (H / Hkv);
    const double scale = 1 / std::sqrt(static_cast<double>(D));
    const double* q = qkv_.data() + at(b, i, h);
    std::vector<std::int64_t> keys;
    std::vector<double> p;
    for (std::int64_t j = 0; j <= i; ++j) {
      if (!sees_(b, h, i, j)) continue;
      keys.push_back(j);
      p.push_back(scale * dot(q, qkv_.data() + at(b, j, H + kv)));
    }
    if (keys.empty()) return;
    const double top = *std::max_element(p.begin(), p.end());
    double sum = 0, delta = 0;
    for (double& x : p) x = std::exp(x - top), sum += x;
    const std::size_t row = static_cast<std::size_t>(((b * in_.T + i) * H + h) * D);
    double* y = r.out.data() + row;
    for (std::size_t x = 0; x < keys.size(); ++x) {
      const double* v = qkv_.data() + at(b, keys[x], H + Hkv + kv);
      for (std::int64_t d = 0; d < D; ++d) y[d] += round(p[x]) * v[d];
      p[x] /= sum;
    }
    for (std::int64_t d = 0; d < D; ++d) y[d] = round(y[d] / sum);
    if (dout.empty()) return;
    const double* dy = dout.data() + row;
    delta = dot(y, dy);
    for (std::size_t x = 0; x < keys.size(); ++x) {
      const double *k = qkv_.data() + at(b, keys[x], H + kv), *v = qkv_.data() + at(b, keys[x], H + Hkv + kv);
      const double ds = scale * round(p[x] * (dot(dy, v) - delta)), weight = round(p[x]);
      double *dq = r.dqkv.data() + at(b, i, h), *dk = r.dqkv.data() + at(b, keys[x], H + kv),
             *dv = r.dqkv.data() + at(b, keys[x], H + Hkv + kv);
      for (std::int64_t d = 0; d < D; ++d) dq[d] += ds * k[d], dk[d] += ds * q[d], dv[d] += weight * dy[d];
    }
  }

  double dot(const double* a, const double* b) const {
    double sum = 0;
    for (std::int64_t d = 0; d < in_.spec.head_dim; ++d) sum += a[d] * b[d];
    return sum;
  }

  // Query and key heads by their position; sign -1 turns gradients back, after which the naive program rounds them.
  void turn(std::vector<double>& x, double sign) const {
    const std::int64_t H = in_.spec.n_heads, Hkv = in_.spec.n_kv_heads, R = in_.rope.rotary_dims / 2;
    for (std::int64_t row = 0; row < in_.B * in_.T; ++row) {
      for (std::int64_t h = 0; h < H + Hkv; ++h) {
        double* v = x.data() + at(row / in_.T, row % in_.T, h);
        for (std::int64_t r = 0; r < R; ++r) {
          const double angle = sign * static_cast<double>(row % in_.T) *
                               std::pow(in_.rope.theta, -2.0 * static_cast<double>(r) / static_cast<double>(2 * R));
          const double a = v[r], b = v[R + r];
          v[r] = a * std::cos(angle) - b * std::sin(angle), v[R + r] = b * std::cos(angle) + a * std::sin(angle);
        }
      }
    }
    for (double& e : x) e = round(e);
  }

  const ReferenceInput& in_;
  Visible sees_;
  bool naive_;
  std::vector<double> qkv_;  // queries and keys rotated
};

}  // namespace sieve::test
