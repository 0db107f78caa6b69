// Which pairs (query, key) the patterns beyond windows show, as plain data and one predicate, the same on host and
// device. docs/attention.md has each pattern's equation and source. Positions count from the start of the query's
// document, so that a packed document is treated as the same document alone. Letters: B batch, Hc heads that choose (1
// or H), T time, i query, j key.
#pragma once

#include <cstdint>
#include <limits>

#include "attention/spec.h"
#include "core/rng.h"
#include "tensor/dispatch.h"

namespace sieve {

inline constexpr std::int32_t kNoChoice = std::numeric_limits<std::int32_t>::max();  // fills lists that are not full

struct PairPattern {
  AttentionKind kind = AttentionKind::strided;
  PatternSpec spec;
  std::int64_t window = 0;
  const std::int32_t* document_starts_BT = nullptr;  // null: one document a row
  // What queries chose, for kinds that choose by content; a list ascends and ends with kNoChoice.
  //   hash         the bucket of a position, (B, Hc, T, 1)
  //   top_k, dsa   positions in the row, (B, Hc, T, k)
  //   moba         blocks of the document, (B, Hc, T, blocks)
  const std::int32_t* choice_BHTN = nullptr;
  std::int64_t choice_heads = 1, choice_size = 0, T = 0;

  SIEVE_HD std::int64_t start_of(std::int64_t b, std::int64_t i) const {
    return document_starts_BT != nullptr ? document_starts_BT[b * T + i] : 0;
  }
  SIEVE_HD const std::int32_t* choice(std::int64_t b, std::int64_t h, std::int64_t i) const {
    return choice_BHTN + ((b * choice_heads + (choice_heads == 1 ? 0 : h)) * T + i) * choice_size;
  }
};

// Whether an ascending list holds `value`.
SIEVE_HD inline bool holds(const std::int32_t* list, std::int64_t n, std::int32_t value) {
  const std::int64_t end = n;
  std::int64_t low = 0;
  while (n > 0) {
    const std::int64_t half = n / 2;
    if (list[low + half] < value) low += half + 1, n -= half + 1;
    else n = half;
  }
  return low < end && list[low] == value;
}

// BigBird's random blocks of the queries of block `own`: one from each of random_blocks equal shares of the blocks that
// are neither global nor in the window, so that they differ.
SIEVE_HD inline bool is_random_block(const PatternSpec& s, std::int64_t head, std::int64_t own, std::int64_t block) {
  const std::int64_t first = s.global_blocks, n = own - s.window_blocks + 1 - first;
  if (s.random_blocks == 0 || n <= 0) return false;
  if (n <= s.random_blocks) return true;
  const std::int64_t share = ((block - first) * s.random_blocks + s.random_blocks - 1) / n;
  for (std::int64_t r = share > 0 ? share - 1 : 0; r <= share && r < s.random_blocks; ++r) {
    const std::int64_t begin = n * r / s.random_blocks, end = n * (r + 1) / s.random_blocks;
    if (block - first < begin || block - first >= end) continue;
    const Philox random{s.seed, 0x626967ull + static_cast<std::uint64_t>(head)};
    const auto at = static_cast<std::uint64_t>(own * s.random_blocks + r);
    return block - first ==
           begin + static_cast<std::int64_t>(random.bits64(at) % static_cast<std::uint64_t>(end - begin));
  }
  return false;
}

// Whether query i of the document sees key j <= i of it, for patterns that do not look at the content.
SIEVE_HD inline bool shows(const PairPattern& p, std::int64_t head, std::int64_t i, std::int64_t j) {
  const PatternSpec& s = p.spec;
  const bool local = s.part != PatternPart::columns, columns = s.part != PatternPart::local;
  switch (p.kind) {
    case AttentionKind::strided: return (local && i - j < s.stride) || (columns && (i - j) % s.stride == 0);
    case AttentionKind::fixed:
      return (local && i / s.stride == j / s.stride) || (columns && j % s.stride >= s.stride - s.summary);
    case AttentionKind::longformer:
      return j < s.globals || i < s.globals || ((i - j) % s.dilation == 0 && (i - j) / s.dilation < p.window);
    case AttentionKind::bigbird: {
      const std::int64_t own = i / s.block, block = j / s.block;
      return block < s.global_blocks || own - block < s.window_blocks || is_random_block(s, head, own, block);
    }
    default: return false;
  }
}

// Whether query i of row b sees key j of it. h: a query head.
SIEVE_HD inline bool sees(const PairPattern& p, std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
  const std::int64_t start = p.start_of(b, i);
  if (j > i || j < start) return false;
  switch (p.kind) {
    case AttentionKind::hash: return j < i && *p.choice(b, h, i) == *p.choice(b, h, j);
    case AttentionKind::top_k:
    case AttentionKind::dsa: return holds(p.choice(b, h, i), p.choice_size, static_cast<std::int32_t>(j));
    case AttentionKind::moba:
      return holds(p.choice(b, h, i), p.choice_size, static_cast<std::int32_t>((j - start) / p.spec.block));
    default: return shows(p, h, i - start, j - start);
  }
}

// Bit x: whether query i sees key first + x, x < count <= 64.
SIEVE_HD inline std::uint64_t seen_bits(const PairPattern& p, std::int64_t b, std::int64_t h, std::int64_t i,
                                        std::int64_t first, int count) {
  std::uint64_t bits = 0;
  for (int x = 0; x < count; ++x) bits |= static_cast<std::uint64_t>(sees(p, b, h, i, first + x)) << x;
  return bits;
}

}  // namespace sieve
