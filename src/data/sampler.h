// Which sequence is sample number i: a pure function of (seed, i), so data order needs no saved state and is the same
// on any number of ranks. T tokens per sequence: a source of N tokens holds floor((N - 1) / T) sequences, sequence s
// being inputs [sT, sT + T) and targets one further; the rest at the end is dropped.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace sieve {

// A keyed permutation of [0, n): a balanced Feistel network over the next even power of two, with cycle walking (Black
// and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002): values outside [0, n) are enciphered again, at
// most about 4 times on average.
class Permutation {
 public:
  Permutation(std::int64_t n, std::uint64_t key);  // n >= 1
  std::int64_t operator()(std::int64_t i) const;   // 0 <= i < n

 private:
  std::uint64_t n_, key_, half_mask_;
  int half_bits_;
};

std::int64_t sequence_count(std::int64_t tokens, std::int64_t seq_len);  // floor((tokens - 1) / seq_len), at least 0

struct SampledSource {
  std::string name;
  std::int64_t sequences = 0;    // >= 1, else Exit::data: the text is shorter than one sequence
  std::optional<double> weight;  // all sources have one, or none has
};

struct Sample {
  std::int64_t source = 0;    // index into the sources
  std::int64_t sequence = 0;  // within the source
  std::int64_t epoch = 0;     // of the source
};

// Without weights the sources are one corpus: every sequence once per epoch, the order newly drawn each epoch.
// With weights w (normalised to 1) sample i belongs to source 0 when floor(w0 (i + 1) + 1/2) > floor(w0 i + 1/2), in
// 32-bit fixed point; the other samples are numbered anew and split the same way among the remaining sources. So after
// i samples every source has had w_d i of them to within its position in the list, and its own index (the number of
// earlier ones) comes from the same formula without counting. Every source is shuffled anew in each of its own epochs.
class Sampler {
 public:
  // Exit::config: weights for some sources only, negative, or too small beside the others (below 2^-32).
  Sampler(std::vector<SampledSource> sources, std::uint64_t seed);

  Sample operator()(std::int64_t index) const;  // index >= 0
  std::int64_t epoch_samples() const;           // sequences of all sources together
  const std::vector<SampledSource>& sources() const { return sources_; }

 private:
  std::vector<SampledSource> sources_;
  std::vector<std::int64_t> begin_;   // running sum of sequences
  std::vector<std::uint64_t> share_;  // weight among the sources from here on, 2^32 = 1; empty: no weights
  std::uint64_t seed_;
};

}  // namespace sieve
