// Random problems of dense attention, a naive bf16 attention, and the comparison of one more with both it and fp64.
// Letters: B batch, T time, H query heads, Hkv key-value heads, D head size, F features, W window.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "attention/attention.h"
#include "attention/rotary.h"
#include "autograd/variable.h"
#include "core/error.h"
#include "core/parallel_for.h"
#include "support/catch.h"
#include "support/compare.h"
#include "support/draw.h"

namespace sieve::test {

struct Problem {
  AttentionSpec spec;
  RopeSpec rope;
  std::int64_t B = 0, T = 0;
  bool deterministic = false;
  Tensor qkv, dout;  // bf16, on the CPU

  std::string str() const {
    return cat("B", B, " T", T, " H", spec.n_heads, "/", spec.n_kv_heads, " D", spec.head_dim, " W", window(),
               " rotary ", rope.rotary_dims, deterministic ? " deterministic" : "");
  }
  std::int64_t window() const {
    return spec.kind == AttentionKind::sliding_window && spec.window < T ? spec.window : 0;
  }
};

inline void fill(Problem& p, Draw& d) {
  p.qkv = d.normal({p.B, p.T, p.spec.qkv_features()}).to(DType::bf16);
  p.dout = d.normal({p.B, p.T, p.spec.n_heads * p.spec.head_dim}).to(DType::bf16);
}

inline Problem draw_problem(Draw& d) {
  constexpr std::int64_t kLengths[] = {2, 3, 17, 63, 64, 65, 127, 128, 129, 200, 255, 320, 512, 1000, 2048};
  constexpr std::int64_t kHeads[] = {64, 128, 64, 128, 32, 80, 256};
  Problem p;
  p.T = kLengths[d.integer(0, d.chance(0.15) ? 14 : 11)];
  const bool large = p.T > 320;
  p.B = large ? 1 : d.integer(1, 3);
  p.spec.n_kv_heads = large ? 1 : d.integer(1, 3);
  p.spec.n_heads = p.spec.n_kv_heads * (d.chance(0.5) ? 1 : d.integer(2, large ? 2 : 4));
  p.spec.head_dim = kHeads[d.integer(0, 6)];
  if (d.chance(0.5)) {
    p.spec.kind = AttentionKind::sliding_window;
    p.spec.window = d.chance(0.2) ? 1 : (d.chance(0.5) ? d.integer(2, 40) : d.integer(1, p.T + 2));
  }
  if (d.chance(0.5)) p.rope.rotary_dims = d.chance(0.7) ? p.spec.head_dim : 2 * d.integer(1, p.spec.head_dim / 2);
  p.deterministic = d.chance(0.2);
  fill(p, d);
  return p;
}

struct Results {
  Tensor out, dqkv;
};

inline Results reference(const Problem& p) {
  const Variable qkv = Variable::leaf(p.qkv.to(DType::f64));
  const Variable out = attention(qkv, {}, {p.spec, p.rope, {}});
  backward(out, p.dout.to(DType::f64));
  return {out.value(), qkv.grad()};
}

// ---- The naive bf16 attention

inline float rounded_to_bf16(float x) { return static_cast<float>(bf16(x)); }

inline float dot(const float* a, const float* b,
                 std::int64_t n) {  // n a multiple of 8; eight sums, so that it vectorises
  float sums[8] = {};
  for (std::int64_t i = 0; i < n; i += 8) {
    for (int l = 0; l < 8; ++l) sums[l] += a[i + l] * b[i + l];
  }
  float sum = 0;
  for (float x : sums) sum += x;
  return sum;
}

inline void add(float* y, float alpha, const float* x, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) y[i] += alpha * x[i];
}

struct Naive {
  const Problem& p;
  std::int64_t T, D, F, H, Hkv, R, W;
  std::vector<float> qkv, dout, out, dqkv;
  RotaryTable table;

  explicit Naive(const Problem& problem) : p(problem) {
    T = p.T;
    D = p.spec.head_dim;
    F = p.spec.qkv_features();
    H = p.spec.n_heads;
    Hkv = p.spec.n_kv_heads;
    R = p.rope.rotary_dims / 2;
    W = p.window() > 0 ? p.window() : T;
    const auto floats = [](const Tensor& t) {
      const Tensor f = t.to(DType::f32);
      return std::vector<float>(f.data<float>(), f.data<float>() + f.numel());
    };
    qkv = floats(p.qkv);
    dout = floats(p.dout);
    out.assign(dout.size(), 0);
    dqkv.assign(qkv.size(), 0);
    table = rotary_table(p.rope, T, DType::f32, Stream{});
    turn(qkv, 1);
  }

  void turn(std::vector<float>& x, float sign) const {
    for (std::int64_t row = 0; R > 0 && row < p.B * T; ++row) {
      const float* cos = table.cos.data<float>() + row % T * R;
      const float* sin = table.sin.data<float>() + row % T * R;
      for (std::int64_t h = 0; h < H + Hkv; ++h) {
        float* v = x.data() + row * F + h * D;
        for (std::int64_t r = 0; r < R; ++r) {
          const float a = v[r], b = v[R + r], s = sin[r] * sign;
          v[r] = rounded_to_bf16(a * cos[r] - b * s);
          v[R + r] = rounded_to_bf16(b * cos[r] + a * s);
        }
      }
    }
  }

  void head(std::int64_t b, std::int64_t h) {
    const std::int64_t G = H / Hkv, key = (H + h / G) * D, value = (H + Hkv + h / G) * D;
    const auto row = [&](std::vector<float>& x, std::int64_t t, std::int64_t at) {
      return x.data() + (b * T + t) * F + at;
    };
    const float scale = static_cast<float>(1 / std::sqrt(static_cast<double>(D)));
    std::vector<float> s(static_cast<std::size_t>(T)), dk(static_cast<std::size_t>(T * D)), dv(dk), o(D), dq(D);
    for (std::int64_t i = 0; i < T; ++i) {
      const std::int64_t first = std::max<std::int64_t>(0, i - W + 1);
      float* y = out.data() + (b * T + i) * H * D + h * D;
      const float* dy = dout.data() + (b * T + i) * H * D + h * D;
      float most = -INFINITY, sum = 0;
      for (std::int64_t j = first; j <= i; ++j)
        most = std::max(most, s[j] = scale * dot(row(qkv, i, h * D), row(qkv, j, key), D));
      std::fill(o.begin(), o.end(), 0.0f);
      for (std::int64_t j = first; j <= i; ++j) {
        s[j] = std::exp(s[j] - most);
        sum += s[j];
        add(o.data(), rounded_to_bf16(s[j]), row(qkv, j, value), D);
      }
      for (std::int64_t d = 0; d < D; ++d) y[d] = rounded_to_bf16(o[d] / sum);
      const float delta = dot(y, dy, D);
      std::fill(dq.begin(), dq.end(), 0.0f);
      for (std::int64_t j = first; j <= i; ++j) {
        const float weight = s[j] / sum;
        const float ds = rounded_to_bf16(weight * (dot(dy, row(qkv, j, value), D) - delta));
        add(dv.data() + j * D, rounded_to_bf16(weight), dy, D);
        add(dk.data() + j * D, ds * scale, row(qkv, i, h * D), D);
        add(dq.data(), ds * scale, row(qkv, j, key), D);
      }
      for (std::int64_t d = 0; d < D; ++d) row(dqkv, i, h * D)[d] = rounded_to_bf16(dq[d]);
    }
    for (std::int64_t t = 0; t < T; ++t) {  // heads of a group: rounded each, then summed
      for (std::int64_t d = 0; d < D; ++d) {
        row(dqkv, t, key)[d] += rounded_to_bf16(dk[t * D + d]);
        row(dqkv, t, value)[d] += rounded_to_bf16(dv[t * D + d]);
      }
    }
  }

  Results run() {
    for (std::int64_t b = 0; b < p.B; ++b) {
      for (std::int64_t h = 0; h < H; ++h) head(b, h);
    }
    for (float& x : dqkv) x = rounded_to_bf16(x);
    turn(dqkv, -1);
    return {from_values<float>(out, p.dout.shape()), from_values<float>(dqkv, p.qkv.shape())};
  }
};

// ---- Comparison

inline double frobenius(const Tensor& t) {
  double sum = 0;
  for (const double v : values_of(t)) sum += v * v;
  return std::sqrt(sum);
}

inline double frobenius_of_difference(const Tensor& a, const Tensor& b) {
  const auto x = values_of(a), y = values_of(b);
  double sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) sum += (x[i] - y[i]) * (x[i] - y[i]);
  return std::sqrt(sum);  // NaN stays NaN
}

// The rule is "at most twice the naive error". The largest error of a single case is a noisy statistic: of 600 such
// comparisons of two equally exact attentions a few fail by luck. So each case is judged by its relative Frobenius
// error, where all elements take part, and the largest errors, each divided by the case's largest value, are judged
// over all cases together.
class Comparison {
 public:
  void add(const Problem& p, const Results& got, const Results& naive) {
    const Results wanted = reference(p);
    const std::int64_t D = p.spec.head_dim, q = p.spec.n_heads * D, kv = p.spec.n_kv_heads * D;
    const std::int64_t ends[] = {0, q, q + kv, q + 2 * kv};
    add(0, p, got.out, naive.out, wanted.out);
    for (std::size_t x = 0; x < 3; ++x) {
      const auto part = [&](const Results& r) { return r.dqkv.slice(2, ends[x], ends[x + 1]); };
      add(x + 1, p, part(got), part(naive), part(wanted));
    }
  }
  void check_largest() const {
    for (std::size_t part = 0; part < 4; ++part) {
      INFO(kNames[part] << ": " << where_[part] << "; naive " << naive_[part]);
      CHECK(ours_[part] <= 2 * naive_[part]);
    }
  }

 private:
  static constexpr const char* kNames[] = {"out", "dq", "dk", "dv"};

  // 2e-5 beside the naive error: sums in fp32 where the naive result happens to be exact.
  void add(std::size_t part, const Problem& p, const Tensor& got, const Tensor& naive, const Tensor& wanted) {
    const double size = std::max(frobenius(wanted), std::sqrt(static_cast<double>(wanted.numel())));
    const double error = frobenius_of_difference(got, wanted) / size,
                 allowed = 2 * frobenius_of_difference(naive, wanted) / size + 2e-5;
    INFO(kNames[part] << ": " << worst_of(got, wanted));
    CHECK(error <= allowed);
    const double ours = relative_difference(got, wanted);
    naive_[part] = std::max(naive_[part], relative_difference(naive, wanted));
    if (!(ours <= ours_[part])) ours_[part] = ours, where_[part] = cat(p.str(), ", ", worst_of(got, wanted));
  }

  double ours_[4] = {}, naive_[4] = {};
  std::string where_[4];
};

inline std::vector<Results> naive_of(const std::vector<Problem>& problems) {
  std::vector<Results> naive(problems.size());
  for (const Problem& p : problems) rotary_table(p.rope, p.T, DType::f32, Stream{});
  parallel_for(static_cast<std::int64_t>(problems.size()), 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) {
      const auto n = static_cast<std::size_t>(i);
      naive[n] = Naive(problems[n]).run();
    }
  });
  return naive;
}

}  // namespace sieve::test
