// The second stage of sums that run in two: S rows of partial sums become one. The order is fixed, so results are.
#pragma once

#include <cstdint>

#include "tensor/device.h"

namespace sieve::cuda {

// out_N = sum over the S rows of partial_SN, plus the old out_N if `accumulate`.
void add_partials(const float* partial_SN, std::int64_t S, std::int64_t N, float* out_N, bool accumulate,
                  const Stream& stream);
void add_partials(const double* partial_SN, std::int64_t S, std::int64_t N, double* out_N, bool accumulate,
                  const Stream& stream);

}  // namespace sieve::cuda
