#include "attention/rotary.h"

#include <algorithm>
#include <bit>
#include <mutex>
#include <vector>

#include "attention/kernels/softmax.h"
#include "tensor/dispatch.h"

namespace sieve {
namespace {

struct Kept {
  double theta;
  std::int64_t rotary_dims;
  DType dtype;
  Device device;
  RotaryTable table;
};

struct Cache {
  std::mutex mutex;
  std::vector<Kept> tables;  // newest last
};

Cache& cache() {
  static Cache& instance = *new Cache;  // never destroyed: its tensors must not outlive the allocator
  return instance;
}

RotaryTable make_table(const RopeSpec& rope, std::int64_t positions, DType dtype, const Stream& stream) {
  const Shape shape{positions, rope.rotary_dims / 2};
  RotaryTable table{empty(shape, dtype, stream), empty(shape, dtype, stream)};
  RotaryTableArgs args;
  args.cos = table.cos.raw();
  args.sin = table.sin.raw();
  args.positions = positions;
  args.rotary_dims = rope.rotary_dims;
  args.theta = rope.theta;
  args.dtype = dtype;
  launch(stream, args);
  return table;
}

}  // namespace

RotaryTable rotary_table(const RopeSpec& rope, std::int64_t positions, DType dtype, const Stream& stream) {
  if (rope.rotary_dims == 0) return {};
  constexpr std::size_t kKept = 4;
  std::lock_guard lock(cache().mutex);
  std::vector<Kept>& tables = cache().tables;
  const auto found = std::find_if(tables.begin(), tables.end(), [&](const Kept& k) {
    return k.theta == rope.theta && k.rotary_dims == rope.rotary_dims && k.dtype == dtype && k.device == stream.device;
  });
  if (found != tables.end()) {
    if (found->table.cos.size(0) >= positions) return found->table;
    tables.erase(found);
  }
  const auto rounded =
      static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(std::max<std::int64_t>(64, positions))));
  if (tables.size() == kKept) tables.erase(tables.begin());
  tables.push_back({rope.theta, rope.rotary_dims, dtype, stream.device, make_table(rope, rounded, dtype, stream)});
  return tables.back().table;
}

}  // namespace sieve
