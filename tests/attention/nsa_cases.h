// Random problems of attention over compressed keys, how to run them, and what to hold against their oracle.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "attention/kernels/nsa.h"
#include "attention/kernels/pattern.h"
#include "attention/nsa.h"
#include "attention_cases.h"
#include "nsa_oracle.h"
#include "support/catch.h"
#include "support/compare.h"

namespace sieve::test {

inline std::vector<double> draw_bf16(Draw& d, std::int64_t n, double size) {
  std::vector<double> out = draw_values(d, n);
  for (double& x : out) x = static_cast<double>(static_cast<float>(bf16(static_cast<float>(size * x))));
  return out;
}

inline std::int64_t room(const CompressedCase& in) {
  return compressed_count(in.T, in.spec.pattern.compress_block, in.spec.pattern.compress_stride);
}

// D: head size, 0: any small one.
inline CompressedCase draw_compressed(Draw& d, std::int64_t longest, std::int64_t D = 0) {
  CompressedCase in;
  in.spec.kind = AttentionKind::nsa;
  PatternSpec& p = in.spec.pattern;
  p.compress_stride = d.integer(1, 8), p.compress_block = p.compress_stride * d.integer(1, 3);
  p.block = p.compress_stride * d.integer(1, 4), p.blocks = d.integer(1, 8);
  in.spec.n_kv_heads = d.integer(1, 2), in.spec.n_heads = in.spec.n_kv_heads * d.integer(1, 3);
  in.spec.head_dim = D > 0 ? D : d.integer(1, 40);
  in.B = d.integer(1, 2), in.T = d.chance(0.15) ? d.integer(1, 6) : d.integer(1, longest);
  if (d.chance(0.4)) {
    ReferenceInput rows;
    rows.B = in.B, rows.T = in.T;
    fill_documents(rows, d);
    in.starts = rows.document_starts;
  }
  const std::int64_t keys = in.B * in.spec.n_kv_heads * room(in) * in.spec.head_dim;
  in.q = draw_bf16(d, in.B * in.T * in.spec.n_heads * in.spec.head_dim, 3);
  in.k = draw_bf16(d, keys, 2), in.v = draw_bf16(d, keys, 1);
  return in;
}

inline std::string describe(const CompressedCase& in) {
  const PatternSpec& p = in.spec.pattern;
  return cat("B", in.B, " T", in.T, " H", in.spec.n_heads, "/", in.spec.n_kv_heads, " D", in.spec.head_dim, " l",
             p.compress_block, " s", p.compress_stride, " block ", p.block, " x ", p.blocks,
             in.starts.empty() ? "" : " documents");
}

struct CompressedRun {
  Tensor out, dq, dk, dv, choice;
};

inline CompressedRun run_compressed(const CompressedCase& in, DType dtype, const std::vector<double>& dout,
                                    const Stream& stream = {}) {
  const std::int64_t D = in.spec.head_dim;
  const Shape keys{in.B, in.spec.n_kv_heads, room(in), D}, rows{in.B, in.T, in.spec.n_heads * D};
  const auto leaf = [&](const std::vector<double>& x, const Shape& shape) {
    return Variable::leaf(tensor_of(x, shape, dtype).to(stream));
  };
  const Variable q = leaf(in.q, rows), k = leaf(in.k, keys), v = leaf(in.v, keys);
  const Tensor starts =
      in.starts.empty() ? Tensor() : from_values<std::int32_t>(std::span(in.starts), {in.B, in.T}).to(stream);
  CompressedRun run;
  const Variable out = compressed_attention(q, k, v, in.spec, in.T, starts, &run.choice);
  backward(out, tensor_of(dout, rows, dtype).to(stream));
  run.out = out.value().to(Stream{}), run.choice = run.choice.to(Stream{});
  run.dq = q.grad().to(Stream{}), run.dk = k.grad().to(Stream{}), run.dv = v.grad().to(Stream{});
  return run;
}

inline double norm(const std::vector<double>& x) {
  double sum = 0;
  for (const double v : x) sum += v * v;
  return std::sqrt(sum);
}

// Relative Frobenius errors of `got` and of `naive`, at least as if values were of size 1.
inline void check_twice_naive(const Tensor& got, const std::vector<double>& naive, const std::vector<double>& exact) {
  std::vector<double> ours = values_of(got), theirs = naive;
  for (std::size_t x = 0; x < exact.size(); ++x) ours[x] -= exact[x], theirs[x] -= exact[x];
  const double size = std::max(norm(exact), std::sqrt(static_cast<double>(exact.size())));
  if (!exact.empty()) CHECK(norm(ours) / size <= 2 * norm(theirs) / size + 2e-5);
}

// How many lists differ from the oracle's, apart from those whose last place is nearly a tie.
inline int wrong_choices(const Tensor& choice, const CompressedResult& wanted, double margin) {
  int wrong = 0, compared = 0;
  const std::int64_t n = choice.size(3);
  for (std::size_t x = 0; x < wanted.choice.size(); ++x) {
    const std::int32_t* list = choice.data<std::int32_t>() + static_cast<std::int64_t>(x) * n;
    if (wanted.margin[x] != 0 && wanted.margin[x] < margin) continue;
    std::vector<std::int32_t> blocks(wanted.choice[x].begin(), wanted.choice[x].end());
    blocks.resize(static_cast<std::size_t>(n), kNoChoice);
    ++compared, wrong += !std::equal(blocks.begin(), blocks.end(), list);
  }
  REQUIRE(compared > 0);
  return wrong;
}

}  // namespace sieve::test
