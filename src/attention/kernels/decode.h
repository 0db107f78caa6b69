// The compute ABI of one generation step: one query per head against the rows of a cache (attention/decode.h), and how
// rows get there.
// Letters: B batch, H query heads, Hkv key-value heads, Hs score heads (Hkv or 1), D head size, F = (H + 2 Hkv) D,
// R = rotary_dims / 2.
#pragma once

#include <cstdint>

#include "attention/spec.h"
#include "core/dtype.h"
#include "tensor/dispatch.h"

namespace sieve {

// A selected row that the query sees.
struct CachedSlot {
  std::int32_t row;       // of the cache
  std::int32_t distance;  // query position - key position, at most far_distance + 1 (beyond it all are the same)
  double gate;            // m
};

// out (b, h) = softmax over rows [0, plain_rows) with m = 1 and over the slots of the selection head, 0 where there are
// none. Keys are either
// rotated at their own positions (distances null: the query is rotated at its own), or not rotated at all: then row r
// of the plain ones lies at distance (position - r) mod ring and is rotated by it, slots by theirs, those beyond
// far_distance by far_distance.
struct DecodeArgs : KernelArgs {
  const void* qkv_BF = nullptr;  // the new token, not rotated
  std::int64_t qkv_stride = 0;   // elements from one batch row to the next
  void* out_BHD = nullptr;
  std::int64_t out_stride = 0;
  const void* keys_BKCD = nullptr;  // (B, Hkv, capacity, D)
  const void* values_BKCD = nullptr;
  std::int64_t capacity = 0, plain_rows = 0;
  const CachedSlot* slots = nullptr;         // (B, Hs, slot_stride), null: none
  const std::int64_t* slot_count = nullptr;  // (B, Hs)
  std::int64_t slot_stride = 0, Hs = 1;
  std::int64_t B = 0, H = 0, Hkv = 0, D = 0;
  double scale = 1;
  GateMode gate = GateMode::hard;
  DType dtype = DType::f32;  // of qkv, out, keys and values
  // Rotation, in the compute dtype; rotary_dims = 0: none.
  std::int64_t rotary_dims = 0;
  const void* query_cos = nullptr;  // (R) at the query's position, if keys are rotated
  const void* query_sin = nullptr;
  const void* distance_cos = nullptr;  // (distances, R), if they are not
  const void* distance_sin = nullptr;
  std::int64_t position = 0, ring = 0, far_distance = 0;
};

// Row `to` of (b, kv) becomes key and value of token `from` of qkv, or, where from < 0, row -1 - from. The moves of one
// launch may run in any order: none reads what another writes, and no row is written twice.
struct CacheMove {
  std::int32_t b, kv, from, to;
};
struct CacheStoreArgs : KernelArgs {
  const void* qkv_BNF = nullptr;  // N new tokens, not rotated
  void* keys_BKCD = nullptr;
  void* values_BKCD = nullptr;
  const CacheMove* moves = nullptr;
  std::int64_t count = 0, N = 0, H = 0, Hkv = 0, D = 0, capacity = 0;
  DType dtype = DType::f32;
  std::int64_t rotary_dims = 0;  // of keys that are stored rotated; 0: as they come
  const void* cos_NR = nullptr;  // of the tokens, in the compute dtype
  const void* sin_NR = nullptr;
};

namespace cpu {
void run(const DecodeArgs& a);
void run(const CacheStoreArgs& a);
}  // namespace cpu
namespace cuda {
void run(const DecodeArgs& a, Stream stream);
void run(const CacheStoreArgs& a, Stream stream);
}  // namespace cuda

}  // namespace sieve
