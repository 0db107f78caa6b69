// Tables that are computed once: whose they are, which of them stay, and what a graph may record.
#include "attention/keep.h"

#include <atomic>
#include <chrono>
#include <thread>

#include "attention/choose.h"
#include "attention/rotary.h"
#include "attention_cases.h"
#include "support/catch.h"
#include "support/compare.h"
#include "support/errors.h"
#include "support/gpu.h"

using namespace sieve;
using namespace sieve::test;

namespace {

// On the CPU a stream's handle does nothing but tell it from others.
struct TwoStreams {
  static inline int marks[2] = {};  // as long as the tables that are kept for them: a handle is never used again
  Stream a{{}, &marks[0]}, b{{}, &marks[1]};
};

// Of a test's own, so that no other test's table is found.
RopeSpec rope_of(double theta) {
  RopeSpec rope;
  rope.rotary_dims = 8, rope.theta = theta;
  return rope;
}

}  // namespace

TEST_CASE("a keep makes a value once a stream and drops the oldest of that stream alone") {
  const TwoStreams s;
  Keep<int, int> keep("test", 2);
  int made = 0;
  const auto get = [&](int key, const Stream& stream, int least = 0) {
    return keep.get(
        key, stream, [&](int value) { return value >= least; },
        [&] {
          ++made;
          return std::max(key * 10, least);
        });
  };
  CHECK(get(1, s.a) == 10);
  CHECK(get(1, s.a) == 10);
  CHECK(made == 1);
  CHECK(get(1, s.b) == 10);
  CHECK(made == 2);
  for (const int key : {2, 3, 4}) CHECK(get(key, s.b) == key * 10);
  CHECK(made == 5);
  CHECK(get(1, s.a) == 10);  // the other stream's have not driven it out
  CHECK(made == 5);
  CHECK(get(3, s.b) == 30);
  CHECK(get(4, s.b) == 40);
  CHECK(made == 5);
  CHECK(get(1, s.b) == 10);  // the oldest of its stream had to go
  CHECK(made == 6);
  CHECK(get(4, s.b, 70) == 70);  // in place of the one that does not fit, not of another one
  CHECK(get(1, s.b) == 10);
  CHECK(get(4, s.b) == 70);
  CHECK(made == 7);
}

TEST_CASE("a keep whose value could not be made still has the one that was to be replaced") {
  Keep<int, int> keep("test", 2);
  const auto any = [](int) { return true; };
  const auto none = [](int) { return false; };
  CHECK(keep.get(1, {}, any, [] { return 5; }) == 5);
  const auto no_memory = []() -> int { throw Error(Exit::memory, "none left"); };
  CHECK_THROWS_AS(keep.get(1, {}, none, no_memory), Error);
  CHECK(keep.get(1, {}, any, no_memory) == 5);
}

TEST_CASE("two threads that ask a keep for one table get the one that the first of them makes") {
  Keep<int, int> keep("test", 2);
  std::atomic<int> made = 0, asking = 0;
  const auto ask = [&] {
    ++asking;
    while (asking < 2) std::this_thread::yield();
    return keep.get(
        1, {}, [](int) { return true; },
        [&] {
          std::this_thread::sleep_for(std::chrono::milliseconds(50));
          return ++made;
        });
  };
  int there = 0;
  std::thread other([&] { there = ask(); });
  const int here = ask();
  other.join();
  CHECK(made == 1);
  CHECK(here == 1);
  CHECK(there == 1);
}

TEST_CASE("a keep that may keep nothing is an error") {
  using Small = Keep<int, int>;
  CHECK(error_text([] { Small("test", 0); }) == "[test] keeps at least one table of a stream");
}

TEST_CASE("a rotary table serves its own stream and has the same values on another") {
  const TwoStreams s;
  const RopeSpec rope = rope_of(1234);
  const RotaryTable a = rotary_table(rope, 100, DType::f32, s.a), again = rotary_table(rope, 90, DType::f32, s.a),
                    b = rotary_table(rope, 100, DType::f32, s.b);
  CHECK(again.cos.same_storage(a.cos));
  CHECK(!b.cos.same_storage(a.cos));
  CHECK(b.cos.stream().handle == s.b.handle);
  CHECK(same_bits(a.cos, b.cos));
  CHECK(same_bits(a.sin, b.sin));
  const RotaryTable longer = rotary_table(rope, 1000, DType::f32, s.a);
  CHECK(longer.cos.size(0) >= 1000);
  CHECK(same_bits(longer.cos.slice(0, 0, 100), a.cos.slice(0, 0, 100)));
  CHECK(rotary_table(rope, 100, DType::f32, s.a).cos.same_storage(longer.cos));
  CHECK(rotary_table(rope, 100, DType::f32, s.b).cos.same_storage(b.cos));
  CHECK(!rotary_table(rope, 100, DType::f64, s.b).cos.same_storage(b.cos));
}

TEST_CASE("GPU: tables of two streams are each written on their own", "[gpu]") {
  SIEVE_NEEDS_GPU();
  const Stream main = gpu_stream(), side = side_stream(main.device);
  Draw d(190, 0);
  AttentionSpec spec = make_spec(AttentionKind::hash, 4, 1, 64);
  spec.pattern.buckets = 32, spec.pattern.seed = 190;
  const Tensor q = d.normal({2, 300, 256}).to(DType::f32), buckets = hash_buckets(q, spec);
  const RotaryTable wanted = rotary_table(rope_of(4321), 5000, DType::f32, Stream{});
  for (const Stream& stream : {main, side}) {
    const RotaryTable got = rotary_table(rope_of(4321), 5000, DType::f32, stream);
    CHECK(got.cos.stream().handle == stream.handle);
    CHECK(max_difference(got.cos.to(Stream{}), wanted.cos) <= 1e-6);
    const Tensor found = hash_buckets(q.to(stream), spec).to(Stream{});
    CHECK(found.shape() == buckets.shape());
    std::int64_t differ = 0;  // two projections may round to the other order
    for (std::int64_t x = 0; x < found.numel(); ++x)
      differ += found.data<std::int32_t>()[x] != buckets.data<std::int32_t>()[x];
    CHECK(differ <= 1);
  }
}

TEST_CASE("GPU: a graph records what reads a kept table and refuses to make one", "[gpu]") {
  SIEVE_NEEDS_GPU();
  const Stream stream = gpu_stream();
  CHECK(!recording(stream));
  const RotaryTable table = rotary_table(rope_of(987), 200, DType::f32, stream);
  Tensor to = zeros(table.cos.shape(), DType::f32, stream);
  StreamGraph graph, refused;
  bool was_recording = false, same = false;
  graph.record(stream, [&] {
    was_recording = recording(stream);
    const RotaryTable found = rotary_table(rope_of(987), 150, DType::f32, stream);
    same = found.cos.same_storage(table.cos);
    copy_bytes(to.raw(), stream, found.cos.raw(), stream, to.nbytes());
  });
  CHECK(was_recording);
  CHECK(same);
  CHECK(!recording(stream));
  CHECK(max_abs(to.to(Stream{})) == 0);
  graph.launch(stream);
  CHECK(same_bits(to.to(Stream{}), table.cos.to(Stream{})));

  const auto make = [&] { rotary_table(rope_of(987), 100000, DType::f32, stream); };
  CHECK(contains(error_text([&] { refused.record(stream, make); }),
                 "[rotary table] a table is made at its first use, which must not be recorded in a graph"));
  CHECK(!recording(stream));
  CHECK(rotary_table(rope_of(987), 200, DType::f32, stream).cos.same_storage(table.cos));
  make();  // and is made where nothing is recorded
}
