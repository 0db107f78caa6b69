// Extents of a tensor, at most six, row-major. Products are checked: a size that does not fit 63 bits is an error, not
// a wrap.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "core/error.h"

namespace sieve {

inline constexpr int kMaxRank = 6;

inline std::int64_t checked_product(std::int64_t a, std::int64_t b, std::string_view subject) {
  std::int64_t out;
  if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &out))
    fail(Exit::internal, subject, "size overflows: ", a, " x ", b);
  return out;
}

class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<std::int64_t> extents) : Shape(std::span(extents.begin(), extents.size())) {}
  explicit Shape(std::span<const std::int64_t> extents) {
    require(extents.size() <= kMaxRank, "shape", "rank ", extents.size(), " exceeds ", kMaxRank);
    for (std::int64_t e : extents) {
      require(e >= 0, "shape", "negative extent ", e);
      extents_[static_cast<std::size_t>(rank_++)] = e;
    }
    (void)numel();
  }

  int rank() const { return rank_; }
  std::int64_t operator[](int axis) const { return extents_[static_cast<std::size_t>(normalise(axis))]; }
  void set(int axis, std::int64_t extent) { extents_[static_cast<std::size_t>(normalise(axis))] = extent; }
  std::int64_t numel() const {
    std::int64_t n = 1;
    for (std::int64_t e : *this) n = checked_product(n, e, "shape");
    return n;
  }
  int normalise(int axis) const {  // -1 is the last axis
    int a = axis < 0 ? axis + rank_ : axis;
    require(a >= 0 && a < rank_, "shape", "axis ", axis, " of ", str());
    return a;
  }
  const std::int64_t* begin() const { return extents_.data(); }
  const std::int64_t* end() const { return extents_.data() + rank_; }
  bool operator==(const Shape& other) const {
    return rank_ == other.rank_ && std::equal(begin(), end(), other.begin());
  }
  std::string str() const {
    std::string out = "(";
    for (int i = 0; i < rank_; ++i) out += (i ? ", " : "") + std::to_string(extents_[static_cast<std::size_t>(i)]);
    return out + ")";
  }

 private:
  std::array<std::int64_t, kMaxRank> extents_{};
  int rank_ = 0;
};

inline std::ostream& operator<<(std::ostream& out, const Shape& s) { return out << s.str(); }

}  // namespace sieve
