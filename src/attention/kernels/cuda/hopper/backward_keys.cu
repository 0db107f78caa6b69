// Backward towards the keys of windows: an item is 128 consecutive keys. It owns them, so it also adds what their
// selected lives left in the workspace (sum_chunks.cu), and writes dK and dV.
#include <utility>

#include "attention/kernels/cuda/hopper/query_stream.cuh"
#include "attention/kernels/cuda/hopper/sum_chunks.h"

namespace sieve::cuda::hopper {
namespace {

// ---- Senders of keys
// Row of `partial` that holds the sums of key j's chunks; -1: nobody selected it.
__device__ inline std::int64_t place_of(const Engine& e, const Item& item, int j) {
  if (e.plan.from_BHT == nullptr || j >= e.T) return -1;
  const RowLists& lists = e.plan.chunks;
  const std::int64_t list_row = e.list_row(item.b, item.kv);
  const RowLife life = life_of(e.plan, e.T, list_row, j);
  if (life.begin >= life.end) return -1;
  const std::int64_t chunk = life.begin / static_cast<std::int32_t>(lists.queries);
  return ((item.b * e.Hkv + item.kv) * lists.lists + chunk) * lists.capacity +
         place_in_list(e.plan, lists, e.T, list_row, chunk, j);
}

template <int D>
__device__ inline void send_keys(const Engine& e, const CUtensorMap* k_map, const CUtensorMap* v_map, KeyShared<D>& s,
                                 int items) {
  using S = KeyShared<D>;
  const int tiles = static_cast<int>((e.T + kItemKeys - 1) / kItemKeys), heads = static_cast<int>(e.Hkv),
            thread = static_cast<int>(threadIdx.x) % kSenders;
  Ring<2> buffer;
  for (int number = static_cast<int>(blockIdx.x); number < items; number += static_cast<int>(gridDim.x)) {
    // Turned by the head's number: without a window the first tiles are the longest, and would else always be the same
    // thread blocks' turn.
    const int head = number / tiles, first = (number % tiles + head % tiles) % tiles * kItemKeys;
    std::uint64_t* full = &s.keys_full[buffer.at()];
    Item& item = s.items[buffer.at()];
    wait(&s.keys_empty[buffer.at()], buffer.phase() ^ 1);
    if (thread == 0) {
      const int b = head / heads, kv = head % heads;
      expect(full, 2 * S::kSlabs * S::kKeySlab);
#pragma unroll
      for (int slab = 0; slab < S::kSlabs; ++slab) {
        copy_box(s.k[buffer.at()] + slab * S::kKeySlab, k_map, full, slab * kSlabFeatures, kv, first, b);
        copy_box(s.v[buffer.at()] + slab * S::kKeySlab, v_map, full, slab * kSlabFeatures, kv, first, b);
      }
      item.b = b, item.kv = kv, item.first = first, item.real = static_cast<int>(e.T) - first;
    }
    meet(kSenderBarrier, kSenders);  // the item is there
#pragma unroll 1
    for (int r = thread; r < kItemKeys; r += kSenders) s.keys[buffer.at()].place[r] = place_of(e, item, first + r);
    arrive(full);
    ++buffer.count;
  }
  wait(&s.keys_empty[buffer.at()], buffer.phase() ^ 1);
  if (thread == 0) s.items[buffer.at()].real = 0;
  arrive(&s.keys_full[buffer.at()]);
}

// ---- Consumers
// Keys of spans: query i sees [begin_i, i], and begin_i never falls.
struct SpanPairs {
  static constexpr bool kGates = false;

  Lane lane;
  int first;  // key of the warpgroup's first row
  float factor;

  __device__ Pass look(const QueryNumbers& x) const {
    const int last = first + 63;
    if (x.q0 + kStageQueries <= first || x.begin[0] > last) return Pass::skip;
    return x.q0 >= last && x.begin[kStageQueries - 1] <= first ? Pass::clean : Pass::masked;
  }
  __device__ void weigh(const QueryNumbers& x, Pass pass, float (&s)[32]) const {
    plain_weights(x, s, factor, lane.column);
    if (pass != Pass::masked) return;
    const int key = first + lane.row % 64, from = key - x.q0 - lane.column;  // columns from `from` on are not earlier
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const int2 begin = *reinterpret_cast<const int2*>(x.begin + 8 * n + lane.column);
#pragma unroll
      for (int y = 0; y < 4; ++y) {
        const int below = y / 2 * 8;  // rows of the thread are 8 apart
        const bool sees = (y % 2 == 0 ? begin.x : begin.y) <= key + below && 8 * n + y % 2 - below >= from;
        s[4 * n + y] = sees ? s[4 * n + y] : 0;
      }
    }
  }
  __device__ void differentiate(const QueryNumbers& x, Pass, const float (&s)[32], float (&dp)[32]) const {
    plain_gradients(x, s, dp, lane.column);
  }
};

template <int D>
__device__ inline void add_row(const float* row, int r, float (&dk)[D / 2], float (&dv)[D / 2]) {
#pragma unroll
  for (int n = 0; n < D / 8; ++n) {
    const float2 k = *reinterpret_cast<const float2*>(row + 8 * n),
                 v = *reinterpret_cast<const float2*>(row + D + 8 * n);
    dk[4 * n + 2 * r] += k.x, dk[4 * n + 2 * r + 1] += k.y;
    dv[4 * n + 2 * r] += v.x, dv[4 * n + 2 * r + 1] += v.y;
  }
}

// dk back from the frame of its row's position: features d and d + R, R = 8 kHalf, turn together and are the same
// thread's.
template <int D, int kHalf>
__device__ inline void turn_back(const Engine& e, const std::int64_t (&position)[2], int column, float (&dk)[D / 2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const std::int64_t at = position[r] * (8 * kHalf) + column;
#pragma unroll
    for (int n = 0; n < kHalf; ++n) {
      const float2 c = *reinterpret_cast<const float2*>(static_cast<const float*>(e.rotary.cos) + at + 8 * n),
                   s = *reinterpret_cast<const float2*>(static_cast<const float*>(e.rotary.sin) + at + 8 * n);
      float &low = dk[4 * n + 2 * r], &high = dk[4 * (n + kHalf) + 2 * r];
      float &low_next = dk[4 * n + 2 * r + 1], &high_next = dk[4 * (n + kHalf) + 2 * r + 1];
      const float before[2] = {low, low_next};
      low = low * c.x + high * s.x, high = high * c.x - before[0] * s.x;
      low_next = low_next * c.y + high_next * s.y, high_next = high_next * c.y - before[1] * s.y;
    }
  }
}
// R is known at run time; registers are named at compile time.
template <int D, int... kBefore>
__device__ inline void turn_back(const Engine& e, const std::int64_t (&position)[2], int column, float (&dk)[D / 2],
                                 std::integer_sequence<int, kBefore...>) {
  const auto half = static_cast<int>(e.rotary.rotary_dims / 16);
  ((half == kBefore + 1 ? turn_back<D, kBefore + 1>(e, position, column, dk) : void()), ...);
}

// Two neighbouring features of each 8.
template <int D>
__device__ inline void write_row(bf16* to, const float (&sums)[D / 2], int r, float factor) {
#pragma unroll
  for (int n = 0; n < D / 8; ++n)
    *reinterpret_cast<std::uint32_t*>(to + 8 * n) =
        pack_pair(sums[4 * n + 2 * r] * factor, sums[4 * n + 2 * r + 1] * factor);
}

template <int D>
__device__ inline void finish(const Engine& e, const Item& item, const KeyNumbers& keys, const Lane& lane,
                              float (&dk)[D / 2], float (&dv)[D / 2]) {
  std::int64_t position[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = lane.row + 8 * r;
    position[r] = item.first + min(row, item.real - 1);
    if (keys.place[row] >= 0)
      add_row<D>(static_cast<const float*>(e.partial) + keys.place[row] * 2 * D + lane.column, r, dk, dv);
    else if (e.column_heads != nullptr && row < item.real && lane.column == 0)
      e.column_heads[(item.b * e.Hkv + item.kv) * e.T + item.first + row] = 0;
  }
  turn_back<D>(e, position, lane.column, dk, std::make_integer_sequence<int, D / 16>());
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (lane.row + 8 * r >= item.real) continue;
    bf16* to =
        static_cast<bf16*>(e.dqkv) + (item.b * e.T + position[r]) * e.features() + (e.H + item.kv) * D + lane.column;
    write_row<D>(to, dk, r, static_cast<float>(e.scale));
    write_row<D>(to + e.Hkv * D, dv, r, 1);
  }
}

template <int D>
__global__ void __launch_bounds__(kKeyThreads, 1)
    backward_keys(const __grid_constant__ Engine e, const __grid_constant__ CUtensorMap q_map,
                  const __grid_constant__ CUtensorMap dout_map, const __grid_constant__ CUtensorMap k_map,
                  const __grid_constant__ CUtensorMap v_map, int items, float factor) {
  using S = KeyShared<D>;
  S& s = S::open();
  if (threadIdx.x < kWarpgroup) {
    keep_registers<S::kSenderRegisters>();
    begin_turns();
    if (threadIdx.x < kSenders) send_queries<D, false, false>(e, &q_map, &dout_map, s);
    else send_keys<D>(e, &k_map, &v_map, s, items);
    return;
  }
  take_registers<S::kConsumerRegisters>();
  const Lane lane;
  Ring<S::kStages> ring;
  for (Ring<2> buffer;; ++buffer.count) {
    wait(&s.keys_full[buffer.at()], buffer.phase());
    const Item& item = s.items[buffer.at()];
    if (item.real == 0) return;
    SpanPairs pairs{lane, item.first + lane.warpgroup_row(), factor};
    float dk[D / 2], dv[D / 2];
    consume<D>(s, buffer.at(), ring, lane, pairs, dk, dv);
    finish<D>(e, item, s.keys[buffer.at()], lane, dk, dv);
    release(&s.keys_empty[buffer.at()]);
  }
}

template <int D>
void launch_keys(const Engine& e, Stream stream) {
  const std::int64_t items = e.B * e.Hkv * ((e.T + kItemKeys - 1) / kItemKeys);
  require(items < kMostItems, "attention backward, keys", items, " items exceed a launch");
  start("attention backward, keys", backward_keys<D>, persistent_blocks(items), kKeyThreads, kKeySharedBytes<D>, stream,
        e, map_rows(e.q, e.B, e.T, e.H, D, kStageQueries), map_rows(e.dout, e.B, e.T, e.H, D, kStageQueries),
        map_rows(e.k, e.B, e.T, e.Hkv, D, kItemKeys), map_rows(e.v, e.B, e.T, e.Hkv, D, kItemKeys),
        static_cast<int>(items), static_cast<float>(e.scale * kLog2E));
}

}  // namespace

void backward_keys(const Engine& e, Stream stream) {
  if (e.plan.from_BHT != nullptr) sum_chunks(e, stream);
  e.D == 64 ? launch_keys<64>(e, stream) : launch_keys<128>(e, stream);
}

}  // namespace sieve::cuda::hopper
