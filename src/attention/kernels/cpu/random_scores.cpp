#include "attention/kernels/random_scores.h"

#include "core/parallel_for.h"

namespace sieve::cpu {

void run(const DocumentNumbersArgs& a) {
  parallel_for(a.B * a.T, 65536, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t at = first; at < last; ++at) fill_document_number(a, at);
  });
}

void run(const RandomScoresArgs& a) {
  parallel_for(a.B * a.H * a.T, 65536, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t at = first; at < last; ++at) fill_random_score(a, at);
  });
}

}  // namespace sieve::cpu
