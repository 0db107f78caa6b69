// The plan of a pass on a GPU (kernels/softmax.h, DevicePlan) with the memory of its row lists. Letters: B batch, T
// time, Hs score heads.
#pragma once

#include "attention/kernels/softmax.h"
#include "attention/spec.h"
#include "tensor/tensor.h"

namespace sieve {

struct PlanOnDevice {
  DevicePlan view;
  Tensor tile_keys, tile_ends, chunk_keys, chunk_ends;
};

// from, to and band_from (B, Hs, T) are the selection's: from and to undefined where nothing is gathered, band_from
// where there are no thresholds; document_starts (B, T) or undefined. Lists of chunk_queries queries (a multiple of
// tile_queries) and of tile_queries. All of it happens on the stream: nothing is read back.
PlanOnDevice make_device_plan(const AttentionSpec& spec, std::int64_t B, std::int64_t T, const Tensor& document_starts,
                              const Tensor& from, const Tensor& to, const Tensor& band_from, const Stream& stream,
                              std::int64_t tile_queries = kQueryTile, std::int64_t chunk_queries = kRowListQueries);

}  // namespace sieve
