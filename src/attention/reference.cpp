#include "attention/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/error.h"

namespace sieve {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double clip01(double x) { return std::min(1.0, std::max(0.0, x)); }

// sup{t : sum_j clip(z_j - t, 0, 1) >= k}, by a search of the sorted ends of the pieces; -infinity for at most k
// scores.
double threshold(const std::vector<double>& z, std::int64_t k) {
  if (static_cast<std::int64_t>(z.size()) <= k) return -kInfinity;
  auto f = [&](double t) {
    double sum = 0;
    for (double x : z) sum += clip01(x - t);
    return sum;
  };
  std::vector<double> ends;
  for (double x : z) {
    ends.push_back(x);
    ends.push_back(x - 1);
  }
  std::sort(ends.begin(), ends.end());
  const double want = static_cast<double>(k) * (1 - 1e-14);  // the sums of saturated scores round
  std::size_t low = 0, high = ends.size() - 1;               // f(ends[low]) >= k > f(ends[high]) = 0
  while (high - low > 1) {
    const std::size_t middle = (low + high) / 2;
    (f(ends[middle]) >= want ? low : high) = middle;
  }
  const double inside = (ends[low] + ends[high]) / 2;  // f is linear from ends[low] to ends[high]
  double sum = -static_cast<double>(k), count = 0;
  for (double x : z) {
    if (x - inside >= 1) sum += 1;
    else if (x > inside) sum += x, count += 1;
  }
  return count > 0 ? std::min(std::max(sum / count, ends[low]), ends[high]) : ends[low];
}

struct Dims {
  std::int64_t B, T, H, Hkv, Hs, D, F, G;
  explicit Dims(const ReferenceInput& in)
      : B(in.B),
        T(in.T),
        H(in.spec.n_heads),
        Hkv(in.spec.n_kv_heads),
        Hs(in.spec.kind == AttentionKind::sparsek ? in.score_heads : 1),
        D(in.spec.head_dim),
        F(in.spec.qkv_features()),
        G(in.spec.group()) {
    require(static_cast<std::int64_t>(in.qkv.size()) == B * T * F, "reference", "qkv has ", in.qkv.size(),
            " values, not ", B * T * F);
  }
  std::size_t pair(std::int64_t b, std::int64_t hs, std::int64_t i, std::int64_t j) const {
    return static_cast<std::size_t>(((b * Hs + hs) * T + i) * T + j);
  }
};

// Everything that query i of one selection head sees of its candidates.
void select_for_query(const ReferenceInput& in, const Dims& n, std::int64_t b, std::int64_t hs, std::int64_t i,
                      std::int64_t start, ReferenceMasks& masks) {
  const SparsekSpec& s = in.spec.sparsek;
  const std::int64_t last = s.candidates == Candidates::on_exit ? i - in.spec.window : i;
  std::vector<std::int64_t> order;
  for (std::int64_t j = start; j <= last; ++j) order.push_back(j);
  auto u = [&](std::int64_t j) {
    return in.scores[static_cast<std::size_t>((b * n.Hs + hs) * n.T + j)] + s.slope * static_cast<double>(j - start);
  };
  auto z = [&](std::int64_t j) { return u(j) / s.temperature; };
  std::sort(order.begin(), order.end(),
            [&](std::int64_t x, std::int64_t y) { return u(x) != u(y) ? u(x) > u(y) : x > y; });
  const auto candidates = static_cast<std::int64_t>(order.size());
  const std::int64_t in_pool = s.pool == 0 ? candidates : std::min(candidates, s.pool * s.k);
  std::vector<double> pool;
  for (std::int64_t r = 0; r < in_pool; ++r) pool.push_back(z(order[static_cast<std::size_t>(r)]));

  const double tau = threshold(pool, s.k);
  double band_margin = kInfinity, cut_margin = kInfinity;
  for (std::int64_t r = 0; r < candidates; ++r) {
    const std::int64_t j = order[static_cast<std::size_t>(r)];
    const std::size_t at = n.pair(b, hs, i, j);
    if (r < s.k && j <= i - in.spec.window) masks.selected[at] = 1;
    if (r < in_pool) {
      masks.gate[at] = clip01(z(j) - tau);
      masks.band[at] = z(j) - tau > 0 && z(j) - tau < 1;
      band_margin = std::min({band_margin, std::abs(z(j) - tau), std::abs(z(j) - tau - 1)});
    }
    const bool cut = r + 1 == s.k || (r + 1 == in_pool && z(j) > tau);
    if (cut && r + 1 < candidates) cut_margin = std::min(cut_margin, z(j) - z(order[static_cast<std::size_t>(r + 1)]));
  }
  const auto query = static_cast<std::size_t>((b * n.Hs + hs) * n.T + i);
  masks.tau[query] = tau;
  masks.band_margin[query] = band_margin;
  masks.cut_margin[query] = cut_margin;
}

bool window_shows(const AttentionSpec& spec, std::int64_t i, std::int64_t j, std::int64_t start) {
  if (j > i || j < start) return false;
  if (spec.kind == AttentionKind::full || i - j < spec.window) return true;
  return spec.kind == AttentionKind::sliding_window && j - start < spec.sinks;
}

std::vector<double> rotated(const double* x, std::int64_t D, const RopeSpec& rope, std::int64_t position) {
  std::vector<double> y(x, x + D);
  const std::int64_t R = rope.rotary_dims / 2;
  for (std::int64_t r = 0; r < R; ++r) {
    const double angle = static_cast<double>(position) *
                         std::pow(rope.theta, -2.0 * static_cast<double>(r) / static_cast<double>(rope.rotary_dims));
    y[static_cast<std::size_t>(r)] = x[r] * std::cos(angle) - x[R + r] * std::sin(angle);
    y[static_cast<std::size_t>(R + r)] = x[r] * std::sin(angle) + x[R + r] * std::cos(angle);
  }
  return y;
}

double dot(const double* a, const double* b, std::int64_t D) { return std::inner_product(a, a + D, b, 0.0); }

// One visible pair of one query: positions as the rule says, gate, logit, weights.
struct Pair {
  std::int64_t j, query_position, key_position;
  bool in_band;          // the gate's gradient counts
  double m;              // 1 for keys of spans and for hard gates
  double dot, logit, p;  // a q.k, the same after the gate, softmax weight
};

struct Row {
  std::vector<Pair> pairs;
  std::vector<double> out;  // D
};

class Reference {
 public:
  explicit Reference(const ReferenceInput& input) : in(input), n(input), masks(reference_masks(input)) {}

  const double* q(std::int64_t b, std::int64_t h, std::int64_t i) const {
    return in.qkv.data() + (b * n.T + i) * n.F + h * n.D;
  }
  const double* k(std::int64_t b, std::int64_t kv, std::int64_t j) const { return q(b, n.H + kv, j); }
  const double* v(std::int64_t b, std::int64_t kv, std::int64_t j) const { return q(b, n.H + n.Hkv + kv, j); }

  Row row(std::int64_t b, std::int64_t h, std::int64_t i) const {
    Row row;
    const std::int64_t kv = h / n.G, hs = n.Hs == 1 ? 0 : kv;
    for (std::int64_t j = 0; j <= i; ++j) {
      const std::size_t at = n.pair(b, hs, i, j);
      if (masks.window[at]) row.pairs.push_back(pair(b, h, i, j, false, 1, false));
      else if (masks.selected[at]) row.pairs.push_back(pair(b, h, i, j, true, masks.gate[at], masks.band[at]));
    }
    weigh(row);
    row.out.assign(static_cast<std::size_t>(n.D), 0.0);
    for (const Pair& x : row.pairs) {
      for (std::int64_t d = 0; d < n.D; ++d)
        row.out[static_cast<std::size_t>(d)] += x.p * value_gate(x) * v(b, kv, x.j)[d];
    }
    return row;
  }

  GateMode mode() const { return in.spec.sparsek.gate; }
  double value_gate(const Pair& x) const { return mode() == GateMode::kv || mode() == GateMode::value ? x.m : 1; }

  const ReferenceInput& in;
  const Dims n;
  const ReferenceMasks masks;

 private:
  Pair pair(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j, bool selected, double m, bool band) const {
    Pair x{j, i, j, band, mode() == GateMode::hard ? 1 : m, 0, 0, 0};
    const PositionRule rule = in.spec.sparsek.positions;
    if (selected && rule == PositionRule::none) x.query_position = x.key_position = 0;
    if (selected && rule == PositionRule::clamp && i - j > in.spec.sparsek.clamp_distance) {
      x.query_position = in.spec.sparsek.clamp_distance;
      x.key_position = 0;
    }
    const auto rq = rotated(q(b, h, i), n.D, in.rope, x.query_position);
    const auto rk = rotated(k(b, h / n.G, j), n.D, in.rope, x.key_position);
    x.dot = dot(rq.data(), rk.data(), n.D) / std::sqrt(static_cast<double>(n.D));
    x.logit = mode() == GateMode::kv ? x.m * x.dot : x.dot;
    return x;
  }
  void weigh(Row& row) const {
    double top = -kInfinity, sum = 0;
    for (const Pair& x : row.pairs) top = std::max(top, x.logit);
    for (Pair& x : row.pairs) sum += x.p = std::exp(x.logit - top) * (mode() == GateMode::prob ? x.m : 1);
    for (Pair& x : row.pairs) x.p /= sum;
  }
};

// dq += R(query_position)^T (factor * R(key_position) k), and the same the other way round.
void add_logit_gradient(const Reference& r, std::int64_t b, std::int64_t h, std::int64_t i, const Pair& x,
                        double factor, std::vector<double>& dqkv) {
  const Dims& n = r.n;
  const std::int64_t kv = h / n.G, relative = x.key_position - x.query_position;  // R(a)^T R(b) = R(b - a)
  const auto for_q = rotated(r.k(b, kv, x.j), n.D, r.in.rope, relative);
  const auto for_k = rotated(r.q(b, h, i), n.D, r.in.rope, -relative);
  double* dq = dqkv.data() + (r.q(b, h, i) - r.in.qkv.data());
  double* dk = dqkv.data() + (r.k(b, kv, x.j) - r.in.qkv.data());
  for (std::int64_t d = 0; d < n.D; ++d) {
    dq[d] += factor * for_q[static_cast<std::size_t>(d)];
    dk[d] += factor * for_k[static_cast<std::size_t>(d)];
  }
}

// dL/dm and dL/d(a q.k) of one pair. dv: dO . v, delta: dO . o
struct PairGradient {
  double gate, dot;
};
PairGradient differentiate(GateMode mode, const Pair& x, double dv, double delta) {
  switch (mode) {
    case GateMode::kv: {
      const double ds = x.p * (x.m * dv - delta);
      return {x.p * dv + ds * x.dot, x.m * ds};
    }
    case GateMode::value: return {x.p * dv, x.p * (x.m * dv - delta)};
    case GateMode::prob: return {x.m > 0 ? x.p / x.m * (dv - delta) : 0, x.p * (dv - delta)};
    case GateMode::hard: return {x.p * (dv - delta), x.p * (dv - delta)};
  }
  return {};
}

// du_j = sum_i (g_ij - mean over F_i of g_i.) over the i whose band F_i holds j.
void add_score_gradient(const Reference& r, const std::vector<double>& g, std::vector<double>& dscores) {
  const Dims& n = r.n;
  for (std::int64_t x = 0; x < n.B * n.Hs; ++x) {
    for (std::int64_t i = 0; i < n.T; ++i) {
      double sum = 0, count = 0;
      for (std::int64_t j = 0; j < n.T; ++j) {
        const std::size_t at = n.pair(0, x, i, j);
        if (r.masks.band[at]) sum += g[at], count += 1;
      }
      for (std::int64_t j = 0; j < n.T; ++j) {
        const std::size_t at = n.pair(0, x, i, j);
        if (r.masks.band[at])
          dscores[static_cast<std::size_t>(x * n.T + j)] += (g[at] - sum / count) / r.in.spec.sparsek.temperature;
      }
    }
  }
}

}  // namespace

ReferenceMasks reference_masks(const ReferenceInput& in) {
  const Dims n(in);
  ReferenceMasks masks;
  const auto pairs = static_cast<std::size_t>(n.B * n.Hs * n.T * n.T),
             queries = static_cast<std::size_t>(n.B * n.Hs * n.T);
  for (auto* m : {&masks.window, &masks.selected, &masks.band}) m->assign(pairs, 0);
  masks.gate.assign(pairs, 0);
  masks.tau.assign(queries, -kInfinity);
  masks.band_margin.assign(queries, kInfinity);
  masks.cut_margin.assign(queries, kInfinity);
  for (std::int64_t b = 0; b < n.B; ++b) {
    for (std::int64_t hs = 0; hs < n.Hs; ++hs) {
      for (std::int64_t i = 0; i < n.T; ++i) {
        const std::int64_t start =
            in.document_starts.empty() ? 0 : in.document_starts[static_cast<std::size_t>(b * n.T + i)];
        for (std::int64_t j = 0; j < n.T; ++j) masks.window[n.pair(b, hs, i, j)] = window_shows(in.spec, i, j, start);
        if (in.spec.kind == AttentionKind::sparsek) select_for_query(in, n, b, hs, i, start, masks);
      }
    }
  }
  return masks;
}

std::vector<double> reference_forward(const ReferenceInput& in) {
  const Reference r(in);
  const Dims& n = r.n;
  std::vector<double> out;
  for (std::int64_t b = 0; b < n.B; ++b) {
    for (std::int64_t i = 0; i < n.T; ++i) {
      for (std::int64_t h = 0; h < n.H; ++h) {
        const Row row = r.row(b, h, i);
        out.insert(out.end(), row.out.begin(), row.out.end());
      }
    }
  }
  return out;
}

ReferenceGradients reference_backward(const ReferenceInput& in, const std::vector<double>& dout) {
  const Reference r(in);
  const Dims& n = r.n;
  ReferenceGradients out{std::vector<double>(in.qkv.size()), std::vector<double>(in.scores.size())};
  std::vector<double> g(r.masks.gate.size());  // dL/dm_ij, heads of a group summed
  const double a = 1 / std::sqrt(static_cast<double>(n.D));
  for (std::int64_t b = 0; b < n.B; ++b) {
    for (std::int64_t h = 0; h < n.H; ++h) {
      const std::int64_t kv = h / n.G, hs = n.Hs == 1 ? 0 : kv;
      for (std::int64_t i = 0; i < n.T; ++i) {
        const Row row = r.row(b, h, i);
        const double* d_out = dout.data() + ((b * n.T + i) * n.H + h) * n.D;
        const double delta = dot(d_out, row.out.data(), n.D);
        for (const Pair& x : row.pairs) {
          const PairGradient d = differentiate(r.mode(), x, dot(d_out, r.v(b, kv, x.j), n.D), delta);
          double* dv = out.qkv.data() + (r.v(b, kv, x.j) - in.qkv.data());
          for (std::int64_t c = 0; c < n.D; ++c) dv[c] += x.p * r.value_gate(x) * d_out[c];
          add_logit_gradient(r, b, h, i, x, a * d.dot, out.qkv);
          if (x.in_band) g[n.pair(b, hs, i, x.j)] += d.gate;
        }
      }
    }
  }
  if (in.spec.kind == AttentionKind::sparsek) add_score_gradient(r, g, out.scores);
  return out;
}

}  // namespace sieve
