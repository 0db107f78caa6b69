// Sums whose order of additions does not depend on the number of ranks or on how a step is split into micro-batches per
// rank.
//
// The N micro-batches of a step are the leaves of one tree. With N = 2^a * m, m odd: blocks of m leaves are summed left
// to right, and the 2^a block sums by binary splits into contiguous halves (lower + upper). Rank r of R owns the r-th
// contiguous N/R leaves. Where R is a power of two (it then divides 2^a), each rank's part is a subtree of that tree
// and the ranks join by pairs: the same bits for every such R. For any other R the result is still a pure function of
// the leaves and R, but bits may differ from those of other R.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "tensor/tensor.h"

namespace sieve {

class Communicator;

// A rank holds partial sums in slots. Adding leaf j: value = leaf; value = slot[s] + value for each source s in order;
// slot[dest] = value. After the last leaf the sum stands in slot 0.
struct TreeStep {
  std::array<int, 64> sources{};
  int source_count = 0;
  int dest = 0;
};
TreeStep tree_step(std::int64_t leaves, std::int64_t index);  // of this rank: 0 <= index < leaves
int tree_slots(std::int64_t leaves);                          // log2(leaves) at most, for m > 1 plus 1; at least 1

// Adds the next leaf (undefined: zeros) to slots of its size and dtype, f32 or f64, on `stream`.
void add_leaf(const Stream& stream, const TreeStep& step, std::span<const Tensor> slots, const Tensor& leaf);

// The rank's part of the tree over tensors of one shape (f32 or f64).
class TreeAccumulator {
 public:
  explicit TreeAccumulator(std::int64_t leaves) : leaves_(leaves) {}
  void add(const Tensor& leaf);  // copies; in order of the micro-batches
  const Tensor& result() const;  // all leaves were added

 private:
  std::int64_t leaves_, added_ = 0;
  std::vector<Tensor> slots_;
};

// The same for one number.
class TreeSum {
 public:
  explicit TreeSum(std::int64_t leaves);
  void add(double leaf);
  double result() const;

 private:
  std::int64_t leaves_, added_ = 0;
  std::vector<double> slots_;
};

// Adds `values` (f32 or f64, contiguous) over the ranks, in place, along the upper levels of the tree; every rank gets
// the same bits. Large buffers: reduce-scatter by halving, then all-gather, 2(1 - 1/R) of the bytes each way per rank;
// small ones: log2 R exchanges.
void tree_all_reduce(Communicator& comm, Tensor& values, std::string_view what);
// The same tree over one value per rank, in rank order (as all_gather returns them).
double tree_sum(const std::vector<double>& values);

}  // namespace sieve
