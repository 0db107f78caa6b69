// Backward towards gathered keys: an item is a chunk of queries and 128 entries of its list. Its sums of dK and dV wait
// in the workspace (sum_chunks.cu, backward_keys.cu).
#include "attention/kernels/cuda/hopper/query_stream.cuh"

namespace sieve::cuda::hopper {
namespace {

// ---- Senders of keys
// What is known of the item's keys. `list_row` of (B, Hs), `list` of (B, Hs, lists).
template <bool kSoft>
__device__ inline void look_up(const Engine& e, KeyNumbers& keys, std::int64_t list_row, const std::int32_t* list,
                               int real, double center) {
#pragma unroll 1
  for (int r = static_cast<int>(threadIdx.x) % kSenders; r < kItemKeys; r += kSenders) {
    const std::int32_t key = r < real ? list[r] : -1;
    keys.key[r] = key;
    if (key < 0) {  // seen throughout: what comes of it nobody reads, and masks are needless
      keys.from[r] = keys.band_to[r] = 0;
      keys.to[r] = keys.band_from[r] = kNever;
      keys.z[r] = 0;
      continue;
    }
    const std::int64_t j = list_row * e.T + key;
    const Interval seen = spans::selected_queries(key, {e.plan.from_BHT[j], e.plan.to_BHT[j]}, e.plan.window);
    keys.from[r] = seen.begin, keys.to[r] = seen.end;
    if constexpr (kSoft) {
      keys.band_from[r] = e.gate.band_from[j], keys.band_to[r] = e.gate.band_to[j];
      keys.z[r] = static_cast<float>(e.gate.z[j] - center);
    } else {
      keys.band_from[r] = kNever;
    }
  }
}

// What the keys of a warpgroup have in common: each of the two sending warps looks at one's.
__device__ inline void sum_up(KeyNumbers& keys) {
  const int half = static_cast<int>(threadIdx.x) % kSenders / 32;
  Interval any{kNever, 0}, all{0, kNever};
  std::int32_t gated = kNever;
  for (int r = half * 64 + static_cast<int>(threadIdx.x) % 32; r < half * 64 + 64; r += 32) {
    if (keys.key[r] < 0) continue;  // what becomes of rows beyond the list nobody reads
    any = {min(any.begin, keys.from[r]), max(any.end, keys.to[r])};
    all = {max(all.begin, keys.from[r]), min(all.end, keys.to[r])};
    gated = min(gated, keys.band_from[r]);
  }
  keys.any[half] = {__reduce_min_sync(0xffffffffu, any.begin), __reduce_max_sync(0xffffffffu, any.end)};
  keys.all[half] = {__reduce_max_sync(0xffffffffu, all.begin), __reduce_min_sync(0xffffffffu, all.end)};
  keys.gated_from[half] = __reduce_min_sync(0xffffffffu, gated);
}

// Rows of K and V to shared memory, 16 bytes a copy; zeros where there is no key.
template <int D>
__device__ inline void gather(const Engine& e, KeyShared<D>& s, int buffer, std::int64_t b, std::int64_t kv) {
  constexpr int kPieces = D / 8;
  const auto* k = static_cast<const bf16*>(e.k.base) + e.k.offset + kv * D;
  const auto* v = static_cast<const bf16*>(e.v.base) + e.v.offset + kv * D;
  const std::uint32_t k_tile = shared_address(s.k[buffer]), v_tile = shared_address(s.v[buffer]);
  const int thread = static_cast<int>(threadIdx.x) % kSenders, piece = thread % kPieces;
  const std::uint32_t slab = piece / 8 * KeyShared<D>::kKeySlab;
#pragma unroll 1
  for (int r = thread / kPieces; r < kItemKeys; r += kSenders / kPieces) {
    const std::int32_t key = s.keys[buffer].key[r];
    const std::int64_t row = b * e.T + max(key, 0);
    const std::uint32_t to = slab + swizzled(r, piece % 8);
    copy_16(k_tile + to, k + row * e.k.stride + piece * 8, key >= 0);
    copy_16(v_tile + to, v + row * e.v.stride + piece * 8, key >= 0);
  }
  commit_copies();
  wait_copies<0>();
  fence_shared_for_async();
}

// What is to be done with item `item`: its head and list, and where in the list it begins. Items fit in 31 bits.
struct RowItem {
  int b, kv, chunk, line, first, left;  // line: a list of one head; left: entries from `first` on

  __device__ RowItem(const Engine& e, int item) {
    const RowLists& lists = e.plan.chunks;
    const int blocks = static_cast<int>((lists.capacity + kItemKeys - 1) / kItemKeys);
    line = item / blocks;
    // A line's blocks are turned by its number: the last ones of many lists are empty, and would else always be the
    // same thread blocks' turn.
    first = (item % blocks + line % blocks) % blocks * kItemKeys;
    const int head = line / static_cast<int>(lists.lists), heads = static_cast<int>(e.Hkv);
    chunk = line % static_cast<int>(lists.lists);
    b = head / heads, kv = head % heads;
    left = count_of(lists, list(e)) - first;
  }
  __device__ std::int64_t list(const Engine& e) const { return e.list_row(b, kv) * e.plan.chunks.lists + chunk; }
  // What z and tau are counted from: a finite number near both.
  __device__ double center(const Engine& e) const {
    const double* tau = e.gate.tau + e.list_row(b, kv) * e.T;
    const double at_first = tau[chunk * e.plan.chunks.queries];
    if (!isinf(at_first)) return at_first;
    return e.gate.z[e.list_row(b, kv) * e.T + e.plan.chunks.keys[list(e) * e.plan.chunks.capacity + first]];
  }
};

template <int D, bool kSoft>
__device__ inline void send_keys(const Engine& e, KeyShared<D>& s, int items) {
  const RowLists& lists = e.plan.chunks;
  Ring<2> buffer;
  for (int item = static_cast<int>(blockIdx.x); item < items; item += static_cast<int>(gridDim.x)) {
    const RowItem own(e, item);
    if (own.left <= 0) continue;
    Item& to = s.items[buffer.at()];
    wait(&s.keys_empty[buffer.at()], buffer.phase() ^ 1);
    if (threadIdx.x % kSenders == 0) {
      const Interval queries = spans::tile_queries(own.chunk, lists.queries, e.T);
      to.b = own.b, to.kv = own.kv, to.first = own.first, to.real = min(own.left, kItemKeys);
      to.q_begin = queries.begin, to.q_end = queries.end;
      to.place = own.line * lists.capacity + own.first;
      to.center = kSoft ? own.center(e) : 0;
    }
    meet(kSenderBarrier, kSenders);
    look_up<kSoft>(e, s.keys[buffer.at()], e.list_row(to.b, to.kv),
                   lists.keys + own.list(e) * lists.capacity + own.first, to.real, to.center);
    meet(kSenderBarrier, kSenders);
    sum_up(s.keys[buffer.at()]);
    gather<D>(e, s, buffer.at(), to.b, to.kv);
    arrive(&s.keys_full[buffer.at()]);
    ++buffer.count;
  }
  wait(&s.keys_empty[buffer.at()], buffer.phase() ^ 1);
  if (threadIdx.x % kSenders == 0) s.items[buffer.at()].real = 0;
  arrive(&s.keys_full[buffer.at()]);
}

// ---- Consumers
// Gathered keys: intervals of queries, thresholds (differentiate() of engine.cuh has the formulas). kMode matters if
// kSoft.
template <bool kSoft, GateMode kMode>
struct RowPairs {
  static constexpr bool kGates = kSoft;

  const KeyNumbers& keys;
  const Lane& lane;
  float factor;
  float column[2] = {0, 0};  // sums of the score gradient

  __device__ RowPairs(const KeyNumbers& keys, const Lane& lane, float factor)
      : keys(keys), lane(lane), factor(factor) {}

  __device__ Pass look(const QueryNumbers& x) const {
    const int q0 = x.q0, q1 = q0 + kStageQueries, half = lane.row / 64;
    const Interval any = keys.any[half], all = keys.all[half];
    if (any.begin >= q1 || any.end <= q0) return Pass::skip;
    if (kSoft && keys.gated_from[half] < q1) return Pass::gated;
    return all.begin <= q0 && all.end >= q1 ? Pass::clean : Pass::masked;
  }
  // Pairs of the tile that count, and those of them whose key is in the query's band.
  __device__ unsigned seen(const QueryNumbers& x) const {
    const int first = x.q0 + lane.column, row = lane.row;
    return columns_in(keys.from[row] - first, keys.to[row] - first) |
           columns_in(keys.from[row + 8] - first, keys.to[row + 8] - first) << 16;
  }
  __device__ unsigned in_band(const QueryNumbers& x) const {
    const int first = x.q0 + lane.column, row = lane.row;
    return columns_in(keys.band_from[row] - first, keys.band_to[row] - first) |
           columns_in(keys.band_from[row + 8] - first, keys.band_to[row + 8] - first) << 16;
  }

  __device__ void weigh(const QueryNumbers& x, Pass pass, float (&s)[32]) const {
    if (kSoft && pass == Pass::gated) return;
    plain_weights(x, s, factor, lane.column);
    if (pass != Pass::masked) return;
    const unsigned counts = seen(x);
#pragma unroll
    for (int y = 0; y < 32; ++y) s[y] = has(counts, y) ? s[y] : 0;
  }

  __device__ void differentiate(const QueryNumbers& x, Pass pass, float (&s)[32], float (&dp)[32]) {
    if (kSoft && pass == Pass::gated) return differentiate_gated(x, s, dp);
    plain_gradients(x, s, dp, lane.column);
  }
  // Most keys neither come nor go nor cross a border of the band within 64 queries: where that holds of a warp's 16, no
  // pair is asked.
  __device__ void differentiate_gated(const QueryNumbers& x, float (&s)[32], float (&dp)[32]) {
    const int q0 = x.q0, q1 = q0 + kStageQueries;
    bool even = true, learns[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = lane.row + 8 * r;
      const Interval counts{keys.from[row], keys.to[row]}, band{keys.band_from[row], keys.band_to[row]};
      learns[r] = band.begin <= q0 && band.end >= q1;
      even = even && counts.begin <= q0 && counts.end >= q1 && (learns[r] || band.begin >= q1 || band.end <= q0);
    }
    if (__shfl_sync(0xffffffffu, __all_sync(0xffffffffu, even ? 1 : 0), 0) != 0)
      return differentiate_pairs<true>(x, 0, 0, learns, s, dp);
    const unsigned counts = seen(x);
    learns[0] = learns[1] = true;
    differentiate_pairs<false>(x, counts, counts & in_band(x), learns, s, dp);
  }
  // `counts` and `band`: the pairs that do, and those that learn; kEven: all count, and rows learn as a whole.
  template <bool kEven>
  __device__ void differentiate_pairs(const QueryNumbers& x, unsigned counts, unsigned band, const bool (&learns)[2],
                                      float (&s)[32], float (&dp)[32]) {
    constexpr bool kLogit = kMode == GateMode::kv, kValue = kLogit || kMode == GateMode::value;
    const int row = lane.row;
    const float z[2] = {keys.z[row], keys.z[row + 8]};
    float sums[2] = {0, 0};
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float2 delta = pair_at(x.delta, 8 * n + lane.column), tau = pair_at(x.tau, 8 * n + lane.column),
                   statistics = pair_at(x.statistics, 8 * n + lane.column);
#pragma unroll
      for (int y = 0; y < 4; ++y) {
        const int r = y / 2;
        const float m = kMode == GateMode::hard ? 1 : __saturatef(z[r] - (y % 2 == 0 ? tau.x : tau.y));
        const float logit = s[4 * n + y] * factor, value = dp[4 * n + y];
        const float weight = fast_power_of_2((kLogit ? logit * m : logit) - (y % 2 == 0 ? statistics.x : statistics.y));
        const float share = kEven || has(counts, 4 * n + y) ? weight : 0;
        const float slope = (kValue ? m * value : value) - (y % 2 == 0 ? delta.x : delta.y);
        // dL/dm over the share.
        float g = kValue ? value : slope;
        if constexpr (kLogit) g = fmaf(slope * static_cast<float>(kLn2), logit, g);
        if (kEven || has(band, 4 * n + y)) sums[r] = fmaf(share, g, sums[r]);
        s[4 * n + y] = share * m;
        dp[4 * n + y] = (kLogit || kMode == GateMode::prob ? s[4 * n + y] : share) * slope;
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (learns[r]) column[r] += sums[r];
    }
  }
};

template <int D>
__device__ inline void keep_sums(const Engine& e, const Item& item, const Lane& lane, const float (&dk)[D / 2],
                                 const float (&dv)[D / 2], const float (&column)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = lane.row + 8 * r;
    const float column_sum = row_sum(column[r]);
    if (row >= item.real) continue;
    float* to = static_cast<float*>(e.partial) + (item.place + row) * 2 * D + lane.column;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      *reinterpret_cast<float2*>(to + 8 * n) = make_float2(dk[4 * n + 2 * r], dk[4 * n + 2 * r + 1]);
      *reinterpret_cast<float2*>(to + D + 8 * n) = make_float2(dv[4 * n + 2 * r], dv[4 * n + 2 * r + 1]);
    }
    if (e.column_part != nullptr && lane.column == 0) e.column_part[item.place + row] = static_cast<double>(column_sum);
  }
}

template <int D, bool kSoft, GateMode kMode>
__global__ void __launch_bounds__(kKeyThreads, 1)
    backward_rows(const __grid_constant__ Engine e, const __grid_constant__ CUtensorMap q_map,
                  const __grid_constant__ CUtensorMap dout_map, int items, float factor) {
  KeyShared<D>& s = KeyShared<D>::open();
  if (threadIdx.x < kWarpgroup) {
    keep_registers<KeyShared<D>::kSenderRegisters>();
    begin_turns();
    if (threadIdx.x < kSenders) send_queries<D, true, kSoft>(e, &q_map, &dout_map, s);
    else send_keys<D, kSoft>(e, s, items);
    return;
  }
  take_registers<KeyShared<D>::kConsumerRegisters>();
  const Lane lane;
  Ring<KeyShared<D>::kStages> ring;
  for (Ring<2> buffer;; ++buffer.count) {
    wait(&s.keys_full[buffer.at()], buffer.phase());
    const Item& item = s.items[buffer.at()];
    if (item.real == 0) return;
    RowPairs<kSoft, kMode> pairs(s.keys[buffer.at()], lane, factor);
    float dk[D / 2], dv[D / 2];
    consume<D>(s, buffer.at(), ring, lane, pairs, dk, dv);
    keep_sums<D>(e, item, lane, dk, dv, pairs.column);
    release(&s.keys_empty[buffer.at()]);
  }
}

template <int D, bool kSoft, GateMode kMode>
void launch_rows(const Engine& e, Stream stream) {
  const RowLists& lists = e.plan.chunks;
  const std::int64_t items = e.B * e.Hkv * lists.lists * ((lists.capacity + kItemKeys - 1) / kItemKeys);
  require(lists.queries % kStageQueries == 0, "attention backward, rows", "lists of ", lists.queries,
          " queries: tiles of ", kStageQueries, " must not cross their borders");
  require(items < kMostItems, "attention backward, rows", items, " items exceed a launch");
  start("attention backward, rows", backward_rows<D, kSoft, kMode>, persistent_blocks(items), kKeyThreads,
        kKeySharedBytes<D>, stream, e, map_rows(e.q, e.B, e.T, e.H, D, kStageQueries),
        map_rows(e.dout, e.B, e.T, e.H, D, kStageQueries), static_cast<int>(items),
        static_cast<float>(e.scale * kLog2E));
}

template <int D>
void launch_rows(const Engine& e, Stream stream) {
  if (e.gate.z == nullptr || (e.gate.mode == GateMode::hard && e.column_part == nullptr))
    return launch_rows<D, false, GateMode::hard>(e, stream);
  if (e.gate.mode == GateMode::kv) return launch_rows<D, true, GateMode::kv>(e, stream);
  if (e.gate.mode == GateMode::value) return launch_rows<D, true, GateMode::value>(e, stream);
  if (e.gate.mode == GateMode::prob) return launch_rows<D, true, GateMode::prob>(e, stream);
  launch_rows<D, true, GateMode::hard>(e, stream);
}

}  // namespace

void backward_rows(const Engine& e, Stream stream) {
  e.D == 64 ? launch_rows<64>(e, stream) : launch_rows<128>(e, stream);
}

}  // namespace sieve::cuda::hopper
