#include "dist/tree.h"

#include <algorithm>
#include <bit>

#include "dist/communicator.h"
#include "dist/kernels/kernels.h"

namespace sieve {
namespace {

// leaves = 2^levels * block, block odd.
struct Split {
  std::int64_t block;
  int levels;
};

Split split(std::int64_t leaves) {
  require(leaves >= 1, "tree", leaves, " leaves");
  const int levels = std::countr_zero(static_cast<std::uint64_t>(leaves));
  return {leaves >> levels, levels};
}

}  // namespace

TreeStep tree_step(std::int64_t leaves, std::int64_t index) {
  const auto [block, levels] = split(leaves);
  require(index >= 0 && index < leaves, "tree", "leaf ", index, " of ", leaves);
  const std::int64_t number = index / block, position = index % block;  // which block, and where in it
  // An even block gathers in slot 0, which is free then; an odd one beside the slots of the levels.
  const int gathering = number % 2 == 0 ? 0 : levels;
  TreeStep step;
  auto add = [&step](int slot) { step.sources[static_cast<std::size_t>(step.source_count++)] = slot; };
  if (position > 0) add(gathering);
  if (position < block - 1) {
    step.dest = gathering;
    return step;
  }
  // The block is complete: like a binary counter, it joins the finished subtrees below it, each twice the size of the
  // one before.
  const int carries = std::countr_one(static_cast<std::uint64_t>(number));
  for (int level = 0; level < carries; ++level) add(level);
  step.dest = index == leaves - 1 ? 0 : carries;  // slot `carries` is free; the last leaf has no use for a further one
  return step;
}

int tree_slots(std::int64_t leaves) {
  const auto [block, levels] = split(leaves);
  return std::max(1, levels) + (block > 1 && levels > 0 ? 1 : 0);
}

void add_leaf(const Stream& stream, const TreeStep& step, std::span<const Tensor> slots, const Tensor& leaf) {
  AddChainArgs args;
  args.source_count = step.source_count;
  for (int s = 0; s < step.source_count; ++s)
    args.sources[s] = slots[static_cast<std::size_t>(step.sources[static_cast<std::size_t>(s)])].raw();
  const Tensor& dest = slots[static_cast<std::size_t>(step.dest)];
  args.dest = dest.raw();
  args.leaf = leaf.defined() ? leaf.raw() : nullptr;
  args.n = dest.numel();
  args.dtype = dest.dtype();
  launch(stream, args);
}

void TreeAccumulator::add(const Tensor& leaf) {
  require(added_ < leaves_, "tree", "more than ", leaves_, " leaves");
  require(leaf.is_contiguous(), "tree", "strided leaf ", leaf.shape());
  if (slots_.empty()) slots_.resize(static_cast<std::size_t>(tree_slots(leaves_)));
  if (slots_[0].defined())
    require(slots_[0].shape() == leaf.shape() && slots_[0].dtype() == leaf.dtype(), "tree", "leaf ", leaf.shape(), " ",
            name_of(leaf.dtype()), " after ", slots_[0].shape(), " ", name_of(slots_[0].dtype()));
  const TreeStep step = tree_step(leaves_, added_++);
  Tensor& dest = slots_[static_cast<std::size_t>(step.dest)];
  if (!dest.defined()) dest = empty(leaf.shape(), leaf.dtype(), leaf.stream());
  add_leaf(leaf.stream(), step, slots_, leaf);
}

const Tensor& TreeAccumulator::result() const {
  require(added_ == leaves_, "tree", "result after ", added_, " of ", leaves_, " leaves");
  return slots_[0];
}

TreeSum::TreeSum(std::int64_t leaves) : leaves_(leaves), slots_(static_cast<std::size_t>(tree_slots(leaves))) {}

void TreeSum::add(double leaf) {
  require(added_ < leaves_, "tree", "more than ", leaves_, " leaves");
  const TreeStep step = tree_step(leaves_, added_++);
  for (int s = 0; s < step.source_count; ++s)
    leaf = slots_[static_cast<std::size_t>(step.sources[static_cast<std::size_t>(s)])] + leaf;
  slots_[static_cast<std::size_t>(step.dest)] = leaf;
}

double TreeSum::result() const {
  require(added_ == leaves_, "tree", "result after ", added_, " of ", leaves_, " leaves");
  return slots_[0];
}

namespace {

// mine = lower rank's + upper rank's: both sides of a pair add the same two numbers in the same order.
void join(const Stream& stream, Tensor& mine, const Tensor& theirs, bool mine_is_lower) {
  AddChainArgs args{.source_count = 1, .dest = mine.raw(), .n = mine.numel(), .dtype = mine.dtype()};
  args.sources[0] = mine_is_lower ? mine.raw() : theirs.raw();
  args.leaf = mine_is_lower ? theirs.raw() : mine.raw();
  launch(stream, args);
}

// Whole buffers, log2 `ranks` rounds: fewest messages.
void reduce_by_doubling(Communicator& comm, Tensor& flat, int ranks) {
  const Stream stream = comm.stream_for(flat.device());
  Tensor theirs = empty(flat.shape(), flat.dtype(), stream);
  for (int bit = 1; bit < ranks; bit <<= 1) {
    comm.exchange(flat, theirs, comm.rank() ^ bit, "");
    join(stream, flat, theirs, (comm.rank() & bit) == 0);
  }
}

// Round by round each pair splits its range, and each of the two finishes one half; then the halves travel back the
// same way. An element meets the same partners in the same order as by doubling, so the bits are the same; the bytes
// are fewest.
void reduce_by_halving(Communicator& comm, Tensor& flat, int ranks) {
  struct Range {
    std::int64_t begin, end;
  };
  std::vector<Range> parents;
  Range mine{0, flat.numel()};
  const Stream stream = comm.stream_for(flat.device());
  const Tensor scratch = empty({(flat.numel() + 1) / 2}, flat.dtype(), stream);
  for (int bit = 1; bit < ranks; bit <<= 1) {
    parents.push_back(mine);
    const std::int64_t middle = mine.begin + (mine.end - mine.begin) / 2;
    const bool lower = (comm.rank() & bit) == 0;
    const Range give = lower ? Range{middle, mine.end} : Range{mine.begin, middle};
    mine = lower ? Range{mine.begin, middle} : Range{middle, mine.end};
    Tensor theirs = scratch.slice(0, 0, mine.end - mine.begin);
    comm.exchange(flat.slice(0, give.begin, give.end), theirs, comm.rank() ^ bit, "");
    Tensor kept = flat.slice(0, mine.begin, mine.end);
    join(stream, kept, theirs, lower);
  }
  for (int bit = ranks >> 1; bit >= 1; bit >>= 1) {
    const Range parent = parents.back();
    parents.pop_back();
    const Range missing = mine.begin == parent.begin ? Range{mine.end, parent.end} : Range{parent.begin, mine.begin};
    Tensor theirs = flat.slice(0, missing.begin, missing.end);
    comm.exchange(flat.slice(0, mine.begin, mine.end), theirs, comm.rank() ^ bit, "");
    mine = parent;
  }
}

}  // namespace

void tree_all_reduce(Communicator& comm, Tensor& values, std::string_view what) {
  constexpr std::int64_t kSmall = 8192;  // elements; below it latency costs more than bytes
  require(values.defined() && values.is_contiguous() && (values.dtype() == DType::f32 || values.dtype() == DType::f64),
          "tree", "all_reduce(", what, ") wants a contiguous f32 or f64 tensor");
  if (comm.size() == 1 || values.numel() == 0) return;
  const Progress::Scope scope(comm.progress(), cat("all_reduce(", what, ")"));
  Tensor flat = values.flatten();
  const Stream stream = comm.stream_for(flat.device());
  Communicator::Overlap overlap(comm, flat.stream());     // one wait for all exchanges and additions
  Tensor none = empty({0}, flat.dtype(), flat.stream());  // of this stream: the first exchange waits for it
  // Ranks beyond the largest power of two hand their part to a partner first and fetch the result from it last.
  const int ranks = static_cast<int>(std::bit_floor(static_cast<unsigned>(comm.size())));
  const int extra = comm.size() - ranks;
  if (comm.rank() >= ranks) {
    comm.exchange(flat, none, comm.rank() - ranks, "");
    comm.exchange(none, flat, comm.rank() - ranks, "");
    return overlap.end();
  }
  if (comm.rank() < extra) {
    Tensor theirs = empty(flat.shape(), flat.dtype(), stream);
    comm.exchange(none, theirs, comm.rank() + ranks, "");
    join(stream, flat, theirs, true);
  }
  flat.numel() <= kSmall ? reduce_by_doubling(comm, flat, ranks) : reduce_by_halving(comm, flat, ranks);
  if (comm.rank() < extra) comm.exchange(flat, none, comm.rank() + ranks, "");
  overlap.end();
}

double tree_sum(const std::vector<double>& values) {
  // The same folding as tree_all_reduce.
  std::vector<double> v = values;
  require(!v.empty(), "tree", "sum of no values");
  const std::size_t ranks = std::bit_floor(v.size());
  for (std::size_t r = ranks; r < v.size(); ++r) v[r - ranks] = v[r - ranks] + v[r];
  TreeSum sum(static_cast<std::int64_t>(ranks));
  for (std::size_t r = 0; r < ranks; ++r) sum.add(v[r]);
  return sum.result();
}

}  // namespace sieve
