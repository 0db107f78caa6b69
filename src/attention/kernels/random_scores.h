// ABI of random scores (attention/random_scores.h). Letters: B batch, H score heads, T time.
#pragma once

#include <cstdint>

#include "core/rng.h"
#include "tensor/dispatch.h"

namespace sieve {

inline constexpr std::int64_t kNumberedTokens = 8;  // of a document, that it is known by

struct DocumentNumbersArgs : KernelArgs {
  const std::int32_t* tokens_BT = nullptr;
  const std::int32_t* document_starts_BT = nullptr;  // null: the row is one document, its first position is
  std::int64_t first_position = 0;                   // this one, and if that is not 0
  const std::int64_t* before_B = nullptr;            // the number of the position before it is here
  std::int64_t B = 0, T = 0;
  std::int64_t* out_BT = nullptr;
};

struct RandomScoresArgs : KernelArgs {
  const std::int64_t* numbers_BT = nullptr;          // of documents
  const std::int32_t* document_starts_BT = nullptr;  // as above
  std::int64_t first_position = 0;
  std::uint64_t seed = 0;
  std::int64_t B = 0, H = 0, T = 0;
  float* out_BHT = nullptr;
};

SIEVE_HD inline void fill_document_number(const DocumentNumbersArgs& a, std::int64_t at) {
  const std::int64_t t = at % a.T, b = at / a.T;
  const std::int64_t start = a.document_starts_BT != nullptr ? a.document_starts_BT[at] : 0;
  const std::int64_t left = kNumberedTokens - a.first_position;  // tokens of the row that still count
  auto number = static_cast<std::uint64_t>(a.before_B != nullptr ? a.before_B[b] : 0);
  for (std::int64_t j = start; j <= t && j - start < left; ++j)
    number = stream_of(number, static_cast<std::uint32_t>(a.tokens_BT[b * a.T + j]));
  a.out_BT[at] = static_cast<std::int64_t>(number);
}

// 24 bits: exact in fp32.
SIEVE_HD inline float random_score(std::uint64_t seed, std::int64_t document, std::int64_t head,
                                   std::int64_t position) {
  const Philox random{stream_of(seed, document), 0x72616e646f6dull + static_cast<std::uint64_t>(head)};
  return static_cast<float>(random(static_cast<std::uint64_t>(position))[0] >> 8) * 0x1p-24f;
}

SIEVE_HD inline void fill_random_score(const RandomScoresArgs& a, std::int64_t at) {
  const std::int64_t t = at % a.T, head = at / a.T % a.H, row = at / a.T / a.H * a.T + t;
  const std::int64_t start = a.document_starts_BT != nullptr ? a.document_starts_BT[row] : 0;
  a.out_BHT[at] = random_score(a.seed, a.numbers_BT[row], head, a.first_position + t - start);
}

namespace cpu {
void run(const DocumentNumbersArgs& a);
void run(const RandomScoresArgs& a);
}  // namespace cpu
namespace cuda {
void run(const DocumentNumbersArgs& a, Stream stream);
void run(const RandomScoresArgs& a, Stream stream);
}  // namespace cuda

}  // namespace sieve
