// What happens inside a chunk, out of its base and its own keys (select_chunks.h): lives (select_lives.cuh), then the
// threshold of every query, which lies in [z_(k) - 1, z_(k)) by docs/attention.md, (2). The chunk's queries are cut
// into runs. For the first query of each a warp finds a place just below its threshold, by Newton's steps on f, whose
// pieces come from bisection and prefix sums; from there a lane follows tau through the run (select_sweep.cuh).
#include "attention/kernels/cuda/select_sweep.cuh"
#include "tensor/kernels/cuda/block.cuh"

namespace sieve::cuda {
namespace {

constexpr int kDirect = 64;       // so many scores of a band are summed one by one
constexpr double kPrefixed = 64;  // prefix sums hold scores so near to the centre
constexpr int kSettleWarps = kSettleThreads / 32;

class ChunkThresholds : public ChunkSweep {
 public:
  using ChunkSweep::ChunkSweep;

  // Ends with a barrier; find_lives of all threads lies behind one.
  __device__ void prepare_sums() {
    const double temperature = c_.a.temperature;
    const auto score = [&](double u) {  // a division by 1 changes nothing
      return temperature == 1 && std::fabs(u) <= kOperatorBound ? u : operator_score(u, temperature);
    };
#pragma unroll 1
    for (int r = thread(); r < candidates_; r += kSettleThreads) own_.ranked[r] = score(own_.ranked[r]);
#pragma unroll 1
    for (int r = thread(); r < n_; r += kSettleThreads) base_[r] = score(base_[r]);
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
#pragma unroll 4
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
#pragma unroll 2
    for (int r = begin; r < end; ++r) {
      sums_[r] = sum;
      sum += centred(base_[r]);
    }
    if (end == n_ && (begin < n_ || thread() == 0)) sums_[n_] = sum;
    __syncthreads();
  }

  // Where every run of queries starts is found by a warp; the runs then by a lane each. Ends with a barrier.
  __device__ void find_thresholds() const {
    for (int q = thread(); q <= size_; q += kSettleThreads) own_.taus.tau[q] = floor_of(q);
    guess_start();
    const int queries = size_ + 1, equal = (queries + kRuns - 1) / kRuns, each = equal > kLeastRun ? equal : kLeastRun,
              runs = (queries + each - 1) / each, share = (runs + kSettleWarps - 1) / kSettleWarps,
              warp = thread() / 32;
    double guess = own_.taus.start;
    for (int run = warp * share; run < (warp + 1) * share && run < runs; ++run) {
      const int begin = run * each, end = begin + each < queries ? begin + each : queries;
      start_run(begin, end, guess, own_.taus.runs[run]);
    }
    __syncthreads();
    if (warp == 0) sweep_runs(each, runs, queries);
    __syncthreads();
  }

  __device__ void write_thresholds() const {
#pragma unroll 1
    for (int p = thread(); p < kChunk; p += kSettleThreads) {
      const std::int64_t j = start_ + p;
      double tau = -INFINITY;
      if (j < c_.a.T && c_.a.delay < end_of(j) - j) {
        const std::int64_t begin = begin_of(j);
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

  // What a warp looks for at one query: the pool is the base's first `pool` scores and the own ones that are in.
  struct Prefix {
    int pool;
    unsigned in;    // bit v of a lane: rank 32 v + lane is in the pool
    double centre;  // of the sums
  };
  struct Piece {
    int saturated = 0, fractional = 0;
    double sum = 0;              // of the fractional scores less the centre
    int support = 0, begin = 0;  // of the base: scores above t, those saturated
    int own_support = 0, own_begin = 0;
  };
  // Of the count that a lane looks for: four of them, by eight lanes each.
  struct Bounds {
    const double* values;
    int low, high;
  };

  // Sum of the base's scores [begin .. end) less `centre` by prefix sums; false: too far from their centre, or too few.
  __device__ bool sum_prefixed(double centre, int begin, int end, double& sum) const {
    if (end - begin <= kDirect || base_[begin] - centre_ > kPrefixed || base_[end - 1] - centre_ < -kPrefixed)
      return false;
    sum += sums_[end] - sums_[begin] + (end - begin) * (centre_ - centre);
    return true;
  }

  // How many of the values lie more than the lane's 0 or 1 above t. A warp calls it.
  __device__ static int count_together(const Bounds& bounds, double t) {
    const int lane = thread() % 32, among = lane % 8;
    const double by = lane / 8 % 2;
    int low = bounds.low, high = bounds.high;
    while (__ballot_sync(0xffffffffu, low < high) != 0) {
      const int stride = ((high - low + 7) / 8) | 1, at = low + (among + 1) * stride - 1;  // odd: other banks
      const unsigned lanes = __ballot_sync(0xffffffffu, at < high && bounds.values[at] - by > t);
      low += __popc(lanes >> (lane & ~7) & 0xff) * stride;
      high = high < low + stride - 1 ? high : low + stride - 1;
    }
    return low;
  }

  // The lane's part of the band's sum less the centre: scores of the base, and of the chunk.
  __device__ double base_share(const Prefix& p, const Piece& piece) const {
    double sums[4] = {};  // side by side: an addition takes its time
    for (int first = piece.begin + thread() % 32; first < piece.support; first += 4 * 32) {
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const int r = first + v * 32;
        if (r < piece.support) sums[v] += base_[r] - p.centre;
      }
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
  __device__ double own_share(const Prefix& p, unsigned bits) const {
    double share = 0;
#pragma unroll 1
    for (; bits != 0; bits &= bits - 1)
      share += own_.ranked[32 * (__ffs(static_cast<int>(bits)) - 1) + thread() % 32] - p.centre;
    return share;
  }
  // Bits of the lane's ranks below `bound`.
  __device__ static unsigned ranks_up_to(int bound) { return (1u << (bound + 31 - thread() % 32) / 32) - 1; }

  // The piece of f just above t, by a warp. Returns the lane's count.
  __device__ int next_piece(const Prefix& p, double t, const Bounds& mine, Piece& piece) const {
    const int found = count_together(mine, t);
    piece.support = __shfl_sync(0xffffffffu, found, 0), piece.begin = __shfl_sync(0xffffffffu, found, 8);
    piece.own_support = __shfl_sync(0xffffffffu, found, 16), piece.own_begin = __shfl_sync(0xffffffffu, found, 24);
    const unsigned above = p.in & ranks_up_to(piece.own_support), first = p.in & ranks_up_to(piece.own_begin);
    double sum = 0, share = 0;
    if (!sum_prefixed(p.centre, piece.begin, piece.support, sum)) share = base_share(p, piece);
    share += own_share(p, above & ~first);
    const int own = warp_sum(__popc(above) << 16 | __popc(first));
    piece.saturated = piece.begin + (own & 0xffff);
    piece.fractional = piece.support - piece.begin + (own >> 16) - (own & 0xffff);
    piece.sum = warp_sum(share) + sum;
    return found;
  }

  // Members when the base's document has seen its last newcomer of the chunk: own ones, and the worst of those.
  __device__ void find_last_members() {
    int members = 0, worst = -1;
#pragma unroll 1
    for (int y = thread() % 32; y < continuing_; y += 32) {
      if (own_.left_k[y] != kNever) continue;
      ++members;
      worst = own_.rank[y] > worst ? own_.rank[y] : worst;
    }
    last_members_ = warp_sum(members), last_worst_ = warp_max(worst);
  }
  // z of the worst of the k members after own key x, whose document's first arrival is `first`. The next newcomer of
  // the document pushes it out.
  __device__ double least_member(int x, int first, int base) const {
    const int end = x < continuing_ ? continuing_ : size_, y = next_push(x + 1, end);
    if (y < end && own_.first[y] <= first) {
      const int pushed = own_.pushed_k[y];
      return pushed & kBaseMark ? base_[pushed & ~kBaseMark] : z_of(pushed);
    }
    int members = last_members_, worst = last_worst_;  // a rank
    if (x >= continuing_) {
      members = 0, worst = -1;
#pragma unroll 1
      for (int w = first; w <= x; ++w) {
        if (own_.left_k[w] <= x) continue;
        ++members;
        worst = own_.rank[w] > worst ? own_.rank[w] : worst;
      }
    }
    const int left = static_cast<int>(k_) - members;
    const double own = worst >= 0 ? own_.ranked[worst] : INFINITY, old = base > 0 && left > 0 ? base_[left - 1] : own;
    return own < old ? own : old;
  }
  // What the threshold of the query after q arrivals is never below; -inf: it sees none. Prefixes of at most k
  // candidates see none; before a full base nobody was left out.
  __device__ double floor_of(int q) const {
    const bool continues = q <= continuing_;
    const int first = continues ? 0 : own_.first[q - 1], base = continues ? n_ : 0, count = base + q - first;
    if (count < k_ || (base < P_ && count == k_)) return -INFINITY;
    return least_member(q - 1, first, base) - 1;
  }
  // The first query of [begin, end), of the document of the first of them, that sees a threshold; -1: none.
  __device__ int first_with_floor(int begin, int end) const {
    const int document = document_of(begin);
    const std::int64_t have = document == 0 ? n_ : 1 - document, missing = k_ + (have < P_ ? 1 : 0) - have;
    const int q = missing < begin ? begin : static_cast<int>(missing < end ? missing : end);
    return q < end && document_of(q) == document ? q : -1;
  }

  // One warp: f at the run's first query that sees a threshold, below that threshold, which becomes the next guess.
  __device__ void start_run(int begin, int end, double& guess, Run& run) const {
    const int lane = thread() % 32, q = first_with_floor(begin, end);
    if (lane == 0) run.query = q;
    if (q < 0) return;
    const int document = document_of(q);
    const double floor = own_.taus.tau[q];
    Prefix p{0, 0, floor};
#pragma unroll 2
    for (int v = 0; 32 * v < candidates_; ++v) {
      const int r = 32 * v + lane;
      p.in |= static_cast<unsigned>(r < candidates_ && in_pool(own_.at_rank[r], document, q)) << v;
    }
    const int own = warp_sum(__popc(p.in));
    if (document == 0) p.pool = (P_ < n_ + q ? P_ : n_ + q) - own;
    Piece piece;
    guess = start_below(p, guess, piece);
    // Sums of the run go on from here, so that this one is taken score by score.
    if (piece.support - piece.begin > kDirect)
      piece.sum = warp_sum(base_share(p, piece) +
                           own_share(p, p.in & ranks_up_to(piece.own_support) & ~ranks_up_to(piece.own_begin)));
    if (lane > 0) return;
    run = Run{guess,
              piece.sum,
              0,
              floor,
              piece.saturated,
              piece.fractional,
              piece.fractional,
              piece.support,
              piece.begin,
              piece.own_support,
              piece.own_begin,
              p.pool,
              document,
              q};
  }

  // One warp, a lane a run. Sums of different runs may round apart: no threshold falls below those of earlier runs.
  __device__ void sweep_runs(int each, int runs, int queries) const {
    const int run = thread(), begin = run * each, end = begin + each < queries ? begin + each : queries;
    double last = -INFINITY;
    int document = -1, last_document = -1;
    if (run < runs) {
      last = sweep(own_.taus.runs[run], begin, end);
      document = document_of(begin), last_document = document_of(end - 1);
    }
    __syncwarp();
    double least = -INFINITY;
    for (int r = 0; r + 1 < runs; ++r) {
      const double other = __shfl_sync(0xffffffffu, last, r);
      const int theirs = __shfl_sync(0xffffffffu, last_document, r);
      if (r < run && theirs == document && other > least) least = other;
    }
    if (run >= runs) return;
    for (int q = begin; q < end && own_.taus.tau[q] < least && document_of(q) == document; ++q)
      own_.taus.tau[q] = least;
  }

  // The base's threshold: some threads look at one place each, then one goes on from the last that lies below. Ends
  // with a barrier.
  __device__ void guess_start() const {
    constexpr int kPlaces = 64;
    const int place = thread() - (kSettleThreads - kPlaces);  // the first threads have other work
    double t = -INFINITY, start = -INFINITY;
    bool enough = false;
    if (place >= 0 && n_ >= k_) {
      const double low = base_[k_ - 1] - 1;
      t = low + place * (1.0 / kPlaces);
      const int support = count_above(base_, 0, n_, t, 0), begin = count_above(base_, 0, n_, t, 1);
      double sum = begin - static_cast<double>(k_);
      if (!sum_prefixed(low, begin, support, sum)) {
#pragma unroll 1
        for (int r = begin; r < support; ++r) sum += base_[r] - low;
      }
      enough = sum - (support - begin) * (t - low) >= 0;
      start = support > begin ? low + sum / (support - begin) : t;
    }
    const int steps = __syncthreads_count(enough);
    if (place == (steps > 0 ? steps - 1 : 0)) own_.taus.start = start;
    __syncthreads();
  }

  // A place t that the threshold is not below, few ends of pieces under it; or a few more where steps do not find one.
  // `piece` becomes that of f just above it.
  __device__ double start_below(const Prefix& p, double guess, Piece& piece) const {
    constexpr int kSteps = 20;
    constexpr double kFew = 6, kLess = 2;  // a band of n has some n ends in a unit of t
    const double floor = p.centre;
    const bool own = thread() % 32 >= 16;
    Bounds mine{own ? own_.ranked : base_, 0, own ? candidates_ : p.pool};
    double low = floor, high = floor + 1, t = guess > low && guess < high ? guess : low;
    for (int step = 0;; ++step) {
      const int found = next_piece(p, t, mine, piece);
      const double missing = piece.sum + static_cast<double>(piece.saturated - k_), band = piece.fractional;
      const float way = static_cast<float>(missing - kLess) / static_cast<float>(piece.fractional);  // a guess
      const double goal = band > 0 ? floor + static_cast<double>(way) : low;
      if (t == floor || missing - band * (t - floor) >= 0) {
        if (step >= kSteps || (goal - t) * band <= kFew - kLess) return t;
        low = t, mine.high = found;
      } else {
        high = t, mine.low = found;
      }
      t = goal > low && goal < high ? goal : low + (high - low) / 2;
      if (step + 1 >= kSteps) t = low;
    }
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
