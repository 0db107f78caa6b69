// Pattern attention: slab after slab, first which blocks its tiles visit, then the softmax over them. Every unit writes
// results of its own, so that slabs share nothing.
#include <algorithm>

#include "attention/kernels/cuda/pattern_lists.cuh"

namespace sieve::cuda {
namespace {

void check_head_dim(const SoftmaxForwardArgs& a) {
  if (a.D <= 4 * kSide) return;
  fail(Exit::config, "attention", "head_dim ", a.D, " exceeds the ", 4 * kSide, " that the GPU's kernels hold");
}

// pass(lists) for every slab of every phase.
template <class Pass>
void each_slab(const PatternForwardArgs& a, const PatternSpace& space, bool keys, bool tensor_cores,
               const Stream& stream, const Pass& pass) {
  for (const PatternPhase& phase : phases_of(a, tensor_cores)) {
    PatternLists lists = lists_of(a, space);
    if (!phase.sorted) lists.order = nullptr;
    lists.begins = phase.begins, lists.ends = phase.ends;
    const std::int64_t all = lists.rows * lists.heads * lists.sides;
    for (lists.first = 0; lists.first < all; lists.first += space.slab) {
      lists.units = std::min(space.slab, all - lists.first);
      fill_lists(phase, lists, keys, stream);
      pass(lists);
    }
  }
}

}  // namespace

std::size_t workspace_bytes(const PatternForwardArgs& a, Stream) { return space_of(a, false).bytes; }
std::size_t workspace_bytes(const PatternBackwardArgs& a, Stream) { return space_of(a.forward, true).bytes; }

void run(const PatternForwardArgs& a, Stream stream) {
  check_head_dim(a.softmax);
  if (a.softmax.B * a.softmax.T == 0) return;
  const PatternSpace space = space_of(a, false);
  Engine e = prepare(a.softmax, space.engine, stream);
  if (space.statistics > 0) e.statistics = static_cast<unsigned char*>(a.softmax.workspace) + space.statistics;
  sort_slots(a, lists_of(a, space), stream);
  const bool fast = pattern_fits_tensor_cores(e, false);
  each_slab(a, space, false, fast, stream, [&](const PatternLists& slab) {
    if (fast) pattern_forward(e, slab, stream);
    else pattern_rows_forward(e, slab, stream);
  });
}

void run(const PatternBackwardArgs& a, Stream stream) {
  const SoftmaxForwardArgs& f = a.forward.softmax;
  check_head_dim(f);
  if (f.B * f.T == 0) return;
  const PatternSpace space = space_of(a.forward, true);
  Engine e = prepare(f, space.engine, stream);
  e.dout = {a.dout_BTHD, f.H * f.D, 0, f.dtype};
  e.dqkv = a.dqkv_BTF;
  e.delta = static_cast<unsigned char*>(f.workspace) + space.engine.delta;
  sort_slots(a.forward, lists_of(a.forward, space), stream);
  const bool fast = pattern_fits_tensor_cores(e, true);
  each_slab(a.forward, space, false, fast, stream, [&](const PatternLists& slab) {
    if (fast) pattern_backward_queries(e, slab, stream);
    else pattern_rows_backward_queries(e, slab, stream);
  });
  each_slab(a.forward, space, true, fast, stream, [&](const PatternLists& slab) {
    if (fast) pattern_backward_keys(e, slab, stream);
    else pattern_rows_backward_keys(e, slab, stream);
  });
}

}  // namespace sieve::cuda
