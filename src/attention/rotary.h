// cos and sin of rotary embeddings (Su et al. 2021, arXiv 2104.09864), computed once and kept.
#pragma once

#include "attention/spec.h"
#include "tensor/tensor.h"

namespace sieve {

// (positions, rotary_dims / 2) each, fp32 or fp64; `positions` is at least what was asked for. Undefined without
// rotation.
struct RotaryTable {
  Tensor cos, sin;
};

// Tables of the last few (spec, dtype) of every stream are kept and grow by doubling (keep.h, also about graphs): for
// work of this stream alone. Thread-safe.
RotaryTable rotary_table(const RopeSpec& rope, std::int64_t positions, DType dtype, const Stream& stream);

}  // namespace sieve
