// The best scores before each chunk, its base (select_chunks.h). Chunks go in groups of eight. Every group gathers its
// candidates, best first; one block a row then goes from group to group; at last every key of a group, and of its base,
// finds its places in the bases inside the group, all at once: by how many keys of each chunk come before it.
#include "attention/kernels/cuda/launch.cuh"
#include "attention/kernels/cuda/select_chunks.h"

namespace sieve::cuda {
namespace {

// A row's block: wide where rows are fewer than multiprocessors, else such that several fit one.
constexpr int kWideGrow = 1024, kNarrowGrow = 512;
constexpr std::int64_t kFewRows = 128;
constexpr std::int64_t kStagedBase = 4096;                    // scores
constexpr std::int64_t kWideShared = std::int64_t{96} << 10;  // where all that a group gathered lies beside the bases

// A group of a step: its row, its first chunk, how many, and the first slot of its bases.
struct Group {
  std::int64_t row, at, chunk, slot;
  int chunks;

  __device__ Group(const Chunks& c, std::int64_t item) {
    const auto groups = static_cast<unsigned>(c.groups());  // every thread divides: 32 bits
    row = static_cast<unsigned>(item) / groups;
    at = static_cast<unsigned>(item) % groups;
    chunk = c.first + at * kGroup;
    const std::int64_t left = c.count - at * kGroup;
    chunks = static_cast<int>(left < kGroup ? left : kGroup);
    slot = row * (c.slab + 1) + at * kGroup;
  }
  // The first of the group's chunks that a document with this begin has keys in, or 0.
  __device__ int first_of(std::int64_t begin) const {
    const std::int64_t first = begin / kChunk - chunk;
    return static_cast<int>(first > 0 ? first : 0);
  }
};

// The tails of a group's chunks in shared memory.
struct Tails {
  double* scores;  // kGroup lists of kChunk
  int sizes[kGroup];

  // The whole block of kChunk threads; chunks before `first` count as empty. Ends with a barrier.
  __device__ void read(const Chunks& c, const Group& g, int first) {
    const auto thread = static_cast<int>(threadIdx.x);
    const std::int64_t item = g.row * c.chunks + g.chunk;
#pragma unroll
    for (int v = 0; v < kGroup; ++v) {
      sizes[v] = v >= first && v < g.chunks ? c.tails[item + v] : 0;
      if (thread < sizes[v]) scores[v * kChunk + thread] = c.tail_sorted[(item + v) * kChunk + thread];
    }
    __syncthreads();
  }
  // How many keys of each chunk come before a score of chunk `own`: later keys win ties.
  __device__ void count_before(double u, int own, int (&before)[kGroup]) const {
    int most = 0;
#pragma unroll
    for (int v = 0; v < kGroup; ++v) before[v] = 0, most = sizes[v] > most ? sizes[v] : most;
    for (int step = most > 0 ? 1 << (31 - __clz(most)) : 0; step > 0; step /= 2) {
#pragma unroll
      for (int v = 0; v < kGroup; ++v) {
        const int next = before[v] + step;
        if (next > sizes[v]) continue;
        const double other = scores[v * kChunk + next - 1];
        if (other > u || (v > own && other == u)) before[v] = next;
      }
    }
  }
};

// One block a chunk of a group that is not a row's last: what the next chunk's document can want of the group.
__global__ void __launch_bounds__(kChunk, 4) gather_groups(const Chunks c) {
  const Group g(c, blockIdx.x / kGroup);
  const int source = static_cast<int>(blockIdx.x % kGroup), thread = static_cast<int>(threadIdx.x);
  const std::int64_t next = (g.chunk + g.chunks) * kChunk, size = c.gathered_size();
  if (next >= c.a.T || source >= g.chunks) return;
  const int first = g.first_of(c.begin_of(g.row, next));
  if (source > 0 && source < first) return;
  Tails tails{reinterpret_cast<double*>(dynamic_shared())};
  tails.read(c, g, first);
  if (source == 0 && thread == 0) {
    std::int64_t all = 0;
    for (int v = 0; v < kGroup; ++v) all += tails.sizes[v];
    c.gathered_counts[g.row * c.groups() + g.at] = static_cast<std::int32_t>(all < size ? all : size);
  }
  int mine = 0;
#pragma unroll
  for (int v = 0; v < kGroup; ++v) mine = v == source ? tails.sizes[v] : mine;
  if (thread >= mine) return;
  const double u = tails.scores[source * kChunk + thread];
  int before[kGroup], rank = thread;
  tails.count_before(u, source, before);
#pragma unroll
  for (int v = 0; v < kGroup; ++v) rank += v == source ? 0 : before[v];
  if (rank >= size) return;
  const std::int64_t to = (g.row * c.groups() + g.at) * size + rank, chunk = g.chunk + source;
  c.gathered[to] = u;
  c.gathered_keys[to] =
      static_cast<std::int32_t>(chunk * kChunk + c.tail_places[(g.row * c.chunks + chunk) * kChunk + thread]);
}

// A base in shared memory, best first.
struct Base {
  double* u;
  std::int32_t* keys;
};
// Does a key of the base come before a score of the group? `mixed`: the base holds keys of the group already.
template <bool mixed>
__device__ bool comes_first(const Base& base, int r, double u, std::int64_t start) {
  return base.u[r] > u || (mixed && base.u[r] == u && base.keys[r] >= start);
}
// The best P of the base and the m candidates of the group that starts at `start`; later keys win ties, those of the
// group stand in order. Four searches go side by side: of two scores of the base among the candidates, and of two
// candidates in the base. Ends with a barrier.
template <int kGrowThreads, bool mixed>
__device__ int merge(const Base& old, int n, const Base& fresh, int m, const Base& out, int P, std::int64_t start) {
  const auto thread = static_cast<int>(threadIdx.x);
  for (int base = 0; base < n || base < m; base += 2 * kGrowThreads) {
    const int x = base + thread, y = x + kGrowThreads;
    const double u = x < n ? old.u[x] : 0, v = y < n ? old.u[y] : 0, w = x < m ? fresh.u[x] : 0,
                 w2 = y < m ? fresh.u[y] : 0;
    const int searched = x < m ? n : 0, searched2 = y < m ? n : 0, most = searched > m ? searched : m;
    int before_u = 0, before_v = 0, before_w = 0, before_w2 = 0;
    const bool old_u = !mixed || (x < n && old.keys[x] < start), old_v = !mixed || (y < n && old.keys[y] < start);
    for (int step = most > 0 ? 1 << (31 - __clz(most)) : 0; step > 0; step /= 2) {
      const int a = before_u + step, b = before_v + step, d = before_w + step, e = before_w2 + step;
      if (a <= m && (old_u ? fresh.u[a - 1] >= u : fresh.u[a - 1] > u)) before_u = a;
      if (b <= m && (old_v ? fresh.u[b - 1] >= v : fresh.u[b - 1] > v)) before_v = b;
      if (d <= searched && comes_first<mixed>(old, d - 1, w, start)) before_w = d;
      if (e <= searched2 && comes_first<mixed>(old, e - 1, w2, start)) before_w2 = e;
    }
    if (x < n && x + before_u < P) out.u[x + before_u] = u, out.keys[x + before_u] = old.keys[x];
    if (y < n && y + before_v < P) out.u[y + before_v] = v, out.keys[y + before_v] = old.keys[y];
    if (x < m && x + before_w < P) out.u[x + before_w] = w, out.keys[x + before_w] = fresh.keys[x];
    if (y < m && y + before_w2 < P) out.u[y + before_w2] = w2, out.keys[y + before_w2] = fresh.keys[y];
  }
  __syncthreads();
  return n + m < P ? n + m : P;
}

// One block a row, group after group; `tile` gathered keys at a time.
template <int kGrowThreads>
__global__ void __launch_bounds__(kGrowThreads, kWideGrow / kGrowThreads) grow(const Chunks c, int tile) {
  const auto thread = static_cast<int>(threadIdx.x);
  const std::int64_t row = blockIdx.x, slots = row * (c.slab + 1), size = c.gathered_size();
  const int P = static_cast<int>(c.P);
  auto* const scores = reinterpret_cast<double*>(dynamic_shared());
  auto* const keys = reinterpret_cast<std::int32_t*>(scores + 2 * P + tile);
  Base now{scores, keys}, other{scores + P, keys + P};
  const Base fresh{scores + 2 * P, keys + 2 * P};
  int n = 0;
  const auto write = [&](std::int64_t slot) {
    for (int r = thread; r < n; r += kGrowThreads) {
      c.base[slot * P + r] = now.u[r];
      c.base_keys[slot * P + r] = now.keys[r];
    }
    if (thread == 0) c.base_counts[slot] = n;
  };
  if (c.first > 0) {
    n = c.base_counts[slots + c.slab];
    for (int r = thread; r < n; r += kGrowThreads) {
      now.u[r] = c.base[(slots + c.slab) * P + r];
      now.keys[r] = c.base_keys[(slots + c.slab) * P + r];
    }
  }
  for (std::int64_t x = 0; x < c.groups(); ++x) {
    write(slots + x * kGroup);  // what the thread itself wrote, or behind a barrier
    const std::int64_t start = (c.first + x * kGroup) * kChunk, group = row * c.groups() + x;
    const std::int64_t last = (x + 1) * kGroup < c.count ? (x + 1) * kGroup : c.count, next = (c.first + last) * kChunk;
    if (next >= c.a.T) return;  // the row's last
    // Only the document that goes on behind the group matters from here on.
    if (c.begin_of(row, next) >= start) n = 0;
    const int all = c.gathered_counts[group];
    for (int first = 0; first < all; first += tile) {
      const int m = all - first < tile ? all - first : tile;
      for (int q = thread; q < m; q += kGrowThreads) {
        fresh.u[q] = c.gathered[group * size + first + q];
        fresh.keys[q] = c.gathered_keys[group * size + first + q];
      }
      __syncthreads();
      if (n == P && fresh.u[0] < now.u[P - 1]) break;
      n = first == 0 ? merge<kGrowThreads, false>(now, n, fresh, m, other, P, start)
                     : merge<kGrowThreads, true>(now, n, fresh, m, other, P, start);
      const Base merged = other;
      other = now, now = merged;
    }
    __syncthreads();
  }
  write(slots + c.slab);
}

// One block a chunk of a group, and one for every kChunk scores of its base: where they lie in the bases of the group's
// chunks behind it, as long as their document goes on.
__global__ void __launch_bounds__(kChunk, 4) fill_bases(const Chunks c, unsigned sources, bool staged) {
  const Group g(c, blockIdx.x / sources);
  const int source = static_cast<int>(blockIdx.x % sources), thread = static_cast<int>(threadIdx.x),
            own = source < kGroup ? source : -1;
  if (own >= g.chunks) return;
  const std::int64_t start = g.chunk * kChunk, behind = start + (own + 1) * kChunk,
                     begin = c.begin_of(g.row, own < 0 ? start : (behind < c.a.T ? behind : c.a.T) - 1);
  const int P = static_cast<int>(c.P), n = c.base_counts[g.slot];
  if (source == 0 && thread > 0 && thread < g.chunks) {
    const std::int64_t theirs = c.begin_of(g.row, start + thread * kChunk);
    std::int64_t all = theirs < start ? n : 0;
    for (int v = g.first_of(theirs); v < thread; ++v) all += c.tails[g.row * c.chunks + g.chunk + v];
    c.base_counts[g.slot + thread] = static_cast<std::int32_t>(all < P ? all : P);
  }
  int end = own + 1 > 1 ? own + 1 : 1;  // chunks of the group that still want the document
  while (end < g.chunks && c.begin_of(g.row, start + end * kChunk) == begin) ++end;
  const int r = own < 0 ? (source - kGroup) * kChunk + thread : thread;
  if (end <= own + 1 || end <= 1 || r - thread >= (own < 0 ? n : kChunk)) return;  // whole blocks
  Tails tails{reinterpret_cast<double*>(dynamic_shared())};
  const bool after_base = own >= 0 && begin < start;
  const double* base = c.base + g.slot * P;
  if (after_base && staged) {
    double* copy = tails.scores + kGroup * kChunk;
    for (int q = thread; q < n; q += kChunk) copy[q] = base[q];
    base = copy;
  }
  tails.read(c, g, g.first_of(begin));
  int mine = n;
#pragma unroll
  for (int v = 0; v < kGroup; ++v) mine = v == own ? tails.sizes[v] : mine;
  if (r >= mine) return;
  const std::int64_t chunk = g.chunk + own;
  const double u = own < 0 ? base[r] : tails.scores[own * kChunk + r];
  const std::int32_t key =
      own < 0 ? c.base_keys[g.slot * P + r]
              : static_cast<std::int32_t>(chunk * kChunk + c.tail_places[(g.row * c.chunks + chunk) * kChunk + r]);
  int before[kGroup], rank = r;
  tails.count_before(u, own, before);
  if (after_base) {
    int better = 0;
    for (int step = n > 0 ? 1 << (31 - __clz(n)) : 0; step > 0; step /= 2) {
      if (better + step <= n && base[better + step - 1] > u) better += step;
    }
    rank += better;
  }
#pragma unroll
  for (int v = 0; v < kGroup; ++v) {
    if (v > 0 && v > own && v < end && rank < P) {
      c.base[(g.slot + v) * P + rank] = u;
      c.base_keys[(g.slot + v) * P + rank] = key;
    }
    if (v != own) rank += before[v];
  }
}

}  // namespace

void grow_bases(const Chunks& c, const Stream& stream) {
  constexpr std::size_t kLists = std::size_t{kGroup} * kChunk * sizeof(double);
  if (c.groups() > 1 || c.first + c.count < c.chunks)
    start("selection: groups", gather_groups, c.rows * c.groups() * kGroup, kChunk, kLists, stream, c);
  const std::int64_t entry = sizeof(double) + sizeof(std::int32_t), size = c.gathered_size();
  const bool few = c.rows <= kFewRows, wide = (2 * c.P + size) * entry <= kWideShared;
  const std::int64_t tile = wide ? size : kChunk;
  start("selection: bases", few ? grow<kWideGrow> : grow<kNarrowGrow>, c.rows, few ? kWideGrow : kNarrowGrow,
        static_cast<std::size_t>((2 * c.P + tile) * entry), stream, c, static_cast<int>(tile));
  const bool staged = c.P <= kStagedBase;
  const std::int64_t sources = kGroup + (c.P + kChunk - 1) / kChunk;
  start("selection: bases of groups", fill_bases, c.rows * c.groups() * sources, kChunk,
        kLists + (staged ? static_cast<std::size_t>(c.P) * sizeof(double) : 0), stream, c,
        static_cast<unsigned>(sources), staged);
}

}  // namespace sieve::cuda
