// Before a pass of the softmax engine: rotated queries and keys, once per pass and in the dtype of qkv, since every
// tile reads them again; and the arguments that the kernels see.
#include <algorithm>

#include "attention/kernels/cuda/engine.cuh"

namespace sieve::cuda {
namespace {

// Heads [0, heads) of every row of qkv turned to the row's position (or to `position` if that is not negative), packed
// (B, T, heads, D).
template <class C>
__global__ void rotate(const void* qkv, std::int64_t features, void* out, std::int64_t BT, std::int64_t T,
                       std::int64_t heads, std::int64_t D, RotaryView rotary, std::int64_t position, DType dtype) {
  const std::int64_t R = rotary.rotary_dims / 2, half = D - R;  // a thread takes a pair, or an element that stays
  SIEVE_GRID_STRIDE(x, BT * heads * half) {
    const std::int64_t d = x % half, head = x / half % heads, row = x / half / heads;
    const std::int64_t from = row * features + head * D, to = (row * heads + head) * D;
    if (d >= R) {
      store_as(out, to + d + R, dtype, load_as<C>(qkv, from + d + R, dtype));
      continue;
    }
    const std::int64_t at = (position >= 0 ? position : row % T) * R + d;
    const C c = static_cast<const C*>(rotary.cos)[at], s = static_cast<const C*>(rotary.sin)[at];
    const C p = load_as<C>(qkv, from + d, dtype), q = load_as<C>(qkv, from + R + d, dtype);
    store_as(out, to + d, dtype, p * c - q * s);
    store_as(out, to + R + d, dtype, q * c + p * s);
  }
}

void pack(const SoftmaxForwardArgs& a, void* out, std::int64_t heads, std::int64_t position, Stream stream) {
  const std::int64_t features = (a.H + 2 * a.Hkv) * a.D, BT = a.B * a.T;
  const std::int64_t blocks = blocks_for(BT * heads * (a.D - a.rotary.rotary_dims / 2));
  const auto go = [&](auto kernel) {
    start("rotate", kernel, blocks, kThreads, 0, stream, a.qkv_BTF, features, out, BT, a.T, heads, a.D, a.rotary,
          position, a.dtype);
  };
  if (a.dtype == DType::f64) go(rotate<double>);
  else go(rotate<float>);
}

bool is_far(const SoftmaxForwardArgs& a) { return a.rotary.rotary_dims > 0 && a.rotary.far_distance >= 0; }

}  // namespace

Workspace workspace_of(const SoftmaxForwardArgs& a, bool backward, bool scores) {
  Workspace w;
  const auto take = [&](std::int64_t elements, std::size_t size) {
    const std::size_t at = w.bytes;
    w.bytes += (static_cast<std::size_t>(elements) * size + 255) / 256 * 256;
    return at;
  };
  const std::size_t element = size_of(a.dtype), compute = size_of(compute_dtype(a.dtype));
  if (a.rotary.rotary_dims > 0) w.pack = take(a.B * a.T * (a.H + a.Hkv) * a.D, element);
  if (is_far(a)) w.far_pack = take(a.B * a.T * a.H * a.D, element);
  if (!backward) return w;
  w.delta = take(a.B * a.H * a.T, compute);
  if (a.device_plan.from_BHT != nullptr) {
    const RowLists& lists = a.device_plan.chunks;
    const std::int64_t rows = a.B * a.Hkv * lists.lists * lists.capacity;
    w.partial = take(rows * 2 * a.D, compute);
    if (scores) w.column_part = take(rows, sizeof(double));
  }
  if (scores) {
    w.column_heads = take(a.B * a.Hkv * a.T, sizeof(double));
    w.row_heads = take(a.B * a.H * a.T, sizeof(double));
  }
  return w;
}

Engine prepare(const SoftmaxForwardArgs& a, const Workspace& space, Stream stream) {
  Engine e;
  e.B = a.B, e.T = a.T, e.H = a.H, e.Hkv = a.Hkv, e.D = a.D;
  e.tiles = (a.T + kSide - 1) / kSide;
  e.scale = a.scale, e.dtype = a.dtype;
  e.plan = a.device_plan, e.gate = a.gate, e.rotary = a.rotary;
  e.far = is_far(a);
  e.out = a.out_BTHD, e.statistics = a.statistics_BHT;
  const std::int64_t features = e.features();
  e.q = {a.qkv_BTF, features, 0, a.dtype};
  e.k = e.far_k = {a.qkv_BTF, features, a.H * a.D, a.dtype};
  e.v = {a.qkv_BTF, features, (a.H + a.Hkv) * a.D, a.dtype};
  auto* memory = static_cast<unsigned char*>(a.workspace);
  if (a.rotary.rotary_dims > 0) {
    const std::int64_t stride = (a.H + a.Hkv) * a.D;
    pack(a, memory + space.pack, a.H + a.Hkv, -1, stream);
    e.q = {memory + space.pack, stride, 0, a.dtype};
    e.k = {memory + space.pack, stride, a.H * a.D, a.dtype};
  }
  if (e.far) {
    pack(a, memory + space.far_pack, a.H, a.rotary.far_distance, stream);
    e.far_q = {memory + space.far_pack, a.H * a.D, 0, a.dtype};
  }
  return e;
}

bool fits_tensor_cores(const Engine& e) {
  if (e.dtype != DType::bf16 || (e.D != kSide && e.D != 2 * kSide)) return false;
  const auto aligned = [](const Rows& r) { return reinterpret_cast<std::uintptr_t>(r.base) % 16 == 0; };
  return aligned(e.q) && aligned(e.far_q) && aligned(e.k) && aligned(e.far_k) && aligned(e.v) && aligned(e.dout);
}

}  // namespace sieve::cuda
