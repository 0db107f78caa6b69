// The documents that a row of tokens packs.
#pragma once

#include <cstdint>

#include "core/error.h"

namespace sieve::cpu {

// f(begin, end) for every document of batch row b.
template <class F>
void for_each_document(const std::int32_t* starts_BT, std::int64_t b, std::int64_t T, F f) {
  const std::int32_t* starts = starts_BT == nullptr ? nullptr : starts_BT + b * T;
  for (std::int64_t begin = 0; begin < T;) {
    std::int64_t end = T;
    if (starts != nullptr) {
      require(starts[begin] == begin, "sparsek", "token ", begin, " begins a document but names ", starts[begin],
              " as its start");
      end = begin + 1;
      while (end < T && starts[end] == starts[begin]) ++end;
    }
    f(begin, end);
    begin = end;
  }
}

}  // namespace sieve::cpu
