// How kernels are compared with naive references: references compute in fp64 on the very inputs that the kernel gets
// (rounded to its dtype), and errors are measured in units of what rounding the result to the dtype costs by itself.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "core/parallel_for.h"
#include "support/catch.h"
#include "support/compare.h"
#include "support/draw.h"
#include "tensor/kernels/kernels.h"
#include "tensor/tensor.h"

namespace sieve::test {

using Values = std::vector<double>;

inline constexpr DType kFloats[] = {DType::f32, DType::bf16, DType::f64};

inline std::size_t idx(std::int64_t i) { return static_cast<std::size_t>(i); }

// Rounded to dtype, as a kernel input.
inline Tensor input(Draw& draw, const Shape& shape, DType dtype, double std = 1) {
  return draw.normal(shape, std).to(dtype).clone();
}

// A tensor full of NaN: what a kernel leaves unwritten shows.
inline Tensor output(const Shape& shape, DType dtype) { return full(shape, std::nan(""), dtype); }

// error <= 2 * (error of the reference itself, rounded to the dtype of `got`) + slack * max(1, max |reference|).
// Slack is for sums: a few hundred terms in the compute dtype of the kernel.
inline bool close_to(const Tensor& got, const Values& wanted, DType kernel_dtype, double scale = 1) {
  const Values have = values_of(got);
  if (have.size() != wanted.size()) return false;
  const Tensor reference = from_values<double>(wanted, Shape{static_cast<std::int64_t>(wanted.size())});
  const Tensor mine = from_values<double>(have, reference.shape());
  const double rounding = max_difference(rounded(reference, got.dtype()), reference);
  const double slack = (kernel_dtype == DType::f64 ? 1e-13 : 2e-6) * scale * std::max(1.0, max_abs(reference));
  const double error = max_difference(mine, reference);
  if (error <= 2 * rounding + slack) return true;
  WARN(worst_of(mine, reference) << "; allowed " << 2 * rounding + slack);
  return false;
}

class Threads {
 public:
  explicit Threads(int n) : before_(num_threads()) { set_num_threads(n); }
  ~Threads() { set_num_threads(before_); }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

 private:
  int before_;
};

// Whether `compute` gives the same bits on 1, 2, 3 and 4 threads (or others).
inline bool same_for_all_threads(const std::function<std::vector<Tensor>()>& compute,
                                 std::initializer_list<int> counts = {1, 2, 3, 4}) {
  std::vector<Tensor> first;
  for (int threads : counts) {
    const Threads guard(threads);
    const auto now = compute();
    if (first.empty()) first = now;
    for (std::size_t i = 0; i < now.size(); ++i) {
      if (!same_bits(now[i], first[i])) {
        WARN("output " << i << " differs on " << threads << " threads: " << worst_of(now[i], first[i]));
        return false;
      }
    }
  }
  return true;
}

inline std::string message_of(const std::function<void()>& f, Exit code) {
  try {
    f();
  } catch (const Error& e) { return e.code() == code ? e.what() : std::string("other exit code: ") + e.what(); }
  return "no error";
}

inline bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// One call of a kernel: what it wrote, and what it should have written.
struct Outcome {
  std::vector<Tensor> got;
  std::function<std::vector<Values>()> wanted;
  double scale = 1;  // of the slack
};
using Family = std::function<Outcome(Draw& draw, DType dtype, bool large)>;  // large: enough work for four threads

// Random small shapes (0, 1 and odd extents among them) and one large one against the reference, in all three dtypes;
// the large one must have the same bits on 1 to 4 threads.
inline void check_family(const Family& family, std::uint64_t seed, std::uint64_t rounds = 40) {
  for (DType dtype : kFloats) {
    for (std::uint64_t round = 0; round <= rounds; ++round) {
      Draw draw(seed, round);
      const Outcome outcome = family(draw, dtype, round == rounds);
      const auto wanted = outcome.wanted();
      REQUIRE(wanted.size() == outcome.got.size());
      for (std::size_t i = 0; i < wanted.size(); ++i) {
        CAPTURE(name_of(dtype), round, i, outcome.got[i].shape().str());
        CHECK(close_to(outcome.got[i], wanted[i], dtype, outcome.scale));
      }
    }
    CAPTURE(name_of(dtype));
    CHECK(same_for_all_threads([&] {
      Draw draw(seed, rounds);
      return family(draw, dtype, true).got;
    }));
  }
}

}  // namespace sieve::test
