// The rate that MFU is measured against.
#pragma once

#include "core/dtype.h"
#include "tensor/device.h"

namespace sieve {

// TFLOP/s of a large matrix product in this dtype where `stream` computes, the best of those done in about 0.1 s. On a
// busy machine it is too low; log.peak_tflops sets it.
double measure_peak_tflops(DType compute, const Stream& stream);

}  // namespace sieve
