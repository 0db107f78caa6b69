// Which failures to build a plan are remembered.
#include "attention/kernels/cuda/build_once.h"

#include "support/catch.h"

using namespace sieve::cuda;

TEST_CASE("a plan that was built or has no kernel is asked for once") {
  for (const bool supported : {true, false}) {
    BuildOnce once;
    int builds = 0;
    for (int call = 0; call < 3; ++call) {
      const auto refusal = once([&]() -> std::optional<Refusal> {
        ++builds;
        if (supported) return std::nullopt;
        return Refusal{"no kernel", true};
      });
      CHECK(refusal.has_value() == !supported);
    }
    CHECK(builds == 1);
  }
}

TEST_CASE("a plan that found no memory is tried again and not for ever") {
  BuildOnce passes, never;
  int builds = 0;
  const auto room_at = [&](int attempt) {
    return [&builds, attempt]() -> std::optional<Refusal> {
      if (++builds == attempt) return std::nullopt;
      return Refusal{"no memory", false};
    };
  };
  const auto first = passes(room_at(2));
  REQUIRE(first.has_value());
  CHECK(!first->lasting);
  CHECK(!passes(room_at(2)).has_value());
  CHECK(!passes(room_at(2)).has_value());
  CHECK(builds == 2);

  builds = 0;
  for (int call = 1; call <= 6; ++call) {
    const auto refusal = never(room_at(-1));
    REQUIRE(refusal.has_value());
    CHECK(refusal->lasting == (call >= BuildOnce::kAttempts));
  }
  CHECK(builds == BuildOnce::kAttempts);
}

TEST_CASE("a library that speaks of memory does not mean the shape") {
  CHECK(speaks_of_memory("finalize failed with code CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"));
  CHECK(speaks_of_memory("CUDNN_STATUS_ALLOC_FAILED"));
  CHECK(speaks_of_memory("cudaMalloc: out of memory"));
  CHECK(!speaks_of_memory("CUDNN_STATUS_NOT_SUPPORTED: head size above 256"));
}
