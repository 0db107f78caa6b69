// Random problems of attention by recurrences, their oracle, and how to run them. The oracle's outputs come from the
// recurrence token by token, its gradients from the sums over all pairs that the recurrence stands for.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "attention/linear.h"
#include "attention_cases.h"

namespace sieve::test {

struct LinearCase {
  bool gated = false;
  LinearShape shape;
  std::int64_t B = 1, T = 1, Hs = 1;
  std::vector<double> qkv, gates, dout;
  std::vector<std::int32_t> starts;  // (B, T) or empty
  std::vector<std::int64_t> exit;    // (B, Hs, T): the query at which a key enters, T: none; empty: its own
};

inline std::string describe(const LinearCase& in) {
  return cat(in.gated ? "gated" : "linear", " B", in.B, " T", in.T, " H", in.shape.H, "/", in.shape.Hkv, " D",
             in.shape.D, " V", in.shape.V, in.starts.empty() ? "" : " documents", in.exit.empty() ? "" : " exits");
}

inline std::int64_t start_of(const LinearCase& in, std::int64_t b, std::int64_t t) {
  return in.starts.empty() ? 0 : in.starts[static_cast<std::size_t>(b * in.T + t)];
}

inline void fill_linear(LinearCase& in, Draw& d) {
  const auto values = [&](std::int64_t n, double size) {
    std::vector<double> v = draw_values(d, n);
    for (double& x : v) x *= size;
    return v;
  };
  in.qkv = values(in.B * in.T * in.shape.features(), 2);
  in.gates = in.gated ? values(in.B * in.T * in.shape.Hkv * in.shape.D, 8) : std::vector<double>();
  in.dout = values(in.B * in.T * in.shape.H * in.shape.V, 1);
}

// Exits at random, as lists and by key.
inline void draw_exits(LinearCase& in, Draw& d) {
  in.exit.clear();
  in.Hs = d.chance(0.5) ? 1 : in.shape.Hkv;
  for (std::int64_t x = 0; x < in.B * in.Hs * in.T; ++x) {
    const std::int64_t j = x % in.T, b = x / in.T / in.Hs;
    const std::int64_t e = std::min(in.T, j + d.integer(1, d.chance(0.5) ? 4 : 40));
    in.exit.push_back(e < in.T && start_of(in, b, e) == start_of(in, b, j) ? e : in.T);
  }
}

inline LinearCase draw_linear_case(Draw& d, std::int64_t longest) {
  LinearCase in;
  in.gated = d.chance(0.5);
  const std::int64_t Hkv = d.integer(1, 2);
  in.shape = {Hkv * d.integer(1, 3), Hkv, d.integer(1, 9), d.integer(1, 9)};
  in.B = d.integer(1, 2), in.T = d.chance(0.3) ? d.integer(1, 9) : d.integer(1, longest);
  if (d.chance(0.4)) {
    ReferenceInput rows;
    rows.B = in.B, rows.T = in.T;
    fill_documents(rows, d);
    in.starts = rows.document_starts;
  }
  if (!in.gated && d.chance(0.4)) draw_exits(in, d);
  fill_linear(in, d);
  return in;
}

inline KeyExits exits_of(const LinearCase& in) {
  if (in.exit.empty()) return {};
  KeyExits out{zeros({in.B, in.Hs, in.T + 1}, DType::i32), zeros({in.B, in.Hs, in.T}, DType::i32)};
  for (std::int64_t row = 0; row < in.B * in.Hs; ++row) {
    std::int32_t count = 0;
    for (std::int64_t i = 0; i < in.T; ++i) {
      for (std::int64_t j = 0; j < in.T; ++j) {
        if (in.exit[static_cast<std::size_t>(row * in.T + j)] == i)
          out.keys.data<std::int32_t>()[row * in.T + count++] = static_cast<std::int32_t>(j);
      }
      out.first.data<std::int32_t>()[row * (in.T + 1) + i + 1] = count;
    }
  }
  return out;
}

inline Tensor starts_of(const LinearCase& in) {
  return in.starts.empty() ? Tensor() : from_values<std::int32_t>(in.starts, {in.B, in.T});
}

inline KeyExits there_of(const KeyExits& exits, const Stream& stream) {
  if (!exits.first.defined()) return {};
  return {exits.first.to(stream), exits.keys.to(stream)};
}

struct LinearRun {
  Tensor out, dqkv, dgates;
};

// On the device of `stream`; the results come back to the host.
inline LinearRun run_linear(const LinearCase& in, DType dtype, const Stream& stream = {}) {
  const auto there = [&](const std::vector<double>& v, std::int64_t features) {
    return tensor_of(v, {in.B, in.T, features}, dtype).to(stream);
  };
  const auto back = [](const Tensor& t) { return t.defined() ? t.to(Stream{}) : t; };
  Tensor starts = starts_of(in);
  if (starts.defined()) starts = starts.to(stream);
  const Variable qkv = Variable::leaf(there(in.qkv, in.shape.features()));
  const Variable gates = in.gated ? Variable::leaf(there(in.gates, in.shape.Hkv * in.shape.D)) : Variable();
  const Variable out = in.gated ? gated_linear_attention(qkv, gates, in.shape, starts)
                                : linear_attention(qkv, in.shape, starts, there_of(exits_of(in), stream));
  backward(out, there(in.dout, in.shape.H * in.shape.V));
  return {back(out.value()), back(qkv.grad()), in.gated ? back(gates.grad()) : Tensor()};
}

struct LinearOracle {
  std::vector<double> out, dqkv, dgates;
};

// One query head h of row b, in fp64. naive: features, pairs' weights, their gradients and the results are rounded to
// bf16, as a framework without fusion stores them.
class LinearOracleHead {
 public:
  LinearOracleHead(const LinearCase& c, bool naive, std::int64_t row, std::int64_t head, LinearOracle& result)
      : in(c), s(c.shape), rounds(naive), b(row), h(head), kv(h / (s.H / s.Hkv)), to(result) {}

  void run() {
    for (std::int64_t t = 0; t < in.T; ++t) by_recurrence(t);
    for (std::int64_t t = 0; t < in.T; ++t) by_pairs(t);
  }

 private:
  double round(double x) const {
    return rounds ? static_cast<double>(static_cast<float>(bf16(static_cast<float>(x)))) : x;
  }
  std::size_t at(std::int64_t t, std::int64_t feature) const {
    return static_cast<std::size_t>((b * in.T + t) * s.features() + feature);
  }
  std::size_t q_at(std::int64_t t, std::int64_t d) const { return at(t, h * s.D + d); }
  std::size_t k_at(std::int64_t t, std::int64_t d) const { return at(t, (s.H + kv) * s.D + d); }
  std::size_t v_at(std::int64_t t, std::int64_t v) const { return at(t, (s.H + s.Hkv) * s.D + kv * s.V + v); }
  std::size_t out_at(std::int64_t t, std::int64_t v) const {
    return static_cast<std::size_t>(((b * in.T + t) * s.H + h) * s.V + v);
  }
  std::size_t gate_at(std::int64_t t, std::int64_t d) const {
    return static_cast<std::size_t>(((b * in.T + t) * s.Hkv + kv) * s.D + d);
  }
  static double phi(double x) { return x > 0 ? x + 1 : std::exp(x); }
  static double slope(double x) { return x > 0 ? 1 : std::exp(x); }
  double scale() const { return in.gated ? 1 / std::sqrt(static_cast<double>(s.D)) : 1; }
  double query(std::int64_t t, std::int64_t d) const {
    const double x = in.qkv[q_at(t, d)];
    return round(in.gated ? scale() * x : phi(x));
  }
  double key(std::int64_t t, std::int64_t d) const {
    const double x = in.qkv[k_at(t, d)];
    return in.gated ? x : round(phi(x));
  }
  double alpha(std::int64_t t, std::int64_t d) const {
    return in.gated ? std::pow(1 / (1 + std::exp(-in.gates[gate_at(t, d)])), 1.0 / 16) : 1;
  }
  bool entered(std::int64_t j, std::int64_t t) const {
    if (start_of(in, b, j) != start_of(in, b, t)) return false;
    if (in.exit.empty()) return j <= t;
    return in.exit[static_cast<std::size_t>((b * in.Hs + (in.Hs == 1 ? 0 : kv)) * in.T + j)] <= t;
  }

  void by_recurrence(std::int64_t t) {
    const auto D = static_cast<std::size_t>(s.D), Z = static_cast<std::size_t>(s.V + 1);
    if (t == start_of(in, b, t)) state.assign(D * Z, 0);
    for (std::int64_t d = 0; d < s.D; ++d)
      for (std::size_t v = 0; v < Z; ++v) state[static_cast<std::size_t>(d) * Z + v] *= alpha(t, d);
    for (std::int64_t j = 0; j <= t; ++j) {
      if (!entered(j, t) || (j < t && entered(j, t - 1))) continue;
      for (std::int64_t d = 0; d < s.D; ++d)
        for (std::int64_t v = 0; v <= s.V; ++v)
          state[static_cast<std::size_t>(d) * Z + static_cast<std::size_t>(v)] +=
              key(j, d) * (v == s.V ? 1 : in.qkv[v_at(j, v)]);
    }
    std::vector<double> r(Z);
    for (std::int64_t d = 0; d < s.D; ++d)
      for (std::size_t v = 0; v < Z; ++v) r[v] += query(t, d) * state[static_cast<std::size_t>(d) * Z + v];
    const double sum = in.gated ? 1 : r.back();
    for (std::int64_t v = 0; v < s.V; ++v)
      to.out[out_at(t, v)] = sum == 0 ? 0 : round(r[static_cast<std::size_t>(v)] / sum);
  }

  // Every pair (t, j) as a weight sum_d q k (product of the decays between), its gradient, and where that goes.
  void by_pairs(std::int64_t t) {
    const auto D = static_cast<std::size_t>(s.D);
    std::vector<double> decay(D, 1), weights(static_cast<std::size_t>(in.T)), decays(weights.size() * D);
    double sum = 0;
    for (std::int64_t j = t; j >= start_of(in, b, t); --j) {
      for (std::size_t d = 0; d < D; ++d) decays[static_cast<std::size_t>(j) * D + d] = decay[d];
      double& weight = weights[static_cast<std::size_t>(j)];
      for (std::int64_t d = 0; d < s.D && entered(j, t); ++d)
        weight += query(t, d) * key(j, d) * decay[static_cast<std::size_t>(d)];
      sum += weight = round(weight);
      for (std::int64_t d = 0; d < s.D; ++d) decay[static_cast<std::size_t>(d)] *= alpha(j, d);
    }
    const double factor = in.gated ? 1 : sum == 0 ? 0 : 1 / sum;
    if (rounds) naive_out(t, weights, factor);
    std::vector<double> passed(D), dq(D);  // passed: sum over keys before u of what their pairs pass through alpha_u
    for (std::int64_t j = start_of(in, b, t); j <= t; ++j) {
      for (std::int64_t d = 0; d < s.D && in.gated; ++d)
        to.dgates[gate_at(j, d)] += passed[static_cast<std::size_t>(d)] * log_slope(j, d);
      if (!entered(j, t)) continue;
      double dweight = 0;
      for (std::int64_t v = 0; v < s.V; ++v) {
        const double g = in.dout[out_at(t, v)] * factor;
        dweight += g * (in.qkv[v_at(j, v)] - (in.gated ? 0 : to.out[out_at(t, v)]));
        to.dqkv[v_at(j, v)] += weights[static_cast<std::size_t>(j)] * g;
      }
      dweight = round(dweight);
      for (std::int64_t d = 0; d < s.D; ++d) {
        const auto x = static_cast<std::size_t>(d);
        const double p = dweight * decays[static_cast<std::size_t>(j) * D + x];
        dq[x] += p * key(j, d);
        to.dqkv[k_at(j, d)] += p * query(t, d) * (in.gated ? 1 : slope(in.qkv[k_at(j, d)]));
        passed[x] += p * key(j, d) * query(t, d);
      }
    }
    for (std::int64_t d = 0; d < s.D; ++d) {
      const double x = in.qkv[q_at(t, d)];
      to.dqkv[q_at(t, d)] = dq[static_cast<std::size_t>(d)] * (in.gated ? scale() : slope(x));
    }
  }
  double log_slope(std::int64_t t, std::int64_t d) const { return 1.0 / 16 / (1 + std::exp(in.gates[gate_at(t, d)])); }

  void naive_out(std::int64_t t, const std::vector<double>& weights, double factor) {
    for (std::int64_t v = 0; v < s.V; ++v) {
      double r = 0;
      for (std::int64_t j = 0; j <= t; ++j) r += weights[static_cast<std::size_t>(j)] * in.qkv[v_at(j, v)];
      to.out[out_at(t, v)] = round(r * factor);
    }
  }

  const LinearCase& in;
  const LinearShape& s;
  bool rounds;
  std::int64_t b, h, kv;
  LinearOracle& to;
  std::vector<double> state;
};

inline LinearOracle linear_oracle(const LinearCase& in, bool naive = false) {
  LinearOracle out{std::vector<double>(in.dout.size()), std::vector<double>(in.qkv.size()),
                   std::vector<double>(in.gates.size())};
  for (std::int64_t x = 0; x < in.B * in.shape.H; ++x)
    LinearOracleHead(in, naive, x / in.shape.H, x % in.shape.H, out).run();
  if (!naive) return out;
  for (std::vector<double>* v : {&out.dqkv, &out.dgates})
    for (double& x : *v) x = static_cast<double>(static_cast<float>(bf16(static_cast<float>(x))));
  return out;
}

}  // namespace sieve::test
