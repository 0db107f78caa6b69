// An identity op that reports when its backward runs.
#pragma once

#include <array>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "autograd/record.h"
#include "support/errors.h"

namespace sieve::test {

inline constexpr std::string_view kTestOps[] = {"traced", "returns"};

struct Traced {
  static constexpr std::string_view name = "traced";
  static constexpr std::span<const std::string_view> table = kTestOps;
  static constexpr std::size_t arity = 1;
  std::function<void()> ran;

  Tensor forward(const std::array<Tensor, 1>& in, std::function<void()> f) {
    ran = std::move(f);
    return in[0];
  }
  std::array<Tensor, 1> backward(const Tensor& grad, Needs<1>) {
    ran();
    return {grad};
  }
};

inline Variable traced(const Variable& x, std::function<void()> ran) { return record<Traced>({x}, std::move(ran)); }

// An op whose gradient is whatever it was given.
struct Returns {
  static constexpr std::string_view name = "returns";
  static constexpr std::span<const std::string_view> table = kTestOps;
  static constexpr std::size_t arity = 1;
  std::function<Tensor()> gradient;

  Tensor forward(const std::array<Tensor, 1>& in, std::function<Tensor()> f) {
    gradient = std::move(f);
    return in[0].clone();
  }
  std::array<Tensor, 1> backward(const Tensor&, Needs<1>) { return {gradient()}; }
};

inline Variable returns(const Variable& x, std::function<Tensor()> gradient) {
  return record<Returns>({x}, std::move(gradient));
}

}  // namespace sieve::test
