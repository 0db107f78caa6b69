// When SparseK drops each key for good: a counting sort by the exits.
#include <algorithm>
#include <vector>

#include "attention/kernels/linear.h"
#include "core/parallel_for.h"

namespace sieve::cpu {
namespace {

void exits_of_row(const KeyExitArgs& a, std::int64_t row) {
  const std::int64_t T = a.T;
  const std::int32_t *from = a.from_BHT + row * T, *to = a.to_BHT + row * T,
                     *starts = a.document_starts_BT != nullptr ? a.document_starts_BT + row / a.H * T : nullptr;
  std::int32_t *first = a.first_BHT + row * (T + 1), *keys = a.keys_BHT + row * T;
  std::fill_n(first, T + 1, 0);
  std::vector<std::int64_t> exit(static_cast<std::size_t>(T));
  std::int64_t document_end = T;
  for (std::int64_t j = T - 1; j >= 0; --j) {
    std::int64_t& e = exit[static_cast<std::size_t>(j)];
    e = std::max<std::int64_t>(j + a.window, from[j] < to[j] ? to[j] : 0);
    if (e >= document_end) e = T;  // never
    else ++first[e + 1];
    if (starts != nullptr && starts[j] == j) document_end = j;
  }
  for (std::int64_t i = 0; i < T; ++i) first[i + 1] += first[i];
  std::vector<std::int32_t> place(first, first + T);
  for (std::int64_t j = 0; j < T; ++j) {
    const std::int64_t e = exit[static_cast<std::size_t>(j)];
    if (e < T) keys[place[static_cast<std::size_t>(e)]++] = static_cast<std::int32_t>(j);
  }
}

}  // namespace

void run(const KeyExitArgs& a) {
  parallel_for(a.B * a.H, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) exits_of_row(a, row);
  });
}

}  // namespace sieve::cpu
