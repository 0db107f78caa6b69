// A threshold's way through a run of consecutive queries of a chunk, by one lane: tau never falls inside a document, so
// that four places, of the scores above t and of those saturated, in the base and in the chunk, only move towards
// better ones. A query costs its newcomer and the breakpoints of f that tau passes.
#pragma once

#include "attention/kernels/cuda/select_lives.cuh"

namespace sieve::cuda {

class ChunkSweep : public ChunkLives {
 public:
  using ChunkLives::ChunkLives;

  // The queries [begin, end), query q after q arrivals, from a place below the threshold of query s.query on, if that
  // is not negative. taus.tau holds what each threshold is never below, and gets the thresholds. Returns the last.
  __device__ double sweep(Run s, int begin, int end) const {
    double last = -INFINITY;
    bool known = s.query >= 0;
    for (int q = known ? s.query : begin; q < end; ++q) {
      const double floor = own_.taus.tau[q];
      const int document = document_of(q);
      if (floor == -INFINITY) {
        known = false, last = -INFINITY;
        continue;
      }
      if (!known || document != s.document) begin_document(q, document, floor, s), last = -INFINITY;
      else if (q != s.query) arrive(q, s);
      known = true;
      const double tau = rise(q, floor, s);
      last = tau > last ? tau : last;  // roundings of neighbours may cross
      own_.taus.tau[q] = last;
    }
    return last;
  }

  // Documents by number; 0: the base's.
  __device__ int document_of(int q) const { return q <= continuing_ ? 0 : own_.first[q - 1] + 1; }

 protected:
  __device__ double z_of(int y) const { return own_.ranked[own_.rank[y]]; }
  // Is arrival y, or kNever, in the pool of query q of the document?
  __device__ bool in_pool(int y, int document, int q) const {
    return y < q && y >= document - 1 && own_.left_pool[y] >= q;
  }

 private:
  static constexpr double kNear = 4;  // so far from the centre sums hold scores

  // Compensated: the roundings of thousands of equal scores would add up.
  __device__ static void add(double z, Run& s) {
    const double part = z - s.rest, sum = s.sum + part;
    s.rest = (sum - s.sum) - part;
    s.sum = sum;
  }
  // A score of the chunk comes (times = 1) or goes (-1).
  __device__ void count(int rank, int times, Run& s) const {
    if (rank < s.own_saturated) {
      s.saturated += times;
    } else if (rank < s.own_above) {
      s.fractional += times;
      add(times * (own_.ranked[rank] - s.centre), s);
    }
  }
  // The newcomer of query q, and whom it pushes out of the pool.
  __device__ void arrive(int q, Run& s) const {
    const int x = q - 1, pushed = own_.pushed_pool[x];
    if (own_.left_pool[x] == x) return;
    count(own_.rank[x], 1, s);
    if (pushed != kNever) {
      count(own_.rank[pushed], -1, s);
    } else if (s.document == 0 && s.pool > 0 && n_ + q > P_) {
      --s.pool;
      if (s.base_saturated > s.pool) --s.base_saturated, --s.saturated, --s.base_above;
      else if (s.base_above > s.pool) --s.base_above, --s.fractional, add(s.centre - base_[s.pool], s);
    }
  }
  // A document that began inside the run, at its first query that sees a threshold.
  __device__ void begin_document(int q, int document, double floor, Run& s) const {
    s = Run{floor, 0, 0, floor, 0, 0, 0, 0, 0, 0, 0, 0, document, q};
    s.own_above = count_above(own_.ranked, 0, candidates_, floor, 0);
    s.own_saturated = count_above(own_.ranked, 0, candidates_, floor, 1);
#pragma unroll 1
    for (int y = document - 1; y < q; ++y) {
      if (in_pool(y, document, q)) count(own_.rank[y], 1, s);
    }
  }
  __device__ void centre_at(double centre, int q, Run& s) const {
    s.centre = centre, s.sum = 0, s.rest = 0, s.widest = s.fractional;
#pragma unroll 1
    for (int r = s.base_saturated; r < s.base_above; ++r) add(base_[r] - centre, s);
#pragma unroll 1
    for (int r = s.own_saturated; r < s.own_above; ++r) {
      if (in_pool(own_.at_rank[r], s.document, q)) add(own_.ranked[r] - centre, s);
    }
  }

  // Where f changes its piece next, were t to rise: for each of the four places. Scores of the chunk change nothing
  // while they are not in the pool.
  struct Ends {
    double base_above, base_saturated, own_above, own_saturated;
    bool above_counts, saturated_counts;
  };
  __device__ static double piece_end(const double* values, int place, double by) {
    return place > 0 ? values[place - 1] - by : INFINITY;
  }
  __device__ bool own_counts(int place, int q, const Run& s) const {
    return place > 0 && in_pool(own_.at_rank[place - 1], s.document, q);
  }
  // t passes a score: it leaves the band, or it was saturated and enters it.
  __device__ static void pass(double z, bool counts, bool above, Run& s) {
    if (!counts) return;
    s.fractional += above ? -1 : 1, s.saturated -= above ? 0 : 1;
    add(above ? s.centre - z : z - s.centre, s);
  }

  // sup{t : f(t) >= k} of query q. Ends up to the floor are passed whatever f says, in exact comparisons: a plateau at
  // k can only end there.
  __device__ double rise(int q, double floor, Run& s) const {
    const int k = static_cast<int>(k_);  // below the scores that compete
    Ends ends{piece_end(base_, s.base_above, 0),      piece_end(base_, s.base_saturated, 1),
              piece_end(own_.ranked, s.own_above, 0), piece_end(own_.ranked, s.own_saturated, 1),
              own_counts(s.own_above, q, s),          own_counts(s.own_saturated, q, s)};
    bool below = s.t <= floor;
    if (!below && floor - s.centre > kNear) centre_at(floor, q, s);
    while (true) {
      const bool base_above = ends.base_above < ends.base_saturated, own_above = ends.own_above < ends.own_saturated;
      const double base = base_above ? ends.base_above : ends.base_saturated,
                   own = own_above ? ends.own_above : ends.own_saturated;
      const bool from_base = base < own, above = from_base ? base_above : own_above;
      const double end = from_base ? base : own;
      if (below && end > floor) {
        below = false, s.t = floor;
        if (floor - s.centre > kNear) centre_at(floor, q, s);
        if (s.saturated + s.fractional <= k) return floor;
      }
      if (!below) {
        // What a wide band left of its roundings would count in a narrow one.
        if (s.fractional > s.widest) s.widest = s.fractional;
        if (4 * s.fractional < s.widest) centre_at(floor, q, s);
        const double missing = s.sum + (s.saturated - k);
        if (!(missing - s.fractional * (end - s.centre) >= 0)) {
          const double tau = s.fractional > 0 ? s.centre + missing / s.fractional : s.t;
          return tau > s.t ? tau : s.t;
        }
        s.t = end;
      }
      const double by = above ? 0 : 1;
      if (from_base) {
        const int place = above ? s.base_above : s.base_saturated;
        pass(base_[place - 1], true, above, s);
        const double next = piece_end(base_, place - 1, by);
        if (above) s.base_above = place - 1, ends.base_above = next;
        else s.base_saturated = place - 1, ends.base_saturated = next;
      } else {
        const int place = above ? s.own_above : s.own_saturated;
        pass(own_.ranked[place - 1], above ? ends.above_counts : ends.saturated_counts, above, s);
        const double next = piece_end(own_.ranked, place - 1, by);
        const bool counts = own_counts(place - 1, q, s);
        if (above) s.own_above = place - 1, ends.own_above = next, ends.above_counts = counts;
        else s.own_saturated = place - 1, ends.own_saturated = next, ends.saturated_counts = counts;
      }
    }
  }
};

}  // namespace sieve::cuda
