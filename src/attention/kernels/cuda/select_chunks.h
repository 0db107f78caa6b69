// Selection by chunks: every chunk of 512 candidates is sorted; the best scores before each chunk, its base, follow
// from the sorted chunks; then every chunk settles its own members, pool and thresholds out of its base and its keys,
// all chunks at once. Letters as in kernels/select.h; P is the number of scores that a base keeps.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/kernels/select.h"

namespace sieve::cuda {

inline constexpr int kChunk = 512;               // keys
inline constexpr std::int64_t kMostBase = 8192;  // a base lies in a block's shared memory, twice, beside a chunk
constexpr std::int64_t base_bytes(std::int64_t P) { return (2 * P + kChunk) * (8 + 4); }  // that: scores and keys

struct Chunks {
  SelectArgs a;
  const std::int32_t* ends_BT = nullptr;  // end of each position's document; null: one document a row
  std::int64_t rows = 0, chunks = 0;      // chunks of a row
  std::int64_t P = 0;                     // the pool, or k without thresholds; at most T
  // (rows, chunks, kChunk): the chunk's candidates, best first, and their places in the chunk.
  double* sorted = nullptr;
  std::uint16_t* places = nullptr;
  std::int32_t* candidates = nullptr;  // (rows, chunks)
  // What a step works on: the chunks [first, first + count) of every row, with their bases, best first. The base of the
  // chunk after them lies in slot `slab`.
  double* base = nullptr;                       // (rows, slab + 1, P)
  std::int32_t* base_keys = nullptr;            // (rows, slab + 1, P)
  std::int32_t* base_counts = nullptr;          // (rows, slab + 1)
  std::int64_t first = 0, count = 0, slab = 0;  // count <= slab
  std::int32_t* left_pool = nullptr;            // (rows, T): the key, counted in its document, that pushed this one out
  double* last_tau = nullptr;                   // (rows, chunks): of the query that the chunk's last key enters at
  double* settled_tau = nullptr;                // (rows, chunks): the same, never falling inside a document

  SIEVE_HD const std::int32_t* starts_of(std::int64_t row) const {
    return a.document_starts_BT == nullptr ? nullptr : a.document_starts_BT + row / a.H * a.T;
  }
  SIEVE_HD std::int64_t begin_of(std::int64_t row, std::int64_t j) const {
    return a.document_starts_BT == nullptr ? 0 : starts_of(row)[j];
  }
  SIEVE_HD std::int64_t end_of(std::int64_t row, std::int64_t j) const {
    return ends_BT == nullptr ? a.T : ends_BT[row / a.H * a.T + j];
  }
};

// Each launches one kernel. `sort_chunks` leaves out what the base before the step already excludes; it also writes
// what every key can say for itself: z, from, and the to, left_pool and tau of keys and queries that nothing else
// writes.
void sort_chunks(const Chunks& c, const Stream& stream);
void grow_bases(const Chunks& c, const Stream& stream);
void settle_chunks(const Chunks& c, const Stream& stream);

}  // namespace sieve::cuda
