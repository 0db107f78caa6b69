// Which of 64 neighbouring keys a query sees, as the bits of a word: what seen_bits() of kernels/pattern.h says, by
// intervals and steps instead of a question a pair.
#pragma once

#include "attention/kernels/pattern.h"

namespace sieve::cuda {

using Word = std::uint64_t;

// Keys first .. first + 63, of which a query may see [low, high).
struct WordRange {
  std::int64_t first, low, high;

  // Bits of the keys [begin, end) of the range.
  __device__ Word between(std::int64_t begin, std::int64_t end) const {
    begin = begin > low ? begin : low, end = end < high ? end : high;
    return begin < end ? ~Word{0} >> (64 - (end - begin)) << (begin - first) : 0;
  }
  // Bits of the keys i - n * step >= begin.
  __device__ Word steps(std::int64_t i, std::int64_t step, std::int64_t begin) const {
    begin = begin > low ? begin : low;
    const auto over = static_cast<std::int64_t>(static_cast<std::uint32_t>(i - (high - 1)) %
                                                static_cast<std::uint32_t>(step < INT32_MAX ? step : INT32_MAX));
    Word bits = 0;
    for (std::int64_t j = over == 0 ? high - 1 : high - 1 + over - step; j >= begin; j -= step)
      bits |= Word{1} << (j - first);
    return bits;
  }
};

// Entry of an ascending list at or above `value`.
__device__ inline std::int64_t lower_bound(const std::int32_t* list, std::int64_t n, std::int64_t value) {
  std::int64_t low = 0;
  while (n > 0) {
    const std::int64_t half = n / 2;
    if (list[low + half] < value) low += half + 1, n -= half + 1;
    else n = half;
  }
  return low;
}

// d: first position of the query's document.
__device__ inline Word fixed_word(const PairPattern& p, const WordRange& r, std::int64_t i, std::int64_t d) {
  const std::int64_t l = p.spec.stride;
  Word bits = 0;
  if (p.spec.part != PatternPart::columns) bits = r.between(d + (i - d) / l * l, i + 1);
  if (p.spec.part == PatternPart::local) return bits;
  for (std::int64_t end = d + ((r.low - d) / l + 1) * l; end - l < r.high; end += l)
    bits |= r.between(p.spec.summary < l ? end - p.spec.summary : end - l, end);
  return bits;
}

__device__ inline Word longformer_word(const PairPattern& p, const WordRange& r, std::int64_t i, std::int64_t d) {
  if (i - d < p.spec.globals) return r.between(d, i + 1);
  const Word globals = r.between(d, d + p.spec.globals);
  if (p.spec.dilation == 1) return globals | r.between(i - p.window + 1, i + 1);
  // A window wider than the row would overflow the product.
  const std::int64_t reach = p.window <= (i - d) / p.spec.dilation ? (p.window - 1) * p.spec.dilation : i - d;
  return globals | r.steps(i, p.spec.dilation, i - reach);
}

// Of the blocks of `size` keys, counted from d, those that `seen` says.
template <class Seen>
__device__ inline Word blocks_word(const WordRange& r, std::int64_t d, std::int64_t size, const Seen& seen) {
  Word bits = 0;
  for (std::int64_t block = (r.low - d) / size; d + block * size < r.high; ++block) {
    if (seen(block)) bits |= r.between(d + block * size, d + (block + 1) * size);
  }
  return bits;
}

// Query i of row b, head h; keys first .. first + 63. Not for hash, whose keys are not neighbours.
__device__ inline Word seen_word(const PairPattern& p, std::int64_t b, std::int64_t h, std::int64_t i,
                                 std::int64_t first) {
  const std::int64_t d = p.start_of(b, i);
  const WordRange r{first, first > d ? first : d, first + 64 < i + 1 ? first + 64 : i + 1};
  if (r.low >= r.high) return 0;
  const PatternSpec& s = p.spec;
  switch (p.kind) {
    case AttentionKind::strided: {
      const Word local = s.part != PatternPart::columns ? r.between(i - s.stride + 1, i + 1) : 0;
      return s.part != PatternPart::local ? local | r.steps(i, s.stride, d) : local;
    }
    case AttentionKind::fixed: return fixed_word(p, r, i, d);
    case AttentionKind::longformer: return longformer_word(p, r, i, d);
    case AttentionKind::bigbird: {
      const std::int64_t own = (i - d) / s.block;
      return blocks_word(r, d, s.block, [&](std::int64_t block) {
        return block < s.global_blocks || own - block < s.window_blocks || is_random_block(s, h, own, block);
      });
    }
    case AttentionKind::moba:
      return blocks_word(r, d, s.block, [&](std::int64_t block) {
        return holds(p.choice(b, h, i), p.choice_size, static_cast<std::int32_t>(block));
      });
    default: {  // top_k, dsa
      const std::int32_t* list = p.choice(b, h, i);
      Word bits = 0;
      for (std::int64_t x = lower_bound(list, p.choice_size, r.low); x < p.choice_size && list[x] < r.high; ++x)
        bits |= Word{1} << (list[x] - first);
      return bits;
    }
  }
}

}  // namespace sieve::cuda
