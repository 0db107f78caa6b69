// What happens inside a chunk, out of its base and its own keys (select_chunks.h): lives (select_lives.cuh), then the
// threshold of every query, which lies in [z_(k) - 1, z_(k)) by docs/attention.md, (2). There the piece of f that
// crosses k is found by Newton's steps inside a bracket; f comes from prefix sums over the base and over blocks of
// earlier arrivals, and from the few arrivals since. Arrivals go in turns of 64, whose queries start where the last
// turn ended, by what has arrived since; inside a turn no query waits for an earlier one.
#include "attention/kernels/cuda/select_lives.cuh"
#include "tensor/kernels/cuda/block.cuh"

namespace sieve::cuda {
namespace {

constexpr int kDirect = 16;       // so many scores of a band are summed one by one
constexpr double kPrefixed = 64;  // prefix sums hold scores so near to the centre

// Neighbouring lanes that work on one query, taking the same turns everywhere.
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
    for (int base = 0; base < kChunk; base += kSettleThreads) {
      const int x = base + thread();
      const unsigned lanes = __ballot_sync(0xffffffffu, x < size_ && own_.pushed_k[x] != kNever);
      if (x % 32 == 0) own_.taus.pushes[x / 32] = lanes;
    }
    find_last_members();
    const int each = ((n_ + kSettleThreads - 1) / kSettleThreads) | 1,  // odd: neighbours' scores in other banks
        begin = thread() * each < n_ ? thread() * each : n_, end = begin + each < n_ ? begin + each : n_;
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
    if (end == n_ && (begin < n_ || thread() == 0)) sums_[n_] = sum;
    __syncthreads();
  }

  __device__ void find_thresholds() const {
    guess_start();
    for (int begin = 0; begin <= size_; begin += kBlock) {
      if (thread() < 32) fill_slots(begin - 1);
      if (begin > 0) sum_earlier(begin - 1);
      else __syncthreads();
      const int y = begin + thread() / kTeam;
      if (y <= size_) {
        int width = 0;
        const double tau = threshold(y - 1, begin - 1, width);
        if (team_lane() == 0) {
          own_.taus.tau[y] = tau;
          const int next = (begin / kBlock + 1) % 2;
          if (y == begin + kBlock - 1) own_.taus.start[next] = tau, own_.taus.width[next] = width;
        }
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
  // Own arrivals [scan, x] are looked at one by one, those before by tables where `tables`.
  struct Prefix {
    int x, scan, turn, pool;  // arrivals from `turn` on lie in taus.z, slot by slot
    unsigned in;              // bits of the lane's slots that are in the pool
    bool tables, pushes;      // `pushes`: out of the tables' arrivals
    double centre;            // of the sums
  };
  struct Piece {
    int saturated = 0, fractional = 0;
    double sum = 0;  // of the fractional scores less the centre
  };
  // Of the count that a lane looks for.
  struct Bounds {
    const double* values;
    int low, high, count;
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

  // Sum of values[begin .. end) less `centre` by prefix sums; false: too far from their centre, or too few.
  __device__ bool sum_prefixed(double centre, const double* values, const double* sums, int begin, int end, int count,
                               double& sum) const {
    if (end - begin <= kDirect || values[begin] - centre_ > kPrefixed || values[end - 1] - centre_ < -kPrefixed)
      return false;
    sum += sums[end] - sums[begin] + count * (centre_ - centre);
    return true;
  }
  __device__ static void add(const Prefix& p, double z, double less, double t, int times, Piece& piece) {
    if (z <= t) return;
    if (less > t) {
      piece.saturated += times;
    } else {
      piece.fractional += times;
      piece.sum += times * (z - p.centre);
    }
  }
  // The lane's share of the arrivals [scan, x].
  __device__ void add_arrivals(const Prefix& p, double t, Piece& piece) const {
#pragma unroll 4
    for (int v = 0; v < kBlock / kTeam; ++v) {
      const int slot = v * kTeam + team_lane();
      const double z = own_.taus.z[slot], less = own_.taus.less[slot];
      const bool in = (p.in >> v & 1) != 0, saturated = in && less > t, fractional = in && !(less > t) && z > t;
      piece.saturated += saturated, piece.fractional += fractional;
      if (fractional) piece.sum += z - p.centre;
    }
    for (int y = p.scan + team_lane(); y < p.turn; y += kTeam) {  // of documents that began in the chunk
      if (own_.left_pool[y] > p.x) add(p, z_of(y), z_of(y) - 1, t, 1, piece);
    }
    if (!p.pushes) return;
    for (int y = p.scan + team_lane(); y <= p.x; y += kTeam) {
      const int pushed = own_.pushed_pool[y];
      if (pushed < p.scan) add(p, z_of(pushed), z_of(pushed) - 1, t, -1, piece);
    }
  }

  // The piece of f just above t, by a team. Each lane looks for one of four counts. False: the piece is still `piece`.
  // Scores above t, and those saturated, only become fewer as t rises: equal counts are equal sets.
  __device__ bool next_piece(const Prefix& p, double t, Bounds& mine, Piece& piece) const {
    mine.count = count_above(mine.values, mine.low, mine.high, t, team_lane() % 2);
    const int team = static_cast<int>(threadIdx.x) % 32 / kTeam * kTeam;
    const int support = __shfl_sync(team_mask(), mine.count, team),
              begin = __shfl_sync(team_mask(), mine.count, team + 1),
              end = __shfl_sync(team_mask(), mine.count, team + 2),
              first = __shfl_sync(team_mask(), mine.count, team + 3);
    Piece share;  // the lane's
    add_arrivals(p, t, share);
    const int alive = p.tables ? own_.taus.alive[end] - own_.taus.alive[first] : 0,
              saturated = team_sum(share.saturated) + begin + (p.tables ? own_.taus.alive[first] : 0),
              fractional = team_sum(share.fractional) + support - begin + alive;
    if (saturated == piece.saturated && fractional == piece.fractional) return false;
    piece.saturated = saturated, piece.fractional = fractional;
    double sum = 0;
    if (!sum_prefixed(p.centre, base_, sums_, begin, support, support - begin, sum)) {
      for (int r = begin + team_lane(); r < support; r += kTeam) share.sum += base_[r] - p.centre;
    }
    if (p.tables && !sum_prefixed(p.centre, own_.ranked, own_.taus.sums, first, end, alive, sum)) {
      for (int r = first + team_lane(); r < end; r += kTeam)
        share.sum += own_.taus.alive[r + 1] > own_.taus.alive[r] ? own_.ranked[r] - p.centre : 0;
    }
    piece.sum = team_sum(share.sum) + sum;
    return true;
  }

  // Members when the base's document has seen its last newcomer of the chunk: own ones, and the worst of those.
  __device__ void find_last_members() {
    int members = 0, worst = -1;
    for (int y = thread() % 32; y < continuing_; y += 32) {
      if (own_.left_k[y] != kNever) continue;
      ++members;
      worst = own_.rank[y] > worst ? own_.rank[y] : worst;
    }
    last_members_ = warp_sum(members), last_worst_ = warp_max(worst);
  }
  // z of the worst of the k members after own key x, whose document's first arrival is `first`. The next newcomer of
  // the document pushes it out. A team calls it.
  __device__ double least_member(int x, int first, int base) const {
    const int end = x < continuing_ ? continuing_ : size_, y = next_push(x + 1, end);
    if (y < end && own_.first[y] <= first) {
      const int pushed = own_.pushed_k[y];
      return pushed & kBaseMark ? base_[pushed & ~kBaseMark] : z_of(pushed);
    }
    int members = last_members_, worst = last_worst_;  // a rank
    if (x >= continuing_) {
      members = 0, worst = -1;
      for (int w = first + team_lane(); w <= x; w += kTeam) {
        if (own_.left_k[w] <= x) continue;
        ++members;
        worst = own_.rank[w] > worst ? own_.rank[w] : worst;
      }
      members = team_sum(members);
      for (int offset = 1; offset < kTeam; offset *= 2) {
        const int other = __shfl_xor_sync(team_mask(), worst, offset);
        worst = other > worst ? other : worst;
      }
    }
    const int left = static_cast<int>(k_) - members;
    const double own = worst >= 0 ? own_.ranked[worst] : INFINITY, old = base > 0 && left > 0 ? base_[left - 1] : own;
    return own < old ? own : old;
  }

  // After own key x; x = -1: of the base alone. A team calls it, in the turn whose slots begin at arrival `turn`.
  // `width`: scores of the band.
  __device__ double threshold(int x, int turn, int& width) const {
    const bool continues = x < continuing_;
    const int first = x < 0 ? 0 : own_.first[x], base = continues ? n_ : 0, count = base + x + 1 - first;
    // Prefixes of at most k candidates see no threshold; before a full base nobody was left out.
    if (count < k_ || (base < P_ && count == k_)) return -INFINITY;
    const double least = least_member(x, first, base);
    Prefix p{x, first, turn, 0, 0, first == 0 && x >= kBlock - 1, false, least - 1};
    if (p.tables) p.scan = turn;
    int own = 0;  // keys in the pool
#pragma unroll 4
    for (int v = 0; v < kBlock / kTeam; ++v) {
      const int y = turn + v * kTeam + team_lane();
      const bool looked = y >= p.scan && y <= x, in = looked && own_.left_pool[looked ? y : 0] > x;
      p.in |= static_cast<unsigned>(in) << v;
      own += in;
      const int pushed = looked && p.tables ? own_.pushed_pool[y] : kNever;
      if (pushed >= p.scan) continue;
      --own;
      p.pushes = p.pushes || z_of(pushed) > p.centre;  // others lie below every t
    }
    for (int y = p.scan + team_lane(); y < turn; y += kTeam) own += own_.left_pool[y] > x;
    p.pool = (P_ < count ? P_ : count) - team_sum(own) - (p.tables ? own_.taus.alive[kChunk] : 0);
    const int now = (turn + 1) / kBlock % 2;
    const float step = own_.taus.rise[x - turn] / static_cast<float>(own_.taus.width[now]);
    return cross(p, least, own_.taus.start[now] + static_cast<double>(step), width);
  }

  // The base's threshold: every thread looks at one place, then one goes on from the last that lies below. Begins
  // behind a barrier and ends with one.
  __device__ void guess_start() const {
    if (n_ < k_) {
      if (thread() == 0) own_.taus.start[0] = -INFINITY, own_.taus.width[0] = 0;
      __syncthreads();
      return;
    }
    const double low = base_[k_ - 1] - 1, t = low + thread() * (1.0 / kSettleThreads);
    const int support = count_above(base_, 0, n_, t, 0), begin = count_above(base_, 0, n_, t, 1);
    double sum = begin - static_cast<double>(k_);
    if (!sum_prefixed(low, base_, sums_, begin, support, support - begin, sum)) {
      for (int r = begin; r < support; ++r) sum += base_[r] - low;
    }
    const bool enough = sum - (support - begin) * (t - low) >= 0;
    const int steps = __syncthreads_count(enough);
    if (thread() == (steps > 0 ? steps - 1 : 0)) {
      own_.taus.start[0] = support > begin ? low + sum / (support - begin) : t;
      own_.taus.width[0] = support - begin;
    }
    __syncthreads();
  }
  // One warp: the turn's slots, and how they raise f where the turn starts.
  __device__ void fill_slots(int turn) const {
    static_assert(kBlock == 64);
    const int lane = thread();
    const double start = own_.taus.start[(turn + 1) / kBlock % 2];
    float rise[2];
    for (int r = 0; r < 2; ++r) {
      const int slot = 2 * lane + r, y = turn + slot;
      const double z = y >= 0 && y < size_ ? z_of(y) : -INFINITY;
      own_.taus.z[slot] = z, own_.taus.less[slot] = z - 1;
      rise[r] = z > start ? (z - 1 > start ? 1.0f : static_cast<float>(z - start)) : 0.0f;
    }
    float up = rise[0] + rise[1];
    for (int step = 1; step < 32; step *= 2) {
      const float other = __shfl_up_sync(0xffffffffu, up, step);
      if (lane >= step) up += other;
    }
    own_.taus.rise[2 * lane] = up - rise[1], own_.taus.rise[2 * lane + 1] = up;
  }

  // sup{t : f(t) >= k}, k the scores >= high = p.centre + 1.
  __device__ double cross(const Prefix& p, double high, double guess, int& width) const {
    const double floor = p.centre;
    // What lies so near to the floor may be the floor but for rounding.
    const auto above_floor = [&](double v) { return v - floor > 0x1p-36 * (1 + std::fabs(floor)); };
    const bool own = team_lane() >= 2;
    Bounds mine{own ? own_.ranked : base_, 0, own ? (p.tables ? candidates_ : 0) : p.pool, 0};
    double low = floor, t = above_floor(guess) && guess < high ? guess : low;
    bool at_floor = false, stepped = false;  // `stepped`: the last piece crosses k at t, if it reaches so far
    Piece piece{-1, -1, 0};
    for (int turn = 0; turn < 128; ++turn) {
      if (!next_piece(p, t, mine, piece) && stepped) return t;
      width = piece.fractional;
      const double missing = piece.sum + static_cast<double>(piece.saturated - k_);
      const double next = piece.fractional > 0 ? floor + missing / piece.fractional : floor;
      if (t == floor) {
        // A plateau ends here, at its upper end; else f falls from here on.
        if (piece.saturated + piece.fractional <= k_ || next <= floor) return floor;
        at_floor = true;
      } else if (next == t) {
        return t;
      }
      if (missing - piece.fractional * (t - floor) >= 0) low = t, mine.high = mine.count;
      else high = t, mine.low = mine.count;
      if (!at_floor && !above_floor(next)) {
        t = floor, stepped = false, mine.high = own ? (p.tables ? candidates_ : 0) : p.pool;
        continue;
      }
      stepped = next > low && next < high;
      t = stepped ? next : low + (high - low) / 2;
      if (t <= low || t >= high) return low;
    }
    return low;
  }

  double centre_ = 0;
  int last_members_ = 0, last_worst_ = -1;
};

__global__ void __launch_bounds__(kSettleThreads, 4) settle(const Chunks c) {
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

}  // namespace

void settle_chunks(const Chunks& c, const Stream& stream) {
  const auto bytes = static_cast<std::size_t>(2 * c.P + 1) * sizeof(double);
  start("selection: settle", settle, c.rows * c.count, kSettleThreads, bytes, stream, c);
}

}  // namespace sieve::cuda
