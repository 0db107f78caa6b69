// Token ids that the tests of models share.
#pragma once

#include <cstdint>

#include "core/rng.h"
#include "tensor/tensor.h"

namespace sieve::test {

// (B, T) i32 on the host, below vocab.
inline Tensor random_tokens(std::int64_t B, std::int64_t T, std::int64_t vocab, std::uint64_t seed) {
  Tensor t = empty({B, T}, DType::i32);
  const Philox random{seed, 1};
  for (std::int64_t i = 0; i < t.numel(); ++i)
    t.data<std::int32_t>()[i] =
        static_cast<std::int32_t>(random.bits64(static_cast<std::uint64_t>(i)) % static_cast<std::uint64_t>(vocab));
  return t;
}

}  // namespace sieve::test
