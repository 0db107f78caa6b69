// What happens inside a chunk, out of its base and its own keys (select_chunks.h): lives (select_lives.cuh), then the
// threshold of every query, which lies in [z_(k) - 1, z_(k)) by docs/attention.md, (2). There the piece of f that
// crosses k is found by Newton's steps inside a bracket; f comes from prefix sums over the base and over blocks of
// earlier arrivals, and from the few arrivals since. No query waits for an earlier one.
#include "attention/kernels/cuda/select_lives.cuh"
#include "tensor/kernels/cuda/block.cuh"

namespace sieve::cuda {
namespace {

constexpr int kDirect = 64;       // so many scores of a band are summed one by one
constexpr double kPrefixed = 64;  // prefix sums hold scores so near to the centre

// Of falling values: how many lie more than `by` above t.
__device__ inline int count_above(const double* values, int n, double t, double by) {
  int count = 0;
  for (int step = n > 0 ? 1 << (31 - __clz(n)) : 0; step > 0; step /= 2) {
    if (count + step <= n && values[count + step - 1] - by > t) count += step;
  }
  return count;
}

// Lanes that work on one query: 1, or kTeam neighbours that take the same turns everywhere.
constexpr int kTeam = kSettleThreads / kBlock;
static_assert(kTeam == 4);
__device__ inline int team_lane() { return static_cast<int>(threadIdx.x) % kTeam; }
__device__ inline unsigned team_mask() { return ((1u << kTeam) - 1) << (threadIdx.x % 32 / kTeam * kTeam); }
template <class A>
__device__ A team_sum(A v) {  // the same bits for every lane
  for (int offset = 1; offset < kTeam; offset *= 2) v += __shfl_xor_sync(team_mask(), v, offset);
  return v;
}

class ChunkThresholds : public ChunkLives {
 public:
  using ChunkLives::ChunkLives;

  // Ends with a barrier; find_lives of all threads lies behind one.
  __device__ void prepare_sums() {
    for (int r = thread(); r < candidates_; r += kSettleThreads) {
      own_.ranked[r] = operator_score(own_.ranked[r], c_.a.temperature);
    }
    for (int r = thread(); r < n_; r += kSettleThreads) base_[r] = operator_score(base_[r], c_.a.temperature);
    __syncthreads();
    centre_ = n_ == 0 ? (candidates_ > 0 ? own_.ranked[candidates_ / 2] : 0) : base_[n_ >= k_ ? k_ - 1 : n_ / 2];
    const int each = (n_ + kSettleThreads - 1) / kSettleThreads, begin = thread() * each,
              end = begin + each < n_ ? begin + each : n_;
    double mine = 0;
    for (int r = begin; r < end; ++r) mine += centred(base_[r]);
    double up = mine;
    for (int step = 1; step < 32; step *= 2) {
      const double other = __shfl_up_sync(0xffffffffu, up, step);
      if (thread() % 32 >= step) up += other;
    }
    if (thread() % 32 == 31) own_.parts[thread() / 32] = up;
    __syncthreads();
    double sum = up - mine;
    for (int w = 0; w < thread() / 32; ++w) sum += own_.parts[w];
    for (int r = begin; r < end; ++r) {
      sums_[r] = sum;
      sum += centred(base_[r]);
    }
    if (begin < n_ && end == n_) sums_[n_] = sum;
    __syncthreads();
  }

  __device__ void find_thresholds() const {
    const double guess = guess_start();
    for (int begin = 0; begin <= size_; begin += kBlock) {
      if (begin > 0) sum_earlier(begin - 1);
      const int y = begin + thread() / kTeam;
      if (y <= size_) {
        const double tau = threshold(y - 1, guess);
        if (team_lane() == 0) own_.taus.tau[y] = tau;
      }
      __syncthreads();
    }
    // Roundings of neighbours may cross: the largest so far.
    for (int step = 1; step <= size_; step *= 2) {
      double raised[kChunk / kSettleThreads + 1];
      for (int y = thread(), v = 0; y <= size_; y += kSettleThreads, ++v) {
        const int least = y <= continuing_ ? 0 : own_.first[y - 1] + 1;
        raised[v] = y - step >= least && own_.taus.tau[y - step] > own_.taus.tau[y] ? own_.taus.tau[y - step]
                                                                                    : own_.taus.tau[y];
      }
      __syncthreads();
      for (int y = thread(), v = 0; y <= size_; y += kSettleThreads, ++v) own_.taus.tau[y] = raised[v];
      __syncthreads();
    }
  }

  __device__ void write_thresholds() const {
    for (int p = thread(); p < kChunk; p += kSettleThreads) {
      const std::int64_t j = start_ + p;
      double tau = -INFINITY;
      if (j < c_.a.T && c_.a.delay < c_.end_of(row_, j) - j) {
        const std::int64_t begin = c_.begin_of(row_, j);
        const int arrived = own_.upto[p];
        const bool own = arrived > 0 && start_ + own_.place[arrived - 1] >= begin;
        if (j - begin >= k_) tau = own_.taus.tau[own ? arrived : 0];
        c_.a.tau_BHT[at(j + c_.a.delay)] = tau;
      }
      if (p == kChunk - 1) c_.last_tau[item_] = tau;
    }
  }

 private:
  __device__ double centred(double z) const {
    const double v = z - centre_;
    return v < -kPrefixed ? -kPrefixed : (v > kPrefixed ? kPrefixed : v);
  }

  // ---- Thresholds: the pool when key x has arrived is the base's first `pool` scores and the own ones that are in.
  struct Prefix {
    int scan, x, pool;  // own arrivals [scan, x] one by one, those before by tables where `tables`
    bool tables;
    double centre;  // of the sums
  };
  struct Piece {
    int saturated = 0, fractional = 0;
    double sum = 0;  // of the fractional scores less the centre
  };

  // Tables over the ranks, of arrivals before x that are in the pool then. Begins behind a barrier and ends with one.
  __device__ void sum_earlier(int x) const {
    static_assert(2 * kSettleThreads == kChunk);
    const int lane = thread() % 32, warp = thread() / 32, rank = 2 * thread();
    int counts[2];
    double sums[2];
    for (int r = 0; r < 2; ++r) {
      const int y = own_.at_rank[rank + r];
      const bool in = y < x && own_.left_pool[y] >= x;
      counts[r] = in, sums[r] = in ? centred(own_.ranked[rank + r]) : 0;
    }
    int count = counts[0] + counts[1];
    double sum = sums[0] + sums[1];
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, count, step);
      const double part = __shfl_up_sync(0xffffffffu, sum, step);
      if (lane >= step) count += other, sum += part;
    }
    if (lane == 31) own_.counts[warp] = count, own_.parts[warp] = sum;
    __syncthreads();
    for (int w = 0; w < warp; ++w) count += own_.counts[w], sum += own_.parts[w];
    own_.taus.alive[rank + 2] = static_cast<std::uint16_t>(count), own_.taus.sums[rank + 2] = sum;
    own_.taus.alive[rank + 1] = static_cast<std::uint16_t>(count - counts[1]), own_.taus.sums[rank + 1] = sum - sums[1];
    if (thread() == 0) own_.taus.alive[0] = 0, own_.taus.sums[0] = 0;
    __syncthreads();
  }

  __device__ double z_of(int x) const { return own_.ranked[own_.rank[x]]; }

  // Sum of values[begin .. end) less p's centre by prefix sums; false: too far from their centre, or too few.
  __device__ bool sum_prefixed(const Prefix& p, const double* values, const double* sums, int begin, int end, int count,
                               double& sum) const {
    if (end - begin <= kDirect || values[begin] - centre_ > kPrefixed || values[end - 1] - centre_ < -kPrefixed)
      return false;
    sum += sums[end] - sums[begin] + count * (centre_ - p.centre);
    return true;
  }
  __device__ void add(const Prefix& p, double z, double t, int times, Piece& piece) const {
    if (z <= t) return;
    if (z - 1 > t) {
      piece.saturated += times;
    } else {
      piece.fractional += times;
      piece.sum += times * (z - p.centre);
    }
  }

  // The piece of f just above t, looked for by `lanes` lanes, 1 or kTeam.
  template <int lanes>
  __device__ Piece piece_at(const Prefix& p, double t) const {
    int support, begin, end = 0, first = 0;
    if constexpr (lanes == 1) {
      support = count_above(base_, p.pool, t, 0), begin = count_above(base_, p.pool, t, 1);
    } else {  // each lane looks for one of the four
      const bool own = team_lane() >= 2;
      const int mine =
          count_above(own ? own_.ranked : base_, own ? (p.tables ? candidates_ : 0) : p.pool, t, team_lane() % 2);
      const int base = static_cast<int>(threadIdx.x) % 32 / kTeam * kTeam;
      support = __shfl_sync(team_mask(), mine, base), begin = __shfl_sync(team_mask(), mine, base + 1);
      end = __shfl_sync(team_mask(), mine, base + 2), first = __shfl_sync(team_mask(), mine, base + 3);
    }
    const int lane = lanes == 1 ? 0 : team_lane();
    Piece piece;  // the lane's share
    double sum = 0;
    if (!sum_prefixed(p, base_, sums_, begin, support, support - begin, sum)) {
      for (int r = begin + lane; r < support; r += lanes) piece.sum += base_[r] - p.centre;
    }
    if (p.tables &&
        !sum_prefixed(p, own_.ranked, own_.taus.sums, first, end, own_.taus.alive[end] - own_.taus.alive[first], sum)) {
      for (int r = first + lane; r < end; r += lanes)
        piece.sum += own_.taus.alive[r + 1] > own_.taus.alive[r] ? own_.ranked[r] - p.centre : 0;
    }
    for (int y = p.scan + lane; y <= p.x; y += lanes) {
      if (own_.left_pool[y] > p.x) add(p, z_of(y), t, 1, piece);
      const int pushed = own_.pushed_pool[y];
      if (pushed < p.scan && p.tables) add(p, z_of(pushed), t, -1, piece);
    }
    if constexpr (lanes > 1) {
      piece.saturated = team_sum(piece.saturated), piece.fractional = team_sum(piece.fractional);
      piece.sum = team_sum(piece.sum);
    }
    piece.saturated += begin, piece.fractional += support - begin, piece.sum += sum;
    if (p.tables)
      piece.saturated += own_.taus.alive[first], piece.fractional += own_.taus.alive[end] - own_.taus.alive[first];
    return piece;
  }

  // z of the worst of the k members after own key x, whose document's first arrival is `first`. The next newcomer of
  // the document pushes it out.
  __device__ double least_member(int x, int first, int base) const {
    const int end = x < continuing_ ? continuing_ : size_;
    for (int y = x + 1; y < end && own_.first[y] <= first; ++y) {
      const int pushed = own_.pushed_k[y];
      if (pushed != kNever) return pushed & kBaseMark ? base_[pushed & ~kBaseMark] : z_of(pushed);
    }
    int members = static_cast<int>(k_), worst = -1;
    for (int y = first; y <= x; ++y) {
      if (own_.left_k[y] <= x) continue;
      --members;
      if (worst < 0 || own_.rank[y] > own_.rank[worst]) worst = y;
    }
    const double own = worst >= 0 ? z_of(worst) : INFINITY, old = base > 0 && members > 0 ? base_[members - 1] : own;
    return own < old ? own : old;
  }

  // After own key x; x = -1: of the base alone. A team calls it.
  __device__ double threshold(int x, double guess) const {
    const bool continues = x < continuing_;
    const int first = x < 0 ? 0 : own_.first[x], base = continues ? n_ : 0, count = base + x + 1 - first;
    // Prefixes of at most k candidates see no threshold; before a full base nobody was left out.
    if (count < k_ || (base < P_ && count == k_)) return -INFINITY;
    const double least = least_member(x, first, base);
    const bool tables = first == 0 && x >= kBlock - 1;
    const int scan = tables ? (x + 1) / kBlock * kBlock - 1 : first;
    int own = 0;  // keys in the pool
    for (int y = scan + team_lane(); y <= x; y += kTeam) {
      own += own_.left_pool[y] > x;
      own -= tables && own_.pushed_pool[y] < scan;
    }
    const int pool = (P_ < count ? P_ : count) - team_sum(own) - (tables ? own_.taus.alive[kChunk] : 0);
    return cross({scan, x, pool, tables, least - 1}, least - 1, least, guess);
  }

  // A place near the base's threshold: every thread looks at one. Begins behind a barrier and ends with one.
  __device__ double guess_start() const {
    if (n_ < k_) return -INFINITY;
    const double high = base_[k_ - 1], low = high - 1, t = low + thread() * (1.0 / kSettleThreads);
    const Piece piece = piece_at<1>({0, -1, n_, false, low}, t);
    const bool enough = piece.sum + piece.saturated - piece.fractional * (t - low) >= static_cast<double>(k_);
    const int steps = __syncthreads_count(enough);
    return low + steps * (1.0 / kSettleThreads);
  }

  // sup{t : f(t) >= k}, k the scores >= high = low + 1.
  __device__ double cross(const Prefix& p, double low, double high, double guess) const {
    const double floor = low;
    double t = guess > low && guess < high ? guess : low;
    bool at_floor = false;
    for (int turn = 0; turn < 128; ++turn) {
      const Piece piece = piece_at<kTeam>(p, t);
      const double missing = piece.sum + static_cast<double>(piece.saturated - k_);
      const double next = piece.fractional > 0 ? floor + missing / piece.fractional : floor;
      if (t == floor) {
        // A plateau ends here, at its upper end; else f falls from here on.
        if (piece.saturated + piece.fractional <= k_ || next <= floor) return floor;
        at_floor = true;
      } else if (next == t) {
        return t;
      }
      if (missing - piece.fractional * (t - floor) >= 0) low = t;
      else high = t;
      if (next <= floor && !at_floor) {
        t = floor;
        continue;
      }
      t = next > low && next < high ? next : low + (high - low) / 2;
      if (t <= low || t >= high) return low;
    }
    return low;
  }

  double centre_ = 0;
};

__global__ void __launch_bounds__(kSettleThreads) settle(const Chunks c) {
  __shared__ Own own;
  ChunkThresholds s(c, own, reinterpret_cast<double*>(dynamic_shared()));
  s.read();
  s.find_lives();
  if (!c.a.thresholds) return;
  __syncthreads();
  s.prepare_sums();
  s.find_thresholds();
  s.write_thresholds();
}

// One warp a chunk.
__global__ void __launch_bounds__(kThreads) raise_thresholds(const Chunks c) {
  const std::int64_t item = static_cast<std::int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (item >= c.rows * c.chunks) return;  // whole warps leave
  const std::int64_t row = item / c.chunks, chunk = item % c.chunks, start = chunk * kChunk;
  const auto highest = [&](std::int64_t begin, std::int64_t end) {  // at the ends of the document's chunks
    double most = -INFINITY;
    for (std::int64_t x = begin / kChunk + lane; x < end; x += 32) {
      const double tau = c.last_tau[row * c.chunks + x];
      most = tau > most ? tau : most;
    }
    return warp_max(most);
  };
  const std::int64_t last = start + kChunk - 1 < c.a.T ? start + kChunk - 1 : c.a.T - 1,
                     last_begin = c.begin_of(row, last);
  const double settled = highest(last_begin, chunk + 1);
  if (lane == 0) c.settled_tau[item] = settled;
  const std::int64_t begin = c.begin_of(row, start);
  if (begin == start) return;
  const double before = highest(begin, chunk);
  const std::int64_t end = c.end_of(row, start) - c.a.delay, stop = end < start + kChunk ? end : start + kChunk;
  double* tau = c.a.tau_BHT + row * c.a.T + c.a.delay;
  for (std::int64_t j = start + lane;; j += 32) {
    const bool low = j < stop && tau[j] < before;
    if (low) tau[j] = before;
    if (__ballot_sync(0xffffffffu, low) == 0) break;
  }
}

}  // namespace

void settle_chunks(const Chunks& c, const Stream& stream) {
  const auto bytes = static_cast<std::size_t>(2 * c.P + 1) * sizeof(double);
  start("selection: settle", settle, c.rows * c.count, kSettleThreads, bytes, stream, c);
}

void settle_thresholds(const Chunks& c, const Stream& stream) {
  constexpr int kWarps = kThreads / 32;
  start("selection: thresholds", raise_thresholds, (c.rows * c.chunks + kWarps - 1) / kWarps, kThreads, 0, stream, c);
}

}  // namespace sieve::cuda
