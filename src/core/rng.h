// Counter-based random numbers: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
// Nothing here has state: every number is a function of (seed, stream, counter), the same on host and device, in any
// order and on any number of ranks. Streams keep purposes apart (initialisation, sampling, data order, ...).
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

#include "core/dtype.h"

namespace sieve {

struct Philox {
  std::uint64_t seed;
  std::uint64_t stream;

  // Four 32-bit words for one 64-bit counter.
  SIEVE_HD std::array<std::uint32_t, 4> operator()(std::uint64_t counter) const {
    std::uint32_t c0 = static_cast<std::uint32_t>(counter), c1 = static_cast<std::uint32_t>(counter >> 32);
    std::uint32_t c2 = static_cast<std::uint32_t>(stream), c3 = static_cast<std::uint32_t>(stream >> 32);
    std::uint32_t k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      const std::uint64_t p0 = 0xD2511F53ull * c0, p1 = 0xCD9E8D57ull * c2;
      const std::uint32_t n0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1 ^ k0;
      const std::uint32_t n2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3 ^ k1;
      c1 = static_cast<std::uint32_t>(p1);
      c3 = static_cast<std::uint32_t>(p0);
      c0 = n0;
      c2 = n2;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    return {c0, c1, c2, c3};
  }

  SIEVE_HD std::uint64_t bits64(std::uint64_t counter) const {
    auto w = (*this)(counter);
    return (static_cast<std::uint64_t>(w[0]) << 32) | w[1];
  }
  // [0, 1) with 53 bits.
  SIEVE_HD double uniform(std::uint64_t counter) const { return static_cast<double>(bits64(counter) >> 11) * 0x1p-53; }
  // Standard normal by Box-Muller; one value per counter.
  SIEVE_HD double normal(std::uint64_t counter) const {
    auto w = (*this)(counter);
    const double u1 = (static_cast<double>(w[0]) + 1.0) * 0x1p-32;  // (0, 1]
    const double u2 = static_cast<double>(w[1]) * 0x1p-32;
    return std::sqrt(-2.0 * std::log(u1)) * std::cos(6.283185307179586 * u2);
  }
};

// A stream number from a few coordinates (purpose, step, layer, ...): mixed by splitmix64, order matters.
template <class... Coordinates>
SIEVE_HD std::uint64_t stream_of(Coordinates... coordinates) {
  std::uint64_t h = 0x9E3779B97F4A7C15ull;
  auto mix = [&h](std::uint64_t v) {
    h ^= v + 0x9E3779B97F4A7C15ull + (h << 6) + (h >> 2);
    h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9ull;
    h = (h ^ (h >> 27)) * 0x94D049BB133111EBull;
    h ^= h >> 31;
  };
  (mix(static_cast<std::uint64_t>(coordinates)), ...);
  return h;
}

}  // namespace sieve
