// The arithmetic rate that utilisation is measured against.
#pragma once

#include "core/dtype.h"

namespace sieve {

// TFLOP/s of a square matrix product (1024^3) of this type on the threads given: the best within 0.1 s. What the
// library and this machine reach, not a data sheet.
double measure_peak_tflops(DType compute);

}  // namespace sieve
