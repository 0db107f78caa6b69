// Rows of a table chosen by ids, and the scatter-add behind it. R ids, V vocabulary, C channels.
#include <algorithm>
#include <numeric>
#include <vector>

#include "core/parallel_for.h"
#include "tensor/kernels/cpu/vec.h"
#include "tensor/kernels/kernels.h"

namespace sieve::cpu {
namespace {

void check_ids(const std::int32_t* ids, std::int64_t R, std::int64_t V) {
  for (std::int64_t r = 0; r < R; ++r) {
    if (ids[r] < 0 || ids[r] >= V) {
      fail(Exit::data, "embedding", "id ", ids[r], " at position ", r, " is outside the vocabulary of ", V,
           ": was the data made with another tokenizer?");
    }
  }
}

}  // namespace

void run(const EmbeddingArgs& args) {
  check_ids(args.ids_R, args.R, args.V);
  const std::int64_t row_bytes = args.C * static_cast<std::int64_t>(size_of(args.dtype));
  const auto* w = static_cast<const std::byte*>(args.w_VC);
  auto* y = static_cast<std::byte*>(args.y_RC);
  parallel_for(args.R, row_grain(args.C), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) std::copy_n(w + args.ids_R[r] * row_bytes, row_bytes, y + r * row_bytes);
  });
}

// Positions sorted by id (stable, so in row order inside an id): each id's rows are then one run, and one task sums it.
// No atomics.
void run(const EmbeddingBackwardArgs& args) {
  check_ids(args.ids_R, args.R, args.V);
  std::vector<std::int64_t> order(static_cast<std::size_t>(args.R));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [ids = args.ids_R](std::int64_t a, std::int64_t b) { return ids[a] < ids[b]; });
  std::vector<std::size_t> starts;  // of the runs, and the end of the last
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (i == 0 || args.ids_R[order[i]] != args.ids_R[order[i - 1]]) starts.push_back(i);
  }
  starts.push_back(order.size());

  dispatch_float(args.dtype, "embedding", [&]<class T>() {
    using G = compute_t<T>;
    if (!args.accumulate) run(FillArgs{.dst = args.dw_VC, .n = args.V * args.C, .value = 0, .dtype = dtype_of<G>});
    parallel_for(static_cast<std::int64_t>(starts.size()) - 1, row_grain(2 * args.C),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t run_index = begin; run_index < end; ++run_index) {
                     const auto first = starts[static_cast<std::size_t>(run_index)],
                                last = starts[static_cast<std::size_t>(run_index) + 1];
                     G* dw = static_cast<G*>(args.dw_VC) + args.ids_R[order[first]] * args.C;
                     for (std::size_t i = first; i < last; ++i) {
                       const T* dy = static_cast<const T*>(args.dy_RC) + order[i] * args.C;
                       for (std::int64_t c = 0; c < args.C; ++c) dw[c] += load(dy[c]);
                     }
                   }
                 });
  });
}

}  // namespace sieve::cpu
