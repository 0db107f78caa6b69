// ABI of random scores (attention/random_scores.h). Letters: B batch, H score heads, T time.
#pragma once

#include <cstdint>

#include "core/rng.h"
#include "tensor/dispatch.h"

namespace sieve {

struct RandomScoresArgs : KernelArgs {
  const std::int32_t* document_starts_BT = nullptr;  // null: the row is one document, its first position is
  std::int64_t first_position = 0;                   // this one
  std::uint64_t seed = 0;
  std::int64_t B = 0, H = 0, T = 0;
  float* out_BHT = nullptr;
};

// 24 bits: exact in fp32.
SIEVE_HD inline float random_score(std::uint64_t seed, std::int64_t head, std::int64_t position) {
  const Philox random{seed, 0x72616e646f6dull + static_cast<std::uint64_t>(head)};
  return static_cast<float>(random(static_cast<std::uint64_t>(position))[0] >> 8) * 0x1p-24f;
}

SIEVE_HD inline void fill_random_score(const RandomScoresArgs& a, std::int64_t at) {
  const std::int64_t t = at % a.T, head = at / a.T % a.H, b = at / a.T / a.H;
  const std::int64_t start = a.document_starts_BT != nullptr ? a.document_starts_BT[b * a.T + t] : 0;
  a.out_BHT[at] = random_score(a.seed, head, a.first_position + t - start);
}

namespace cpu {
void run(const RandomScoresArgs& a);
}  // namespace cpu
namespace cuda {
void run(const RandomScoresArgs& a, Stream stream);
}  // namespace cuda

}  // namespace sieve
