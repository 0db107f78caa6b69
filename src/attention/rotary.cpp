#include "attention/rotary.h"

#include <algorithm>
#include <bit>

#include "attention/keep.h"
#include "attention/kernels/softmax.h"
#include "tensor/dispatch.h"

namespace sieve {
namespace {

struct Wanted {
  double theta;
  std::int64_t rotary_dims;
  DType dtype;
  bool operator==(const Wanted&) const = default;
};

Keep<Wanted, RotaryTable>& keep() {
  constexpr std::size_t kMost = 4;
  static auto& instance = *new Keep<Wanted, RotaryTable>("rotary table", kMost);
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
  const auto rounded =
      static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(std::max<std::int64_t>(64, positions))));
  return keep().get(
      {rope.theta, rope.rotary_dims, dtype}, stream,
      [&](const RotaryTable& table) { return table.cos.size(0) >= positions; },
      [&] { return make_table(rope, rounded, dtype, stream); });
}

}  // namespace sieve
