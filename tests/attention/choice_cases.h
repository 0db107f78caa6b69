// Two choices of the same queries, held against each other by what the choices are worth.
#pragma once

#include <algorithm>
#include <cmath>
#include <iterator>
#include <vector>

#include "attention/kernels/pattern.h"
#include "attention_cases.h"
#include "support/catch.h"

namespace sieve::test {

// What queries chose from: on the host, f32 or bf16.
struct ChoiceCase {
  Tensor q;        // (B, H, N, D), the last N of T positions
  Tensor k;        // (B, Hk, T, D)
  Tensor weights;  // (B, H, N): all heads together, or undefined
  Tensor starts;   // (B, T), or undefined
  std::int64_t block = 0;

  std::int64_t start_of(std::int64_t b, std::int64_t i) const {
    return starts.defined() ? starts.data<std::int32_t>()[b * k.size(2) + i] : 0;
  }
  // Candidates of position i: keys by their position, whole blocks by their number in the document.
  std::int64_t first(std::int64_t b, std::int64_t i) const { return block > 0 ? 0 : start_of(b, i); }
  std::int64_t end(std::int64_t b, std::int64_t i) const { return block > 0 ? (i - start_of(b, i)) / block : i + 1; }
};

inline double element(const Tensor& t, std::int64_t at) {
  return t.dtype() == DType::bf16 ? static_cast<double>(static_cast<float>(t.data<bf16>()[at]))
                                  : static_cast<double>(t.data<float>()[at]);
}

// A logit in fp64, and the sum of the sizes of its terms, by which its rounding goes.
struct Worth {
  double value = 0, size = 0;
};

inline Worth worth_in_head(const ChoiceCase& in, std::int64_t b, std::int64_t h, std::int64_t n, std::int64_t c) {
  const std::int64_t H = in.q.size(1), N = in.q.size(2), D = in.q.size(3), Hk = in.k.size(1), T = in.k.size(2);
  const std::int64_t rows = std::max<std::int64_t>(1, in.block);
  const std::int64_t first = in.block > 0 ? in.start_of(b, T - N + n) + c * in.block : c;
  Worth w;
  for (std::int64_t d = 0; d < D; ++d) {
    double key = 0, size = 0;
    for (std::int64_t r = 0; r < rows; ++r) {
      const double x = element(in.k, ((b * Hk + h / (H / Hk)) * T + first + r) * D + d);
      key += x / static_cast<double>(rows), size += std::abs(x) / static_cast<double>(rows);
    }
    const double q = element(in.q, ((b * H + h) * N + n) * D + d);
    w.value += q * key, w.size += std::abs(q) * size;
  }
  return w;
}

inline Worth worth(const ChoiceCase& in, std::int64_t b, std::int64_t h, std::int64_t n, std::int64_t c) {
  if (!in.weights.defined()) return worth_in_head(in, b, h, n, c);
  const std::int64_t H = in.q.size(1), N = in.q.size(2);
  Worth all;
  for (std::int64_t x = 0; x < H; ++x) {
    const Worth w = worth_in_head(in, b, x, n, c);
    const double weight = element(in.weights, (b * H + x) * N + n);
    all.value += weight * std::max(0.0, w.value), all.size += std::abs(weight) * w.size;
  }
  return all;
}

struct Compared {
  long lists = 0, other = 0, wrong = 0;  // lists; those that differ; those of them that rounding does not explain
};

// A list may differ from the wanted one by candidates whose logits are as near as two sums in fp32 of as many terms can
// be: each is off by at most the number of its operations times 2^-24 of the sum of its terms' sizes.
inline Compared compare_choices(const ChoiceCase& in, const Tensor& got, const Tensor& wanted) {
  REQUIRE(got.shape() == wanted.shape());
  const std::int64_t lists = got.size(1), N = got.size(2), M = got.size(3), T = in.k.size(2);
  const double rounding =
      std::ldexp(static_cast<double>(in.q.size(3) + (in.weights.defined() ? in.q.size(1) : 0) + 4), -23);
  Compared all;
  for (std::int64_t row = 0; row < got.size(0) * lists * N; ++row) {
    const std::int32_t *x = got.data<std::int32_t>() + row * M, *y = wanted.data<std::int32_t>() + row * M;
    ++all.lists;
    if (std::equal(x, x + M, y)) continue;
    ++all.other;
    const std::int64_t n = row % N, h = row / N % lists, b = row / N / lists, i = T - N + n;
    const std::int32_t *x_end = std::lower_bound(x, x + M, kNoChoice), *y_end = std::lower_bound(y, y + M, kNoChoice);
    bool fine = x_end - x == y_end - y && std::all_of(x_end, x + M, [](std::int32_t c) { return c == kNoChoice; });
    for (const std::int32_t* c = x; c < x_end; ++c)
      fine = fine && (c == x || c[-1] < *c) && *c >= in.first(b, i) && *c < in.end(b, i) + (in.block > 0 ? 1 : 0);
    std::vector<std::int32_t> mine, theirs;
    std::set_difference(x, x_end, y, y_end, std::back_inserter(mine));
    std::set_difference(y, y_end, x, x_end, std::back_inserter(theirs));
    for (std::size_t m = 0; fine && m < mine.size(); ++m) {
      for (const std::int32_t c : theirs) {
        const Worth v = worth(in, b, h, n, mine[m]), w = worth(in, b, h, n, c);
        fine = fine && std::abs(v.value - w.value) <= rounding * std::max(v.size, w.size);
      }
    }
    all.wrong += !fine;
  }
  return all;
}

}  // namespace sieve::test
