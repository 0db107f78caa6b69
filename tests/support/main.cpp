// The entry point of every test program.
#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_session.hpp>
#else
#define CATCH_CONFIG_RUNNER
#include <catch2/catch.hpp>
#endif

#include <cstdio>

#include "support/gpu.h"

int main(int argc, char** argv) {
  const int result = Catch::Session().run(argc, argv);
  if (const int n = sieve::test::gpu_skips(); n > 0) std::printf("%d GPU cases skipped: no CUDA device\n", n);
  return result;
}
