// The plan of a pass on a GPU (kernels/softmax.h, DevicePlan) with the memory of its row lists. Letters: B batch, T
// time, Hs score heads.
#pragma once

#include "attention/kernels/softmax.h"
#include "attention/spec.h"
#include "tensor/tensor.h"

namespace sieve {

struct PlanOnDevice {
  DevicePlan view;
  Tensor tile_keys, tile_counts, chunk_keys, chunk_counts;
};

// from and to (B, Hs, T) are the selection's, undefined where nothing is gathered; document_starts (B, T) or undefined.
// All of it happens on the stream: nothing is read back.
PlanOnDevice make_device_plan(const AttentionSpec& spec, std::int64_t B, std::int64_t T, const Tensor& document_starts,
                              const Tensor& from, const Tensor& to, const Stream& stream);

}  // namespace sieve
