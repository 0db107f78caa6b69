// The lists and words of a slab: one block of threads a unit, a warp a pair of tiles.
#include <algorithm>

#include "attention/kernels/cuda/pattern_lists.cuh"
#include "tensor/kernels/cuda/block.cuh"

namespace sieve::cuda {
namespace {

constexpr std::size_t kSlabBytes = std::size_t{256} << 20;
constexpr int kBins = 256;  // neighbouring buckets share one where there are more: order is a matter of speed alone
constexpr int kSortThreads = 1024, kSortWarps = kSortThreads / 32;
enum State : std::int32_t { kUnseen = 0, kWhole = 1, kPartial = 2 };

// The bucket of a position: of hash, or its column.
__device__ std::int32_t bucket_of(const PairPattern& p, std::int64_t b, std::int64_t h, std::int64_t i) {
  if (p.kind == AttentionKind::hash) return *p.choice(b, h, i);
  return static_cast<std::int32_t>((i - p.start_of(b, i)) % p.spec.stride);
}
__device__ int bin_of(const PairPattern& p, std::int32_t bucket) {
  const std::int64_t buckets = p.kind == AttentionKind::hash ? p.spec.buckets : p.spec.stride;
  const std::int64_t bin = buckets > kBins ? bucket * std::int64_t{kBins} / buckets : bucket;
  return bin < 0 ? 0 : bin < kBins ? static_cast<int>(bin) : kBins - 1;
}

// One block a plan: a stable counting sort of its positions by bucket. Every warp owns a run of them.
__global__ void __launch_bounds__(kSortThreads)
    sort_by_bucket(const PairPattern p, std::int64_t heads, std::int32_t* order) {
  __shared__ std::int32_t next[kSortWarps][kBins];
  __shared__ std::int32_t totals[kBins];
  const auto thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const std::int64_t plan = blockIdx.x, b = plan / heads, h = plan % heads;
  const std::int64_t each = (p.T + kSortThreads - 1) / kSortThreads * 32, begin = warp * each,
                     end = begin + each < p.T ? begin + each : p.T;
  for (int x = thread; x < kSortWarps * kBins; x += kSortThreads) next[x / kBins][x % kBins] = 0;
  __syncthreads();
  for (std::int64_t i = begin + lane; i < end; i += 32) atomicAdd(&next[warp][bin_of(p, bucket_of(p, b, h, i))], 1);
  __syncthreads();
  if (thread < kBins) {  // where each warp's positions of the bin begin, but for the bins before
    std::int32_t sum = 0;
    for (int w = 0; w < kSortWarps; ++w) {
      const std::int32_t n = next[w][thread];
      next[w][thread] = sum;
      sum += n;
    }
    totals[thread] = sum;
  }
  __syncthreads();
  if (thread < kBins) {
    std::int32_t before = 0;
    for (int x = 0; x < thread; ++x) before += totals[x];
    for (int w = 0; w < kSortWarps; ++w) next[w][thread] += before;
  }
  __syncthreads();
  for (std::int64_t at = begin; at < end; at += 32) {
    const bool real = at + lane < end;
    const int bin = real ? bin_of(p, bucket_of(p, b, h, at + lane)) : -1;
    const unsigned same = __match_any_sync(0xffffffffu, bin), before = same & ((1u << lane) - 1);
    const std::int32_t first = real ? next[warp][bin] : 0;
    __syncwarp();
    if (real) order[plan * p.T + first + __popc(before)] = static_cast<std::int32_t>(at + lane);
    if (real && before == 0) next[warp][bin] = first + __popc(same);
    __syncwarp();
  }
}

// A query tile against a block of keys, by one warp: the words of rows lane and lane + 32.
struct PairOfTiles {
  int i[2];  // positions of the lane's queries; -1: none
  Word word[2];
};

// Rows in the order of positions.
__device__ PairOfTiles see_neighbours(const PairPattern& p, std::int64_t b, std::int64_t h, std::int64_t tile,
                                      std::int64_t block) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  PairOfTiles pair;
#pragma unroll
  for (int x = 0; x < 2; ++x) {
    pair.i[x] = PatternLists::position(nullptr, tile * kSide + x * 32 + lane, p.T);
    pair.word[x] = pair.i[x] < 0 ? 0 : seen_word(p, b, h, pair.i[x], block * kSide);
  }
  return pair;
}

// Rows and keys sorted by bucket: those before the query in its bucket, and the query itself in a column that stands
// alone.
__device__ PairOfTiles see_buckets(const PairPattern& p, const std::int32_t* order, std::int64_t b, std::int64_t h,
                                   std::int64_t tile, std::int64_t block) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int self = p.kind == AttentionKind::strided && p.spec.part == PatternPart::columns ? 1 : 0;
  PairOfTiles pair;
  std::int32_t mine[2], bucket[2];
  int key[2], start[2];
#pragma unroll
  for (int x = 0; x < 2; ++x) {
    pair.i[x] = PatternLists::position(order, tile * kSide + x * 32 + lane, p.T);
    key[x] = PatternLists::position(order, block * kSide + x * 32 + lane, p.T);
    pair.word[x] = 0;
    mine[x] = pair.i[x] >= 0 ? bucket_of(p, b, h, pair.i[x]) : 0;
    bucket[x] = key[x] >= 0 ? bucket_of(p, b, h, key[x]) : 0;
    start[x] = pair.i[x] >= 0 ? static_cast<int>(p.start_of(b, pair.i[x])) : 0;
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    for (int from = 0; from < 32; ++from) {
      const int j = __shfl_sync(0xffffffffu, key[half], from);
      const std::int32_t other = __shfl_sync(0xffffffffu, bucket[half], from);
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        const bool seen = j >= start[x] && j < pair.i[x] + self && j >= 0 && other == mine[x];
        pair.word[x] |= static_cast<Word>(seen) << (half * 32 + from);
      }
    }
  }
  return pair;
}

// Rows become columns.
__device__ void transpose(Word (&word)[2]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Word turned[2] = {0, 0};
#pragma unroll
  for (int x = 0; x < 2; ++x) {
    const auto first = static_cast<std::uint32_t>(word[0] >> (32 * x)),
               second = static_cast<std::uint32_t>(word[1] >> (32 * x));
#pragma unroll 8
    for (int c = 0; c < 32; ++c) {
      const unsigned low = __ballot_sync(0xffffffffu, (first >> c & 1) != 0),
                     high = __ballot_sync(0xffffffffu, (second >> c & 1) != 0);
      if (lane == c) turned[x] = static_cast<Word>(high) << 32 | low;
    }
  }
  word[0] = turned[0], word[1] = turned[1];
}

// The tiles that can have pairs with the unit's. No query sees a later key; in slots sorted by bucket that holds too:
// within a bin positions ascend.
template <bool kKeys>
__device__ Interval others_of(const PairPattern& p, const PatternLists& lists, const std::int32_t* order,
                              std::int64_t b, std::int64_t h, std::int64_t side) {
  const auto own = static_cast<std::int32_t>(side), all = static_cast<std::int32_t>(lists.sides);
  if (order == nullptr)
    return kKeys ? Interval{own, all}
                 : Interval{static_cast<std::int32_t>(p.start_of(b, side * kSide) / kSide), own + 1};
  const auto bin_at = [&](std::int64_t slot) {
    return bin_of(p, bucket_of(p, b, h, order[slot < p.T ? slot : p.T - 1]));
  };
  // Queries: the first tile that ends in their first bin or later. Keys: the first that begins beyond their last bin.
  const int mine = kKeys ? bin_at(side * kSide + kSide - 1) : bin_at(side * kSide);
  std::int32_t low = kKeys ? own + 1 : 0, high = kKeys ? all : own;
  while (low < high) {
    const std::int32_t middle = (low + high) / 2;
    const std::int64_t first = static_cast<std::int64_t>(middle) * kSide;
    if (kKeys ? bin_at(first) > mine : bin_at(first + kSide - 1) >= mine) high = middle;
    else low = middle + 1;
  }
  return kKeys ? Interval{own, low} : Interval{low, own + 1};
}

// One warp: drops what is not seen and moves the rest to the front.
__device__ void close_ranks(std::int32_t* entries, const Interval& others, std::int32_t* count) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  std::int32_t filled = 0;
  for (std::int32_t at = others.begin; at < others.end; at += 32) {
    const std::int32_t state = at + lane < others.end ? entries[at + lane] : kUnseen;
    const unsigned seen = __ballot_sync(0xffffffffu, state != kUnseen);  // all have read, and none writes ahead
    if (state != kUnseen)
      entries[filled + __popc(seen & ((1u << lane) - 1))] = 2 * (at + lane) + (state == kPartial ? 1 : 0);
    filled += __popc(seen);
    __syncwarp();
  }
  if (lane == 0) *count = filled;
}

template <bool kKeys>
__global__ void __launch_bounds__(kThreads) fill(const PairPattern p, const PatternLists lists) {
  const std::int64_t unit = blockIdx.x, plan = lists.plan(unit), side = side_of<kKeys>(lists, unit),
                     b = plan / lists.heads, h = plan % lists.heads;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const std::int32_t* order = lists.order_of(plan);
  std::int32_t* entries = lists.entries + unit * lists.sides;
  const Interval others = others_of<kKeys>(p, lists, order, b, h, side);
  for (std::int64_t other = others.begin + warp; other < others.end; other += kThreads / 32) {
    const std::int64_t tile = kKeys ? other : side, block = kKeys ? side : other;
    State state = kUnseen;
    if (order != nullptr || (block + 1) * kSide > p.start_of(b, tile * kSide)) {  // else of an earlier document
      PairOfTiles pair =
          order != nullptr ? see_buckets(p, order, b, h, tile, block) : see_neighbours(p, b, h, tile, block);
      const bool some = (pair.word[0] | pair.word[1]) != 0;
      const bool all = (pair.i[0] < 0 || ~pair.word[0] == 0) && (pair.i[1] < 0 || ~pair.word[1] == 0);
      if (__any_sync(0xffffffffu, some)) state = __all_sync(0xffffffffu, all) ? kWhole : kPartial;
      if (state == kPartial) {
        if constexpr (kKeys) transpose(pair.word);
        Word* words = lists.words + (unit * lists.sides + other) * kSide;
        words[lane] = pair.word[0], words[32 + lane] = pair.word[1];
      }
    }
    if (lane == 0) entries[other] = state;
  }
  __syncthreads();
  if (warp == 0) close_ranks(entries, others, lists.counts + unit);
}

bool fits_tensor_cores(const PatternForwardArgs& a) {  // as far as the memory goes
  return a.softmax.dtype == DType::bf16 && (a.softmax.D == kSide || a.softmax.D == 2 * kSide);
}
bool sorts(const PatternForwardArgs& a) {
  if (a.pattern.kind == AttentionKind::hash) return true;
  return a.pattern.kind == AttentionKind::strided && a.pattern.spec.part != PatternPart::local && fits_tensor_cores(a);
}
bool has_phases(const PatternForwardArgs& a) {
  return sorts(a) && a.pattern.kind == AttentionKind::strided && a.pattern.spec.part == PatternPart::merged;
}

std::int64_t plan_rows(const PatternForwardArgs& a) {
  return a.pattern.document_starts_BT != nullptr || a.pattern.choice_BHTN != nullptr ? a.softmax.B : 1;
}

}  // namespace

PatternSpace space_of(const PatternForwardArgs& a, bool backward) {
  PatternSpace s;
  s.engine = workspace_of(a.softmax, backward, false);
  s.bytes = (s.engine.bytes + 255) / 256 * 256;
  const auto take = [&](std::int64_t elements, std::size_t size) {
    const std::size_t at = s.bytes;
    s.bytes += (static_cast<std::size_t>(elements) * size + 255) / 256 * 256;
    return at;
  };
  const std::int64_t sides = (a.softmax.T + kSide - 1) / kSide, plans = plan_rows(a) * a.pattern_heads;
  if (sides == 0) return s;
  const std::size_t unit = static_cast<std::size_t>(sides) * (kSide * sizeof(Word) + sizeof(std::int32_t));
  s.slab = std::min(plans * sides, std::max<std::int64_t>(1, static_cast<std::int64_t>(kSlabBytes / unit)));
  if (sorts(a)) s.order = take(plans * a.softmax.T, sizeof(std::int32_t));
  s.counts = take(s.slab, sizeof(std::int32_t));
  s.entries = take(s.slab * sides, sizeof(std::int32_t));
  s.words = take(s.slab * sides * kSide, sizeof(Word));
  if (!has_phases(a)) return s;
  const std::int64_t rows = a.softmax.B * a.softmax.T, H = a.softmax.H;
  s.between = take(rows * (backward ? H + 2 * a.softmax.Hkv : H) * a.softmax.D, sizeof(float));
  if (!backward && a.softmax.statistics_BHT == nullptr) s.statistics = take(rows * H, sizeof(float));
  return s;
}

PatternLists lists_of(const PatternForwardArgs& a, const PatternSpace& space) {
  auto* memory = static_cast<unsigned char*>(a.softmax.workspace);
  PatternLists lists;
  lists.rows = plan_rows(a), lists.heads = a.pattern_heads;
  lists.T = a.softmax.T, lists.sides = (a.softmax.T + kSide - 1) / kSide;
  if (sorts(a)) lists.order = reinterpret_cast<std::int32_t*>(memory + space.order);
  if (has_phases(a)) lists.between = reinterpret_cast<float*>(memory + space.between);
  lists.counts = reinterpret_cast<std::int32_t*>(memory + space.counts);
  lists.entries = reinterpret_cast<std::int32_t*>(memory + space.entries);
  lists.words = reinterpret_cast<Word*>(memory + space.words);
  return lists;
}

std::vector<PatternPhase> phases_of(const PatternForwardArgs& a, bool tensor_cores) {
  PatternPhase phase{a.pattern};
  phase.sorted = sorts(a) && (tensor_cores || a.pattern.kind == AttentionKind::hash);
  if (!phase.sorted || !has_phases(a)) return {phase};
  PatternPhase local{a.pattern};
  local.pattern.spec.part = PatternPart::local;
  local.ends = phase.begins = false;
  return {local, phase};
}

void sort_slots(const PatternForwardArgs& a, const PatternLists& lists, Stream stream) {
  if (lists.order == nullptr) return;
  start("pattern order", sort_by_bucket, lists.rows * lists.heads, kSortThreads, 0, stream, a.pattern, lists.heads,
        const_cast<std::int32_t*>(lists.order));
}

void fill_lists(const PatternPhase& phase, const PatternLists& lists, bool keys, Stream stream) {
  start("pattern lists", keys ? fill<true> : fill<false>, lists.units, kThreads, 0, stream, phase.pattern, lists);
}

}  // namespace sieve::cuda
