// Where many tensors lie in one flat buffer. Weights, moments and gradients of a model share one layout, so that one
// kernel serves them all and element i of each belongs together.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "core/shape.h"

namespace sieve {

struct FlatLayout {
  static constexpr std::int64_t kAlign = 64;  // elements: starts stay aligned for vector loads in any dtype

  std::vector<std::int64_t> begins;  // of each tensor, in their order
  std::vector<std::int64_t> numels;
  std::int64_t numel = 0;  // of the whole, gaps included: a multiple of kAlign. Gaps hold zeros.

  FlatLayout() = default;
  explicit FlatLayout(std::span<const Shape> shapes) {
    for (const Shape& shape : shapes) {
      begins.push_back(numel);
      numels.push_back(shape.numel());
      numel += (shape.numel() + kAlign - 1) / kAlign * kAlign;
    }
  }
  std::size_t size() const { return begins.size(); }

  // The part of one of `parts` owners: contiguous, in their order, aligned, equal but for the last ones.
  struct Range {
    std::int64_t begin = 0, end = 0;
    std::int64_t numel() const { return end - begin; }
    bool operator==(const Range&) const = default;
  };
  static Range part(std::int64_t numel, int owner, int parts) {
    const std::int64_t lines = (numel + kAlign - 1) / kAlign, each = (lines + parts - 1) / parts * kAlign;
    return {std::min(numel, owner * each), std::min(numel, (owner + 1) * each)};
  }
  bool operator==(const FlatLayout&) const = default;
};

}  // namespace sieve
