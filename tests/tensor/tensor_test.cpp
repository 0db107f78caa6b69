// Views, broadcast, copies and conversions, creation, and the messages of their errors.
#include <array>
#include <cmath>
#include <numeric>

#include "core/build.h"
#include "tensor/kernel_case.h"

using namespace sieve;
using namespace sieve::test;

namespace {

Tensor counting(const Shape& shape, DType dtype = DType::f32) {
  Tensor t = empty(shape, DType::f64);
  auto span = t.span<double>();
  std::iota(span.begin(), span.end(), 0.0);
  return t.to(dtype);
}

std::string error_of(const std::function<void()>& f) { return message_of(f, Exit::internal); }

}  // namespace

TEST_CASE("views share storage and read the right elements") {
  const Tensor t = counting({2, 3, 4});
  CHECK(t.is_contiguous());
  const Tensor s = t.slice(1, 1, 3);
  CHECK(s.shape() == Shape{2, 2, 4});
  CHECK_FALSE(s.is_contiguous());
  CHECK(s.same_storage(t));
  CHECK(values_of(s) == Values{4, 5, 6, 7, 8, 9, 10, 11, 16, 17, 18, 19, 20, 21, 22, 23});
  const Tensor p = s.transpose(0, 2);
  CHECK(p.shape() == Shape{4, 2, 2});
  CHECK(values_of(p) == Values{4, 16, 8, 20, 5, 17, 9, 21, 6, 18, 10, 22, 7, 19, 11, 23});
  CHECK(values_of(p.transpose(0, 2)) == values_of(s));
  CHECK(values_of(t.transpose(-1, 0).slice(0, 1, 2).slice(1, 2, 3)) == Values{9, 21});
  CHECK(values_of(t.view({-1, 6})) == values_of(t));
  CHECK(t.view({-1, 6}).shape() == Shape{4, 6});
  CHECK(t.flatten().shape() == Shape{24});
  CHECK(t.slice(0, 1, 2).is_contiguous());  // one row: its stride does not matter
  CHECK(t.slice(0, 1, 1).numel() == 0);
  CHECK(values_of(t.slice(2, 0, 0)).empty());
  // Writing through a view writes the storage.
  Tensor column = t.slice(2, 0, 1);
  column.fill(-1);
  CHECK(t.data<float>()[12] == -1);
  CHECK(t.data<float>()[13] == 13);
}

TEST_CASE("expand broadcasts like NumPy") {
  const Tensor t = counting({3, 1});
  const Tensor e = t.expand({2, 3, 2});
  CHECK(values_of(e) == Values{0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2});
  CHECK(e.stride(0) == 0);
  CHECK(e.stride(2) == 0);
  CHECK_FALSE(e.is_contiguous());
  CHECK(values_of(full({}, 3, DType::f32).expand({2, 2})) == Values{3, 3, 3, 3});
  CHECK(t.expand({3, 0}).numel() == 0);
  CHECK(broadcast_shape({3, 1}, {2, 1, 4}, "x") == Shape{2, 3, 4});
  CHECK(broadcast_shape({}, {2}, "x") == Shape{2});
  CHECK(broadcast_shape({0}, {1}, "x") == Shape{0});
}

TEST_CASE("copies convert every dtype into every other, through any strides") {
  const std::array all{DType::f32, DType::bf16, DType::f64, DType::i32, DType::i64, DType::u8};
  for (DType from : all) {
    for (DType to : all) {
      CAPTURE(name_of(from), name_of(to));
      const Tensor source = counting({5, 7}, from);  // 0..34: exact in all of them
      CHECK(values_of(source.to(to)) == values_of(counting({5, 7})));
      Tensor target = zeros({7, 6}, to);
      Tensor window = target.slice(1, 1, 6);
      window.copy_from(source.transpose(0, 1));
      CHECK(values_of(window.transpose(0, 1)) == values_of(counting({5, 7})));
      CHECK(max_abs(target.slice(1, 0, 1)) == 0);  // and nothing beside the window
    }
  }
  CHECK(values_of(from_values<double>(std::array{-1.9, 1.9, 250.5}, {3}).to(DType::i32)) == Values{-1, 1, 250});
  const Tensor t = counting({4});
  CHECK(t.to(DType::f32).same_storage(t));
  CHECK(t.contiguous().same_storage(t));
  CHECK_FALSE(t.clone().same_storage(t));
}

TEST_CASE("random strided copies equal element-by-element copies") {
  for (std::uint64_t round = 0; round < 60; ++round) {
    Draw draw(21, round);
    const int rank = static_cast<int>(draw.integer(0, 5));
    Tensor source = draw.normal(draw.shape(rank, 6));
    for (int axis = 0; axis < rank; ++axis) {
      if (draw.chance(0.3)) source = source.transpose(axis, static_cast<int>(draw.integer(0, rank - 1)));
      if (draw.chance(0.3) && source.size(axis) > 1) source = source.slice(axis, 1, source.size(axis));
    }
    if (rank < 5 && draw.chance(0.3)) {
      std::vector<std::int64_t> extents(source.shape().begin(), source.shape().end());
      extents.insert(extents.begin(), 3);
      source = source.expand(Shape(extents));
    }
    Values wanted;  // by index arithmetic alone
    for (std::int64_t i = 0; i < source.numel(); ++i) {
      std::int64_t rest = i, at = 0;
      for (int axis = source.rank() - 1; axis >= 0; --axis) {
        at += rest % source.size(axis) * source.stride(axis);
        rest /= source.size(axis);
      }
      wanted.push_back(static_cast<const double*>(source.raw())[at]);
    }
    const Tensor copy = source.clone();
    CAPTURE(round, source.shape());
    CHECK(Values(copy.span<double>().begin(), copy.span<double>().end()) == wanted);
  }
}

TEST_CASE("creation: fills, values and counter-based random numbers") {
  CHECK(values_of(zeros({3}, DType::i64)) == Values{0, 0, 0});
  CHECK(values_of(full({2}, 1.5, DType::bf16)) == Values{1.5, 1.5});
  CHECK(full({}, 2.5, DType::f64).item() == 2.5);
  CHECK(values_of(zeros_like(counting({2, 2}).transpose(0, 1))) == Values{0, 0, 0, 0});
  const Tensor a = random_normal({1000}, 1, 2, 5, 9), b = random_normal({10, 100}, 1, 2, 5, 9);
  CHECK(values_of(a) == values_of(b));
  CHECK(a.data<float>()[17] == static_cast<float>(1 + 2 * Philox{5, 9}.normal(17)));
  CHECK(values_of(a) != values_of(random_normal({1000}, 1, 2, 5, 10)));
  const Values u = values_of(random_uniform({1000}, -2, 3, 5, 9, DType::f64));
  CHECK(*std::min_element(u.begin(), u.end()) >= -2);
  CHECK(*std::max_element(u.begin(), u.end()) < 3);
  CHECK(same_for_all_threads([] {
    return std::vector{random_normal({100003}, 0, 1, 5, 9), full({100003}, 7, DType::bf16)};
  }));
  CHECK(same_for_all_threads([source = random_normal({300, 401}, 0, 1, 1, 1)] {
    return std::vector{source.to(DType::bf16), source.transpose(0, 1).clone(), source.slice(1, 3, 400).to(DType::f64)};
  }));
}

TEST_CASE("wrong shapes, dtypes and layouts are named with their numbers") {
  const Tensor t = counting({2, 3});
  CHECK(error_of([&] { (void)t.reshape({4}); }) == "[reshape] (2, 3) has 6 elements, (4) has 4");
  CHECK(has(error_of([&] { (void)t.transpose(0, 1).reshape({6}); }), "strided view (3, 2): call contiguous() first"));
  CHECK(has(error_of([&] { (void)t.view({-1, -1}); }), "only one extent may be -1"));
  CHECK(has(error_of([&] { (void)t.view({-1, 4}); }), "(2, 3) does not divide into pieces of 4"));
  CHECK(error_of([&] { (void)t.slice(1, 2, 4); }) == "[slice] [2, 4) of axis 1 of (2, 3)");
  CHECK(has(error_of([&] { (void)t.slice(2, 0, 1); }), "axis 2 of (2, 3)"));
  CHECK(has(error_of([&] { (void)t.expand({2, 4}); }), "(2, 3) does not broadcast to (2, 4)"));
  CHECK(has(error_of([&] { (void)t.expand({3}); }), "higher rank"));
  CHECK(error_of([] { (void)broadcast_shape({2, 3}, {4}, "add"); }) == "[add] shapes do not broadcast: (2, 3) and (4)");
  CHECK(error_of([&] { (void)t.data<double>(); }) == "[tensor] data<f64>() of f32 (2, 3)");
  CHECK(has(error_of([&] { (void)t.transpose(0, 1).span<float>(); }), "strided view (3, 2)"));
  CHECK(has(error_of([&] { (void)t.item(); }), "wants one element, has (2, 3)"));
  CHECK(has(error_of([&] { Tensor(t).copy_from(counting({3, 2})); }), "shapes differ: (3, 2) into (2, 3)"));
  CHECK(has(error_of([&] { counting({1, 3}).expand({2, 3}).copy_from(t); }), "broadcast view"));
  CHECK(has(error_of([] { (void)Tensor().clone(); }), "undefined tensor"));
  CHECK(has(error_of([] { (void)Tensor().data<float>(); }), "undefined tensor"));
  CHECK(has(error_of([] { (void)from_values<float>(std::array{1.f}, {2}); }), "1 values for (2)"));
  CHECK(has(error_of([] { (void)empty({std::int64_t{1} << 61, 4}, DType::f32); }), "size overflows"));
  CHECK(has(error_of([] { (void)empty({std::int64_t{1} << 61}, DType::f32); }), "size overflows"));
  if constexpr (!build::with_cuda) {
    CHECK(has(error_of([] { (void)zeros({2}, DType::f32, {{Device::Kind::cuda, 0}, nullptr}); }), "no CUDA backend"));
  }
}
