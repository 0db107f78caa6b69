// How a CUDA kernel is compared with its CPU twin. A case is written once, as a function of the place it runs in: the
// same draws give the same inputs on the host, which the place copies to its device. There, inputs and outputs begin
// at addresses that are often not aligned, outputs are full of NaN, and NaN around them must survive.
#pragma once

#include "support/gpu.h"
#include "tensor/kernel_case.h"

namespace sieve::test {

class Place {
 public:
  Place(const Stream& stream, Draw& draw) : stream_(stream), draw_(draw) {}

  const Stream& stream() const { return stream_; }
  Tensor in(const Tensor& host) { return put(host, false); }
  Tensor out(const Shape& shape, DType dtype) { return put(output(shape, dtype), true); }
  // An output that is read as well: it starts with the values of `host`.
  Tensor inout(const Tensor& host) { return put(host, true); }

  bool guards_hold() const {
    for (const Guard& guard : guards_) {
      for (double v : values_of(guard.before.to(Stream{})))
        if (!std::isnan(v)) return false;
      for (double v : values_of(guard.after.to(Stream{})))
        if (!std::isnan(v)) return false;
    }
    return true;
  }

 private:
  struct Guard {
    Tensor before, after;
  };

  Tensor put(const Tensor& host, bool guarded) {
    const std::int64_t n = host.numel(), shift = draw_.chance(0.3) ? draw_.integer(1, 7) : 0, ahead = 32 + shift;
    Tensor all =
        is_float(host.dtype()) ? output({ahead + n + 32}, host.dtype()) : zeros({ahead + n + 32}, host.dtype());
    if (n > 0) all.slice(0, ahead, ahead + n).copy_from(host.flatten());
    all = all.to(stream_);
    if (guarded) guards_.push_back({all.slice(0, 0, ahead), all.slice(0, ahead + n, ahead + n + 32)});
    return all.slice(0, ahead, ahead + n).reshape(host.shape());
  }

  Stream stream_;
  Draw& draw_;
  std::vector<Guard> guards_;
};

// Runs a kernel in `place` and gives its outputs there. large: shapes that fill many blocks.
using Twin = std::function<std::vector<Tensor>(Draw& draw, DType dtype, Place& place, bool large)>;

// Each element: at most 2^-7 of itself in bf16 (both twins round once, by half of that), and `scale` * 1e-5 (fp64:
// 1e-12) of the largest: the twins add the same thousands of terms in different orders. scale 0: equal.
inline bool near_twin(const Tensor& gpu, const Tensor& cpu, DType kernel_dtype, double scale) {
  const Values got = values_of(gpu), wanted = values_of(cpu);
  double largest = 1;
  for (double v : wanted) largest = std::isfinite(v) ? std::max(largest, std::abs(v)) : largest;
  const double slack = (kernel_dtype == DType::f64 ? 1e-12 : 1e-5) * scale * largest;
  const double relative = gpu.dtype() == DType::bf16 && scale > 0 ? 0x1p-7 : 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    if (std::isnan(wanted[i]) ? std::isnan(got[i])
                              : std::abs(got[i] - wanted[i]) <= relative * std::abs(wanted[i]) + slack)
      continue;
    WARN("at " << i << " of " << gpu.shape() << ": " << got[i] << ", the CPU has " << wanted[i]);
    return false;
  }
  return true;
}

inline std::vector<Tensor> run_twin(const Twin& twin, const Stream& stream, DType dtype, std::uint64_t seed,
                                    std::uint64_t round, bool large) {
  Draw draw(seed, round), places(seed + 1, round);
  Place place(stream, places);
  std::vector<Tensor> out;
  for (const Tensor& t : twin(draw, dtype, place, large)) out.push_back(t.to(Stream{}).clone());
  CHECK(place.guards_hold());
  return out;
}

// Whether check_twin() is content with a few shapes: for tools that slow a program fifty times.
inline bool few_shapes = false;

// 80 random shapes in each dtype and a large one against the CPU; the large one 100 times with the same bits (not where
// the twins are equal anyway).
inline void check_twin(const Twin& twin, std::uint64_t seed, double scale = 1,
                       std::initializer_list<DType> dtypes = {DType::f32, DType::bf16, DType::f64}) {
  const std::uint64_t rounds = few_shapes ? 3 : 80;
  for (DType dtype : dtypes) {
    std::vector<Tensor> first;
    for (std::uint64_t round = 0; round <= rounds; ++round) {
      CAPTURE(name_of(dtype), round);
      const bool large = round == rounds;
      const auto cpu = run_twin(twin, Stream{}, dtype, seed, round, large);
      const auto gpu = run_twin(twin, gpu_stream(), dtype, seed, round, large);
      for (std::size_t i = 0; i < cpu.size(); ++i) {
        CAPTURE(i, cpu[i].shape().str());
        CHECK(near_twin(gpu[i], cpu[i], dtype, scale));
      }
      first = gpu;
    }
    if (few_shapes || scale == 0 || dtype == DType::f64) continue;
    CAPTURE(name_of(dtype));
    int different = 0;
    for (int again = 1; again < 100; ++again) {
      const auto now = run_twin(twin, gpu_stream(), dtype, seed, rounds, true);
      for (std::size_t i = 0; i < now.size(); ++i) different += !same_bits(now[i], first[i]);
    }
    CHECK(different == 0);
  }
}

inline void run_case(bool few, void (*body)()) {
  SIEVE_NEEDS_GPU();
  few_shapes = few;
  body();
}

// The function that follows makes two cases of check_twin(): over many shapes, and over a few, tagged [small].
#define SIEVE_TWIN_CASE(name) SIEVE_TWIN_CASE_OF(name, SIEVE_TWIN_NAME(__LINE__))
#define SIEVE_TWIN_NAME(line) SIEVE_TWIN_BODY(line)
#define SIEVE_TWIN_BODY(line) twin_case_of_line_##line
#define SIEVE_TWIN_CASE_OF(name, body)                                                         \
  static void body();                                                                          \
  TEST_CASE("GPU: " name, "[gpu]") { sieve::test::run_case(false, body); }                     \
  TEST_CASE("GPU, a few shapes: " name, "[gpu][small]") { sieve::test::run_case(true, body); } \
  static void body()

// Rows and features: often odd and small, sometimes the widths of models, sometimes many rows.
struct Matrix {
  std::int64_t R, D;
};
inline Matrix matrix(Draw& draw, bool large, std::int64_t widest = 4096) {
  if (large) return {300, 64};
  const double u = draw.uniform();
  if (few_shapes) widest = std::min<std::int64_t>(widest, 1024);
  if (u < 0.1) return {draw.integer(1000, few_shapes ? 1100 : 5000), draw.integer(1, 6) * 8};
  if (u < 0.3) return {draw.integer(1, 24), std::min<std::int64_t>(widest, 128 * draw.integer(1, widest / 128))};
  if (u < 0.5) return {draw.integer(1, 70), 8 * draw.integer(1, 60)};
  return {draw.extent(60), draw.extent(300)};
}

inline Extents extents_of(const Shape& s) {
  Extents e{};
  std::copy(s.begin(), s.end(), e.begin());
  return e;
}
inline Extents strides_of(const Tensor& t) {
  Extents e{};
  for (int axis = 0; axis < t.rank(); ++axis) e[idx(axis)] = t.stride(axis);
  return e;
}

}  // namespace sieve::test
