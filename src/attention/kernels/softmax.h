// The compute ABI of the softmax engine: one online softmax over whatever keys a tile plan visits, forward and
// backward. Rotary embedding happens inside, tile by tile, so that rotated queries and keys are never stored. Letters:
// B batch, T time, H query heads, Hkv key-value heads, Hs score heads (Hkv or 1), D head size, G = H / Hkv, F = (H + 2
// Hkv) D features of qkv, R = rotary_dims / 2. i is a query, j a key.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/spec.h"
#include "core/dtype.h"
#include "tensor/dispatch.h"

namespace sieve {

inline constexpr std::int64_t kQueryTile = 64;  // queries of a tile
inline constexpr std::int64_t kKeyBlock = 64;   // most keys of a block
inline constexpr int kMaxSpans = 4;             // span sources of a plan
inline constexpr std::uint8_t kGathered = 255;  // PlanBlock::source of a block of rows

// A gathered key and the queries of the tile that see it, [from, to) counted from the tile's first query.
struct PlanRow {
  std::int32_t key;
  std::uint8_t from, to;
};

// Up to kKeyBlock keys that a tile of queries visits together.
struct PlanBlock {
  std::int32_t first;   // first key, or first entry of `rows` if gathered
  std::uint8_t count;   // 1 .. kKeyBlock
  std::uint8_t source;  // span source 0 .. kMaxSpans - 1, or kGathered
  std::uint8_t masked;  // 1: some query of the tile does not see some key of the block
  std::uint8_t gated;   // 1: some pair may lie in the soft band: 0 < m < 1 and a gradient to the score
};

// What intervals cannot say (strides, hashes): bit x of the result tells whether query `query` of row b sees key
// first + x, x < count <= kKeyBlock. head: a key-value head. Looked at in masked blocks of spans only.
using PairBits = std::uint64_t (*)(const void* context, std::int64_t b, std::int64_t head, std::int64_t query,
                                   std::int64_t first, int count);

// What every tile visits. Tile t of plan (b, h) has the blocks tile_first[p * tiles + t] .. tile_first[p * tiles + t +
// 1] - 1, p = (batch_plans == 1 ? 0 : b) * head_plans + (head_plans == 1 ? 0 : h), h a key-value head. A pair (i, j)
// may occur once.
struct PlanView {
  const PlanBlock* blocks = nullptr;
  const std::int64_t* tile_first = nullptr;
  const PlanRow* rows = nullptr;
  const std::int32_t* span_begin[kMaxSpans] = {};  // (batch_plans, T): in source s, query i sees the keys
  const std::int32_t* span_end[kMaxSpans] = {};    // span_begin[s][i] <= j < span_end[s][i]
  std::int64_t tiles = 0, batch_plans = 1, head_plans = 1;
  PairBits pair_bits = nullptr;
  const void* pair_context = nullptr;
};

// What a GPU visits instead of a PlanView: it computes the spans from `window` and `sinks` as spans.h does, and gathers
// the rows of lists that kernels fill, so that no array crosses to the host.
//
// The rows of a list: keys that some query of [list * queries, (list + 1) * queries), those of the sequence, sees as
// selected. Three runs follow each other, keys ascending inside each (RowRun): a kernel can leave masks out of the
// first two and gates out of the first.
struct RowLists {
  std::int32_t* keys = nullptr;  // (B, Hs, lists, capacity)
  std::int32_t* ends = nullptr;  // (B, Hs, lists, kRowRuns): where each run ends; the last one is the list's count
  std::int64_t queries = 0, lists = 0, capacity = 0;
};
enum RowRun : int {
  kSteadyRows = 0,   // every query of the list sees the key, with m = 1 (without thresholds: as kWholeRows)
  kWholeRows = 1,    // every query of the list sees the key
  kPartialRows = 2,  // some query does
};
inline constexpr int kRowRuns = 3;
inline constexpr std::int64_t kRowListQueries = 512;  // of the lists that dK and dV are summed over
// The same of the engine of kernels/cuda/hopper: 64 queries for every warpgroup whose sums fit the registers.
constexpr std::int64_t warpgroup_tile_queries(std::int64_t D) { return D == 64 ? 192 : 128; }
// A key leaves a partial sum in every chunk that sees it: long rows, which have blocks enough for every multiprocessor
// all the same, take chunks twice as long.
constexpr std::int64_t warpgroup_chunk_queries(std::int64_t T) { return T >= 32768 ? 1536 : 768; }
// At most k members at the first query and one newcomer at each later one.
constexpr std::int64_t row_list_capacity(std::int64_t T, std::int64_t k, std::int64_t queries) {
  return k >= T || k + queries - 1 > T ? T : k + queries - 1;
}
struct DevicePlan {
  const std::int32_t* document_starts_BT = nullptr;  // null: one document a row
  std::int64_t window = 0;                           // 0: every earlier key of the document
  std::int64_t sinks = 0;
  // Gathered rows: key j is seen by the queries from <= i < to with i >= j + window, (B, Hs, T). Null: none.
  const std::int32_t* from_BHT = nullptr;
  const std::int32_t* to_BHT = nullptr;
  const std::int32_t* band_from_BHT = nullptr;  // m = 1 for i < band_from (kernels/select.h); null: no thresholds
  std::int64_t heads = 0;                       // Hs
  bool warpgroups = false;                      // by the engine of kernels/cuda/hopper, for which lists are cut so
  RowLists tiles;                               // of the queries that a block of the forward pass works on
  RowLists chunks;                              // of a multiple of them; dK and dV are summed over these
};
// Fills plan.tiles and plan.chunks. Working memory: 16 bytes a key and row.
struct RowListArgs : KernelArgs {
  DevicePlan plan;
  std::int64_t B = 0, T = 0;
};

// Soft weights of gathered keys: m_ij = 1 while i < band_from_j, else clip(z_j - tau_i, 0, 1); z null: m = 1
// everywhere. Keys of spans have m = 1. Pointers are (B, Hs, T), see kernels/select.h.
struct GateView {
  GateMode mode = GateMode::hard;
  std::int64_t heads = 0;  // Hs
  const double* z = nullptr;
  const double* tau = nullptr;
  const std::int32_t* band_from = nullptr;
  const std::int32_t* band_to = nullptr;
};

// cos and sin (positions, R) in the compute dtype, rotate-half layout; rotary_dims = 0: no rotation. Gathered keys at a
// distance above far_distance are scored with the query rotated at position far_distance and the key not rotated (needs
// positions > far_distance); -1: every key at its own position. Distance 0 is the smallest far_distance: "not rotated
// at all".
struct RotaryView {
  const void* cos = nullptr;
  const void* sin = nullptr;
  std::int64_t rotary_dims = 0;
  std::int64_t far_distance = -1;
};

// out_BTHD = softmax over the plan's keys; statistics_BHT (compute dtype, may be null) = log2 of the softmax's
// denominator with logits in units of log 2. A query that sees nothing gives 0 (and +infinity-like statistics that make
// its weights 0).
struct SoftmaxForwardArgs : KernelArgs {
  const void* qkv_BTF = nullptr;
  void* out_BTHD = nullptr;
  void* statistics_BHT = nullptr;
  std::int64_t B = 0, T = 0, H = 0, Hkv = 0, D = 0;
  double scale = 1;
  DType dtype = DType::f32;
  PlanView plan;           // CPU
  DevicePlan device_plan;  // GPU
  GateView gate;
  RotaryView rotary;
  void* workspace = nullptr;  // scratch of workspace_bytes() of this pass, 64-byte aligned
};

// dqkv_BTF, all of it, in `dtype`. For the scores (null: not wanted; needs gate.z): with g_ij = dL/dm_ij of gathered
// pairs that lie in the band, column = sum over queries and heads of the group, row = sum over keys, fp64, (B, Hs, T).
struct SoftmaxBackwardArgs : KernelArgs {
  SoftmaxForwardArgs forward;  // out and statistics as forward left them
  const void* dout_BTHD = nullptr;
  void* dqkv_BTF = nullptr;
  double* column_BHT = nullptr;
  double* row_BHT = nullptr;
};

// cos and sin of position * theta^(-2 r / rotary_dims), angles in fp64, stored in dtype (f32 or f64). (positions, R)
// each.
struct RotaryTableArgs : KernelArgs {
  void* cos = nullptr;
  void* sin = nullptr;
  std::int64_t positions = 0, rotary_dims = 0;
  double theta = 10000;
  DType dtype = DType::f32;
};

// Everything but `workspace` and the results must be set; on the CPU the answer also depends on num_threads().
namespace cpu {
std::size_t workspace_bytes(const SoftmaxForwardArgs& a);
std::size_t workspace_bytes(const SoftmaxBackwardArgs& a);
void run(const SoftmaxForwardArgs& a);
void run(const SoftmaxBackwardArgs& a);
void run(const RotaryTableArgs& a);
}  // namespace cpu
namespace cuda {
std::size_t workspace_bytes(const SoftmaxForwardArgs& a, Stream stream);
std::size_t workspace_bytes(const SoftmaxBackwardArgs& a, Stream stream);
void run(const RowListArgs& a, Stream stream);
void run(const SoftmaxForwardArgs& a, Stream stream);
void run(const SoftmaxBackwardArgs& a, Stream stream);
void run(const RotaryTableArgs& a, Stream stream);
}  // namespace cuda

}  // namespace sieve
