// src/core: number formats, random numbers, checked shapes, parallel loops, errors.
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "core/dtype.h"
#include "core/error.h"
#include "core/log.h"
#include "core/parallel_for.h"
#include "core/rng.h"
#include "core/shape.h"
#include "support/catch.h"
#include "support/errors.h"

using namespace sieve;
using sieve::test::error_text;

namespace {

struct Threads {
  explicit Threads(int n) : before(num_threads()) { set_num_threads(n); }
  ~Threads() { set_num_threads(before); }
  int before;
};

// Rounds to the nearest multiple of the bf16 spacing in exact fp64 arithmetic, ties to even: shares nothing with the
// bit trick.
double naive_bf16(float value) {
  if (value == 0 || std::isinf(value)) return value;
  int exponent = 0;
  std::frexp(value, &exponent);  // value in [0.5, 1) * 2^exponent
  const double spacing = std::ldexp(1.0, std::max(exponent - 8, -133));
  const double rounded = std::nearbyint(value / spacing) * spacing;  // the default mode rounds ties to even
  return std::abs(rounded) >= std::ldexp(1.0, 128) ? std::copysign(std::numeric_limits<double>::infinity(), value)
                                                   : rounded;
}

}  // namespace

TEST_CASE("bf16 holds every one of its values and rounds all others to the nearest, ties to even") {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const bf16 b = std::bit_cast<bf16>(static_cast<std::uint16_t>(bits));
    const float value = static_cast<float>(b);
    if (std::isnan(value)) {
      REQUIRE(std::isnan(static_cast<float>(bf16(value))));
    } else {
      REQUIRE(bf16(value).bits == b.bits);
    }
  }
  // All lower halves that decide a rounding, on upper halves over all exponents, signs and both parities.
  std::vector<std::uint32_t> lower{0, 1, 0x7ffe, 0x7fff, 0x8000, 0x8001, 0xffff, 0x4000, 0xc000};
  std::int64_t wrong = 0;
  for (std::uint32_t upper = 0; upper < 65536; ++upper) {
    for (std::uint32_t low : lower) {
      const float value = std::bit_cast<float>(upper << 16 | low);
      const float got = static_cast<float>(bf16(value));
      wrong += std::isnan(value) ? !std::isnan(got) : static_cast<double>(got) != naive_bf16(value);
    }
  }
  CHECK(wrong == 0);
  CHECK(std::signbit(static_cast<float>(bf16(-0.f))));
}

TEST_CASE("dtypes know their size, name and compute type") {
  CHECK(size_of(DType::bf16) == 2);
  CHECK(size_of(DType::i64) == 8);
  CHECK(compute_dtype(DType::bf16) == DType::f32);
  CHECK(compute_dtype(DType::f64) == DType::f64);
  CHECK(dtype_of<bf16> == DType::bf16);
  const std::string text = error_text([] { dispatch_float(DType::i32, "norm", []<class T>() {}); });
  CHECK(text == "[norm] wants a float dtype, got i32");
}

TEST_CASE("Philox 4x32-10 gives the published words") {
  // Known answers of the Random123 library (kat_vectors): counter words, key words, result.
  struct Known {
    std::uint64_t counter, stream, seed;
    std::array<std::uint32_t, 4> words;
  };
  const std::uint64_t ones = ~std::uint64_t{0};
  const std::vector<Known> known{
      {0, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {ones, ones, ones, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {0x85a308d3243f6a88, 0x0370734413198a2e, 0x299f31d0a4093822, {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
  };
  for (const Known& k : known) CHECK(Philox{k.seed, k.stream}(k.counter) == k.words);
}

TEST_CASE("random numbers have the moments of their distributions and streams differ") {
  const Philox a{1, stream_of(1, 2)}, b{1, stream_of(2, 1)};
  CHECK(stream_of(1, 2) != stream_of(2, 1));
  const int n = 100000;
  double sum = 0, square = 0, fourth = 0, uniform = 0, lowest = 1, highest = 0, both = 0;
  for (int i = 0; i < n; ++i) {
    const auto counter = static_cast<std::uint64_t>(i);
    const double x = a.normal(counter), u = a.uniform(counter);
    sum += x;
    square += x * x;
    fourth += x * x * x * x;
    both += x * b.normal(counter);
    uniform += u;
    lowest = std::min(lowest, u);
    highest = std::max(highest, u);
  }
  // Five standard errors of each mean.
  const double root = std::sqrt(static_cast<double>(n));
  CHECK(std::abs(sum / n) < 5 / root);
  CHECK(std::abs(square / n - 1) < 5 * std::sqrt(2) / root);
  CHECK(std::abs(fourth / n - 3) < 5 * std::sqrt(96) / root);
  CHECK(std::abs(both / n) < 5 / root);
  CHECK(std::abs(uniform / n - 0.5) < 5 * std::sqrt(1 / 12.0) / root);
  CHECK(lowest >= 0);
  CHECK(highest < 1);
}

TEST_CASE("shapes check their extents and their products") {
  const Shape s{2, 3, 4};
  CHECK(s.numel() == 24);
  CHECK(s[-1] == 4);
  CHECK(Shape{}.numel() == 1);
  CHECK(Shape{0, 5}.numel() == 0);
  CHECK(s.str() == "(2, 3, 4)");
  CHECK(s == Shape{2, 3, 4});
  CHECK_FALSE(s == Shape{2, 3});
  CHECK(error_text([&] { (void)s[3]; }) == "[shape] axis 3 of (2, 3, 4)");
  CHECK(error_text([] { (void)Shape{2, -1}; }) == "[shape] negative extent -1");
  const std::int64_t big = std::int64_t{1} << 40;
  CHECK(error_text([=] {
          (void)Shape{big, big};
        }).find("size overflows: 1099511627776 x 1099511627776") != std::string::npos);
  CHECK(error_text([] { (void)Shape{1, 1, 1, 1, 1, 1, 1}; }) == "[shape] rank 7 exceeds 6");
  CHECK(checked_product(std::int64_t{1} << 31, std::int64_t{1} << 31, "x") == std::int64_t{1} << 62);
  CHECK_THROWS_AS(checked_product(std::int64_t{1} << 32, std::int64_t{1} << 31, "x"), Error);
  CHECK_THROWS_AS(checked_product(-1, 1, "x"), Error);
}

TEST_CASE("errors carry subject, text and exit code") {
  try {
    fail(Exit::data, "hdf5", "truncated: ", 3, " of ", 8, " bytes");
  } catch (const Error& e) {
    CHECK(std::string(e.what()) == "[hdf5] truncated: 3 of 8 bytes");
    CHECK(e.code() == Exit::data);
  }
  CHECK_THROWS_AS(require(false, "x", "y"), Error);
  CHECK_NOTHROW(require(true, "x", "y"));
}

TEST_CASE("parallel_for visits every index once, whatever the number of threads") {
  for (int threads : {1, 2, 3, 4, 7}) {
    const Threads guard(threads);
    for (std::int64_t n : {0, 1, 2, 5, 100, 1001}) {
      for (std::int64_t grain : {1, 3, 1000}) {
        std::vector<std::atomic<int>> visits(static_cast<std::size_t>(n));
        std::atomic<int> pieces = 0;
        parallel_for(n, grain, [&](std::int64_t begin, std::int64_t end) {
          ++pieces;
          for (std::int64_t i = begin; i < end; ++i) ++visits[static_cast<std::size_t>(i)];
        });
        CAPTURE(threads, n, grain);
        CHECK(std::all_of(visits.begin(), visits.end(), [](const auto& v) { return v == 1; }));
        CHECK(pieces <= threads);
        if (n > 0 && n / grain >= threads) CHECK(pieces == threads);
      }
    }
  }
}

TEST_CASE("parallel_for runs on several threads at once") {
  const Threads guard(2);
  // Each half waits for the other: this ends only if both run at the same time.
  std::atomic<int> arrived = 0;
  parallel_for(2, 1, [&](std::int64_t, std::int64_t) {
    ++arrived;
    while (arrived < 2) std::this_thread::yield();
  });
  CHECK(arrived == 2);
}

TEST_CASE("parallel_for hands exceptions to the caller, the first one by index, and stays usable") {
  for (int threads : {1, 2, 4}) {
    const Threads guard(threads);
    const std::string text = error_text([] {
      parallel_for(4, 1, [](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i)
          if (i % 2 == 1) fail(Exit::data, "loop", "index ", i);
      });
    });
    CHECK(text == "[loop] index 1");
    std::atomic<std::int64_t> sum = 0;
    parallel_for(10, 1, [&](std::int64_t begin, std::int64_t end) { sum += end - begin; });
    CHECK(sum == 10);
    CHECK_FALSE(in_parallel_region());
  }
}

TEST_CASE("nested parallel_for runs in the calling thread") {
  const Threads guard(4);
  std::atomic<int> moved = 0, inner = 0, outside = 0;
  parallel_for(4, 1, [&](std::int64_t, std::int64_t) {
    outside += !in_parallel_region();
    const auto self = std::this_thread::get_id();
    parallel_for(8, 1, [&](std::int64_t begin, std::int64_t end) {
      moved += std::this_thread::get_id() != self;
      inner += static_cast<int>(end - begin);
    });
    outside += !in_parallel_region();  // still inside after the nested loop
  });
  CHECK(inner == 32);
  CHECK(moved == 0);
  CHECK(outside == 0);
}

TEST_CASE("the number of threads is at least one") {
  CHECK(error_text([] { set_num_threads(0); }) == "[threads] must be at least 1, got 0");
  CHECK(num_threads() >= 1);
}

TEST_CASE("log files hold every line with time and level, whatever the terminal shows") {
  const auto path = std::filesystem::temp_directory_path() / ("sieve_log_test_" + std::to_string(getpid()) + ".log");
  std::filesystem::remove(path);
  log_init(0, LogLevel::off);  // the terminal stays quiet
  open_log_file(path.string());
  log_debug("d ", 1);
  log_info("braces {} and % stay");
  log_warn("w ", 2.5);
  log_error("e");
  log_flush();
  log_init(0, LogLevel::info);  // closes the file
  log_line(LogLevel::debug, "not to the file");
  std::ifstream file(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  std::filesystem::remove(path);
  REQUIRE(lines.size() == 4);
  CHECK(lines[0].ends_with(" debug d 1"));
  CHECK(lines[1].ends_with(" info braces {} and % stay"));
  CHECK(lines[2].ends_with(" warning w 2.5"));
  CHECK(lines[3].ends_with(" error e"));
  CHECK(lines[0].substr(4, 1) == "-");  // a date in front
  CHECK(lines[0].substr(10, 1) == "T");
}

TEST_CASE("log levels are parsed strictly") {
  CHECK(parse_log_level("warn") == LogLevel::warn);
  CHECK(parse_log_level("off") == LogLevel::off);
  CHECK(error_text([] { (void)parse_log_level("Warn"); }) ==
        "[log] unknown level \"Warn\" (debug, info, warn, error, off)");
}
