// Times generation: a prefill of random tokens, then tokens one by one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/error.h"

namespace sieve {

struct BenchDecodeOptions {
  std::string config;  // a run configuration (random weights), or a checkpoint or run folder
  std::vector<std::string> overrides;
  std::int64_t batch = 1;           // sequences, of one prompt
  std::int64_t context = 1024;      // tokens before the first that is timed
  std::int64_t tokens = 512;        // timed, of each sequence; the likeliest each
  std::int64_t warmup = 64;         // tokens before, not timed
  std::int64_t vocab_size = 50257;  // where model.vocab_size is auto
  bool json = false;
};

// Prints microseconds a token (median and range over bursts of 64), tokens/s, key-value rows and bytes, and the
// allocator's peak while tokens came, of which a second line has the kernels of one more token.
Exit bench_decode(const BenchDecodeOptions& options);

}  // namespace sieve
