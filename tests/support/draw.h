// Random test inputs. Counter-based like everything else: Draw(seed, index) is the same on every machine.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>

#include "core/rng.h"
#include "tensor/tensor.h"

namespace sieve::test {

class Draw {
 public:
  Draw(std::uint64_t seed, std::uint64_t index) : rng_{seed, index} {}

  double uniform() { return rng_.uniform(counter_++); }  // [0, 1)
  bool chance(double p) { return uniform() < p; }
  std::int64_t integer(std::int64_t low, std::int64_t high) {  // both included
    return low + static_cast<std::int64_t>(rng_.bits64(counter_++) % static_cast<std::uint64_t>(high - low + 1));
  }
  // An extent: sometimes 0 (if allowed), often 1, else 2..largest.
  std::int64_t extent(std::int64_t largest, bool may_be_empty = true) {
    const double u = uniform();
    if (may_be_empty && u < 0.04) return 0;
    return u < 0.15 ? 1 : integer(std::min<std::int64_t>(2, largest), largest);
  }
  // The same for the axis that kernels vectorise over: also wider than a vector register, with odd remainders.
  std::int64_t width(bool may_be_empty = true) { return chance(0.3) ? integer(15, 37) : extent(9, may_be_empty); }
  Shape shape(int rank, std::int64_t largest, bool may_be_empty = true) {
    std::array<std::int64_t, kMaxRank> e{};
    for (int i = 0; i < rank; ++i) e[static_cast<std::size_t>(i)] = extent(largest, may_be_empty);
    return Shape(std::span(e.data(), static_cast<std::size_t>(rank)));
  }
  // fp64 values, mean 0, standard deviation `std`.
  Tensor normal(const Shape& shape, double std = 1) {
    return random_normal(shape, 0, std, rng_.seed, fresh_stream(), DType::f64);
  }
  Tensor uniform(const Shape& shape, double low, double high) {
    return random_uniform(shape, low, high, rng_.seed, fresh_stream(), DType::f64);
  }
  Tensor ids(const Shape& shape, std::int64_t low, std::int64_t high) {  // i32, both included
    Tensor t = empty(shape, DType::i32);
    for (std::int32_t& id : t.span<std::int32_t>()) id = static_cast<std::int32_t>(integer(low, high));
    return t;
  }

 private:
  std::uint64_t fresh_stream() { return stream_of(rng_.stream, counter_++); }
  Philox rng_;
  std::uint64_t counter_ = 0;
};

}  // namespace sieve::test
