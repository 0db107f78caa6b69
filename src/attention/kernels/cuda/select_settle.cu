// What happens inside a chunk, out of its base and its own keys (select_chunks.h): who leaves the members and the pool,
// and the threshold of every query. Nothing depends on an earlier query, so all keys and all queries go at once.
//   lives    a key with b better ones in the base leaves a set of n when the (n - b)-th better key of the chunk arrives
//   tau      lies in [z_(k) - 1, z_(k)) by docs/attention.md, (2); there the piece of f that crosses k is found by
//            Newton's steps inside a bracket, f from prefix sums over the base and the chunk's few keys that matter
#include <cmath>

#include "attention/kernels/cuda/launch.cuh"
#include "attention/kernels/cuda/select_chunks.h"
#include "tensor/kernels/cuda/block.cuh"

namespace sieve::cuda {
namespace {

constexpr int kSettleThreads = 256;
constexpr int kNever = 0xffff;
constexpr int kDirect = 64;       // so many scores of a band are summed one by one
constexpr double kPrefixed = 64;  // prefix sums hold scores so near to the centre

// The chunk's keys that can enter the base, in the order of arrival: x = 0 .. size - 1.
struct Own {
  double z[kChunk];
  double tau[kChunk + 1];                     // [x + 1] after key x arrived; [0]: before all. First the sorted scores.
  std::uint16_t rank[kChunk];                 // in the chunk, 0 the best
  std::uint16_t place[kChunk];                // in the chunk
  std::uint16_t first[kChunk], last[kChunk];  // of its document, [first, last)
  std::uint16_t better[kChunk];               // scores of the base above it
  std::uint16_t left_k[kChunk], left_pool[kChunk];  // the arrival that pushed it out; its own: it never entered
  std::uint16_t upto[kChunk];                       // of a place: how many arrived up to it
  int counts[kSettleThreads / 32];
  double sums[kSettleThreads / 32];
};

// values[0 .. n) falls. First index where pred, false and then true, holds.
template <class Pred>
__device__ int first_in(const double* values, int n, const Pred& pred) {
  int low = 0;
  while (low < n) {
    const int middle = (low + n) / 2;
    if (pred(values[middle])) n = middle;
    else low = middle + 1;
  }
  return low;
}

class Settling {
 public:
  __device__ Settling(const Chunks& c, Own& own, double* memory)
      : c_(c), own_(own), base_(memory), sums_(memory + c.P), k_(c.a.k), P_(static_cast<int>(c.P)) {
    const std::int64_t left = c.chunks - c.first, count = left < c.slab ? left : c.slab;
    row_ = blockIdx.x / count;
    const std::int64_t x = blockIdx.x % count;
    slot_ = row_ * (c.slab + 1) + x;
    item_ = row_ * c.chunks + c.first + x;
    start_ = (c.first + x) * kChunk;
    n_ = c.base_counts[slot_];
    candidates_ = c.candidates[item_];
  }

  __device__ bool empty() const { return candidates_ == 0; }
  __device__ void forget() const {
    if (thread() == 0 && c_.a.thresholds) c_.last_tau[item_] = -INFINITY;
  }

  // Begins without and ends with a barrier.
  __device__ void read() {
    double* sorted = own_.tau;
    for (int r = thread(); r < n_; r += kSettleThreads) base_[r] = c_.base[slot_ * P_ + r];
    for (int p = thread(); p < kChunk; p += kSettleThreads) own_.upto[p] = kNever;
    __syncthreads();
    for (int r = thread(); r < candidates_; r += kSettleThreads) {
      sorted[r] = c_.sorted[item_ * kChunk + r];
      own_.upto[c_.places[item_ * kChunk + r]] = static_cast<std::uint16_t>(r);
    }
    __syncthreads();
    size_ = 0;
    for (int base = 0; base < kChunk; base += kSettleThreads) list_own(base + thread());
    for (int x = thread(); x < size_; x += kSettleThreads) find_document(x);
    const std::int64_t end = c_.end_of(row_, start_) - start_;
    continuing_ = own_.upto[(end < kChunk ? end : kChunk) - 1];
    __syncthreads();
  }

  __device__ void find_lives() const {
    for (int x = thread(); x < size_; x += kSettleThreads) own_life(x);
    // Only the last `continuing_` of the first k, and of the pool, can leave.
    const int least = continuing_;
    const int k = k_ < n_ ? static_cast<int>(k_) : n_;
    for (int r = k - 1 - thread(); r >= 0 && k_ - r <= least; r -= kSettleThreads) {
      const int y = base_death(r, static_cast<int>(k_ - r));
      if (y != kNever) c_.a.to_BHT[at(base_key(r))] = static_cast<std::int32_t>(start_ + own_.place[y] + c_.a.delay);
    }
    if (!c_.a.thresholds) return;
    for (int r = n_ - 1 - thread(); r >= 0 && P_ - r <= least; r -= kSettleThreads) {
      const int y = base_death(r, P_ - r);
      if (y != kNever) c_.left_pool[at(base_key(r))] = from_begin(own_.place[y]);
    }
  }

  // Ends with a barrier; needs find_lives of all threads behind one.
  __device__ void prepare_sums() {
    const double* sorted = own_.tau;
    for (int x = thread(); x < size_; x += kSettleThreads)
      own_.z[x] = operator_score(sorted[own_.rank[x]], c_.a.temperature);
    for (int r = thread(); r < n_; r += kSettleThreads) base_[r] = operator_score(base_[r], c_.a.temperature);
    __syncthreads();
    centre_ = n_ == 0 ? 0 : base_[n_ >= k_ ? k_ - 1 : n_ / 2];
    const int each = (n_ + kSettleThreads - 1) / kSettleThreads, begin = thread() * each,
              end = begin + each < n_ ? begin + each : n_;
    double mine = 0;
    for (int r = begin; r < end; ++r) mine += centred(base_[r]);
    double up = mine;
    for (int step = 1; step < 32; step *= 2) {
      const double other = __shfl_up_sync(0xffffffffu, up, step);
      if (thread() % 32 >= step) up += other;
    }
    if (thread() % 32 == 31) own_.sums[thread() / 32] = up;
    __syncthreads();
    double sum = up - mine;
    for (int w = 0; w < thread() / 32; ++w) sum += own_.sums[w];
    for (int r = begin; r < end; ++r) {
      sums_[r] = sum;
      sum += centred(base_[r]);
    }
    if (begin < n_ && end == n_) sums_[n_] = sum;
    __syncthreads();
  }

  __device__ void find_thresholds() const {
    for (int y = thread(); y <= size_; y += kSettleThreads) own_.tau[y] = threshold(y - 1);
    __syncthreads();
    // Roundings of neighbours may cross: the largest so far.
    for (int step = 1; step <= size_; step *= 2) {
      double raised[kChunk / kSettleThreads + 1];
      for (int y = thread(), v = 0; y <= size_; y += kSettleThreads, ++v) {
        const int least = y <= continuing_ ? 0 : own_.first[y - 1] + 1;
        raised[v] = y - step >= least && own_.tau[y - step] > own_.tau[y] ? own_.tau[y - step] : own_.tau[y];
      }
      __syncthreads();
      for (int y = thread(), v = 0; y <= size_; y += kSettleThreads, ++v) own_.tau[y] = raised[v];
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
        if (j - begin >= k_) tau = own_.tau[own ? arrived : 0];
        c_.a.tau_BHT[at(j + c_.a.delay)] = tau;
      }
      if (p == kChunk - 1) c_.last_tau[item_] = tau;
    }
  }

 private:
  __device__ static int thread() { return static_cast<int>(threadIdx.x); }
  __device__ std::int64_t at(std::int64_t j) const { return row_ * c_.a.T + j; }
  __device__ std::int32_t base_key(int r) const { return c_.base_keys[slot_ * P_ + r]; }
  __device__ std::int32_t from_begin(int place) const {
    return static_cast<std::int32_t>(start_ + place - c_.begin_of(row_, start_ + place));
  }
  __device__ double centred(double z) const {
    const double v = z - centre_;
    return v < -kPrefixed ? -kPrefixed : (v > kPrefixed ? kPrefixed : v);
  }

  // Place p of the chunk: into the list, if its key can enter. Candidates that cannot leave at once.
  __device__ void list_own(int p) {
    const double* sorted = own_.tau;
    const int rank = own_.upto[p];
    const std::int64_t j = start_ + p;
    bool enters = rank != kNever, continues = false;
    if (enters) {
      continues = c_.begin_of(row_, j) < start_;
      enters = !continues || n_ < P_ || sorted[rank] >= base_[P_ - 1];
      if (!enters) {
        c_.a.to_BHT[at(j)] = static_cast<std::int32_t>(j + c_.a.delay);
        if (c_.a.thresholds) c_.left_pool[at(j)] = from_begin(p);
      }
    }
    const unsigned lanes = __ballot_sync(0xffffffffu, enters);
    if (thread() % 32 == 0) own_.counts[thread() / 32] = __popc(lanes);
    __syncthreads();
    int x = size_ + __popc(lanes & ((1u << thread() % 32) - 1));
    for (int w = 0; w < kSettleThreads / 32; ++w) {
      if (w < thread() / 32) x += own_.counts[w];
      size_ += own_.counts[w];
    }
    own_.upto[p] = static_cast<std::uint16_t>(x + enters);
    if (enters) {
      own_.rank[x] = static_cast<std::uint16_t>(rank);
      own_.place[x] = static_cast<std::uint16_t>(p);
      const double u = sorted[rank];  // on a tie the later key, this one, is the better
      own_.better[x] =
          static_cast<std::uint16_t>(continues ? first_in(base_, n_, [&](double b) { return b <= u; }) : 0);
    }
    __syncthreads();
  }

  __device__ void find_document(int x) const {
    const std::int64_t j = start_ + own_.place[x], begin = c_.begin_of(row_, j) - start_,
                       end = c_.end_of(row_, j) - start_;
    own_.first[x] = begin <= 0 ? 0 : own_.upto[begin - 1];
    own_.last[x] = own_.upto[(end < kChunk ? end : kChunk) - 1];
  }

  __device__ void own_life(int x) const {
    const int rank = own_.rank[x], last = own_.last[x];
    int better = own_.better[x], left_k = better >= k_ ? x : kNever, left_pool = better >= P_ ? x : kNever;
    for (int y = own_.first[x]; y < last && left_pool == kNever; ++y) {
      better += own_.rank[y] < rank;
      const int now = y > x ? y : x;
      if (better >= k_ && left_k == kNever) left_k = now;
      if (better >= P_) left_pool = now;
    }
    own_.left_k[x] = static_cast<std::uint16_t>(left_k);
    own_.left_pool[x] = static_cast<std::uint16_t>(left_pool);
    const std::int64_t key = at(start_ + own_.place[x]);
    if (left_k != kNever) c_.a.to_BHT[key] = static_cast<std::int32_t>(start_ + own_.place[left_k] + c_.a.delay);
    if (left_pool != kNever && c_.a.thresholds) c_.left_pool[key] = from_begin(own_.place[left_pool]);
  }

  // The arrival of the `wanted`-th key above the base's r-th.
  __device__ int base_death(int r, int wanted) const {
    const double* sorted = own_.tau;
    const double u = base_[r];
    const int bound = first_in(sorted, candidates_, [&](double s) { return s < u; });
    for (int y = 0; y < continuing_; ++y) {
      wanted -= own_.rank[y] < bound;
      if (wanted == 0) return y;
    }
    return kNever;
  }

  // ---- Thresholds: the pool when key x has arrived is the base's first `pool` scores and the own ones that are in.
  struct Prefix {
    int first, x, pool;
    double centre;  // of the sums
  };
  struct Piece {
    int saturated = 0, fractional = 0;
    double sum = 0;  // of the fractional scores less the centre
  };

  // The piece of f just above t.
  __device__ Piece piece_at(const Prefix& p, double t) const {
    Piece piece;
    const int support = first_in(base_, p.pool, [&](double z) { return z <= t; });
    piece.saturated = first_in(base_, support, [&](double z) { return z - 1 <= t; });
    piece.fractional = support - piece.saturated;
    const int begin = piece.saturated;
    if (piece.fractional > kDirect && base_[begin] - centre_ <= kPrefixed &&
        base_[support - 1] - centre_ >= -kPrefixed) {
      piece.sum = sums_[support] - sums_[begin] + piece.fractional * (centre_ - p.centre);
    } else {
      for (int r = begin; r < support; ++r) piece.sum += base_[r] - p.centre;
    }
    for (int y = p.first; y <= p.x; ++y) {
      const double z = own_.z[y];
      if (z <= t || own_.left_pool[y] <= p.x) continue;
      if (z - 1 > t) {
        ++piece.saturated;
      } else {
        ++piece.fractional;
        piece.sum += z - p.centre;
      }
    }
    return piece;
  }

  // After own key x; x = -1: of the base alone.
  __device__ double threshold(int x) const {
    const bool continues = x < continuing_;
    Prefix p{x < 0 ? 0 : own_.first[x], x, 0, 0};
    const int base = continues ? n_ : 0, count = base + x + 1 - p.first;
    if (count < k_) return -INFINITY;
    int members = static_cast<int>(k_), pool = P_ < count ? P_ : count, worst = -1;
    for (int y = p.first; y <= x; ++y) {
      pool -= own_.left_pool[y] > x;
      if (own_.left_k[y] <= x) continue;
      --members;
      if (worst < 0 || own_.rank[y] > own_.rank[worst]) worst = y;
    }
    double least = members > 0 ? base_[members - 1] : INFINITY;
    if (worst >= 0 && own_.z[worst] < least) least = own_.z[worst];
    p.pool = pool, p.centre = least - 1;
    return cross(p, least - 1, least);
  }

  // sup{t : f(t) >= k}, k the scores >= high = low + 1.
  __device__ double cross(const Prefix& p, double low, double high) const {
    const double floor = low;
    double t = low;
    for (int turn = 0; turn < 128; ++turn) {
      const Piece piece = piece_at(p, t);
      const int above = piece.saturated + piece.fractional;
      if (turn == 0 && above <= k_) return floor;  // a plateau: its upper end
      const double missing = piece.sum + static_cast<double>(piece.saturated - k_);
      const double next = piece.fractional > 0 ? floor + missing / piece.fractional : low;
      if (next == t) return t;
      if (turn == 0 && next <= floor) return floor;
      if (missing - piece.fractional * (t - floor) >= 0) low = t;
      else high = t;
      t = next > low && next < high ? next : low + (high - low) / 2;
      if (t <= low || t >= high) return low;
    }
    return low;
  }

  const Chunks& c_;
  Own& own_;
  double *base_, *sums_;  // P scores, u and then z; P + 1 prefix sums
  std::int64_t k_, row_, slot_, item_, start_;
  int P_, n_, candidates_, size_ = 0, continuing_ = 0;  // `continuing_` own keys belong to the base's document
  double centre_ = 0;
};

__global__ void __launch_bounds__(kSettleThreads) settle(const Chunks c) {
  __shared__ Own own;
  Settling s(c, own, reinterpret_cast<double*>(dynamic_shared()));
  if (s.empty()) return s.forget();
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
  const std::int64_t left = c.chunks - c.first, count = left < c.slab ? left : c.slab;
  const auto bytes = static_cast<std::size_t>(2 * c.P + 1) * sizeof(double);
  start("selection: settle", settle, c.rows * count, kSettleThreads, bytes, stream, c);
}

void settle_thresholds(const Chunks& c, const Stream& stream) {
  constexpr int kWarps = kThreads / 32;
  start("selection: thresholds", raise_thresholds, (c.rows * c.chunks + kWarps - 1) / kWarps, kThreads, 0, stream, c);
}

}  // namespace sieve::cuda
