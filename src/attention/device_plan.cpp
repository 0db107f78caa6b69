#include "attention/device_plan.h"

#include <typeinfo>

#include "core/build.h"
#include "tensor/profile.h"

namespace sieve {
namespace {

RowLists make_lists(std::int64_t rows, std::int64_t T, std::int64_t k, std::int64_t queries, const Stream& stream,
                    Tensor& keys, Tensor& ends) {
  RowLists lists;
  lists.queries = queries;
  lists.lists = (T + queries - 1) / queries;
  lists.capacity = row_list_capacity(T, k, queries);
  keys = empty({rows, lists.lists, lists.capacity}, DType::i32, stream);
  ends = empty({rows, lists.lists, kRowRuns}, DType::i32, stream);
  lists.keys = keys.data<std::int32_t>();
  lists.ends = ends.data<std::int32_t>();
  return lists;
}

}  // namespace

PlanOnDevice make_device_plan(const AttentionSpec& spec, std::int64_t B, std::int64_t T, const Tensor& document_starts,
                              const Tensor& from, const Tensor& to, const Tensor& band_from, const Stream& stream,
                              std::int64_t tile_queries, std::int64_t chunk_queries) {
  PlanOnDevice plan;
  DevicePlan& view = plan.view;
  if (document_starts.defined()) view.document_starts_BT = document_starts.data<std::int32_t>();
  view.window = spec.kind == AttentionKind::full ? 0 : spec.window;
  view.sinks = spec.kind == AttentionKind::sliding_window ? spec.sinks : 0;
  if (!from.defined()) return plan;
  view.heads = from.size(1);
  view.from_BHT = from.data<std::int32_t>();
  view.to_BHT = to.data<std::int32_t>();
  if (band_from.defined()) view.band_from_BHT = band_from.data<std::int32_t>();
  const std::int64_t rows = B * view.heads;
  view.tiles = make_lists(rows, T, spec.sparsek.k, tile_queries, stream, plan.tile_keys, plan.tile_ends);
  view.chunks = make_lists(rows, T, spec.sparsek.k, chunk_queries, stream, plan.chunk_keys, plan.chunk_ends);
  RowListArgs args;
  args.plan = view, args.B = B, args.T = T;
  if constexpr (build::with_cuda) {  // not by launch(): there is no CPU kernel to choose
    const KernelTimer timer(typeid(args).name(), stream);
    cuda::run(args, stream);
  }
  return plan;
}

}  // namespace sieve
