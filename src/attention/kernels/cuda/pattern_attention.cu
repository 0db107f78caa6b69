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

// pass(lists) for every slab.
template <class Pass>
void each_slab(const PatternForwardArgs& a, const PatternSpace& space, PatternLists lists, bool keys,
               const Stream& stream, const Pass& pass) {
  const std::int64_t all = lists.rows * lists.heads * lists.sides;
  for (lists.first = 0; lists.first < all; lists.first += space.slab) {
    lists.units = std::min(space.slab, all - lists.first);
    fill_lists(a, lists, keys, stream);
    pass(lists);
  }
}

}  // namespace

std::size_t workspace_bytes(const PatternForwardArgs& a, Stream) { return space_of(a, false).bytes; }
std::size_t workspace_bytes(const PatternBackwardArgs& a, Stream) { return space_of(a.forward, true).bytes; }

void run(const PatternForwardArgs& a, Stream stream) {
  check_head_dim(a.softmax);
  if (a.softmax.B * a.softmax.T == 0) return;
  const PatternSpace space = space_of(a, false);
  const Engine e = prepare(a.softmax, space.engine, stream);
  const PatternLists lists = lists_of(a, space);
  sort_slots(a, lists, stream);
  const bool fast = pattern_fits_tensor_cores(e, false);
  each_slab(a, space, lists, false, stream, [&](const PatternLists& slab) {
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
  const PatternLists lists = lists_of(a.forward, space);
  sort_slots(a.forward, lists, stream);
  const bool fast = pattern_fits_tensor_cores(e, true);
  each_slab(a.forward, space, lists, false, stream, [&](const PatternLists& slab) {
    if (fast) pattern_backward_queries(e, slab, stream);
    else pattern_rows_backward_queries(e, slab, stream);
  });
  each_slab(a.forward, space, lists, true, stream, [&](const PatternLists& slab) {
    if (fast) pattern_backward_keys(e, slab, stream);
    else pattern_rows_backward_keys(e, slab, stream);
  });
}

}  // namespace sieve::cuda
