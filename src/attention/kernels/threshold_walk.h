// Thresholds of every prefix of a score stream, tile by tile (form c of attention/sparsek.h). A tile's new scores are
// sorted and merged into the retained list (what lies above tau, at most pool_size scores, ascending by u, then key);
// then the tile's scores are activated one after the other while two cursors, the least fractional and the least
// saturated score, follow tau upwards. A score costs its share of one merge of the list and a few cursor steps,
// whatever the length of the stream.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace sieve {

class ThresholdWalk {
 public:
  ThresholdWalk(std::int64_t k, std::int64_t pool_size);  // 1 <= k <= pool_size
  void clear();

  // The next n scores, keys first_key + p; keys ascend from tile to tile. u orders the keys; z, finite and
  // non-decreasing in u, is what the operator sees. tau[p] belongs to the prefix that ends with score p: -inf while
  // fewer than k scores came. left_pool (may be null) is indexed by key: the key whose arrival pushed this one out of
  // the pool (its own if it never got in). Keys that stay, and keys that tau passed first, are not written.
  void tile(const double* u, const double* z, std::int64_t n, std::int64_t first_key, double* tau,
            std::int32_t* left_pool);

 private:
  enum class State : std::uint8_t { waiting, fractional, saturated, gone };
  struct Entry {
    double u, z;
    std::int32_t key;
    State state;
  };

  bool merge(const double* u, const double* z, std::int64_t n, std::int64_t first_key);
  void activate(std::size_t rank, std::int32_t* left_pool);
  void push_out_least(std::int32_t arriving_key, std::int32_t* left_pool);
  void settle();
  void add_fractional(Entry& e);
  void drop_fractional(Entry& e);
  std::size_t least_fractional();
  std::size_t least_saturated();

  std::int64_t k_, pool_size_;
  double tau_ = -std::numeric_limits<double>::infinity();
  double centre_ = 0, centred_sum_ = 0;  // sum over the fractional scores of z - centre
  std::int64_t n_fractional_ = 0, n_saturated_ = 0;
  std::size_t fractional_cursor_ = 0, saturated_cursor_ = 0;  // nothing of that state lies below
  std::vector<Entry> list_, merged_, fresh_;
  std::vector<std::int32_t> rank_;  // of the tile's p-th score in the list, -1: tau had passed it before the tile began
};

}  // namespace sieve
