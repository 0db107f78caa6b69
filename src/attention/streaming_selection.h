// SparseK's selection one candidate at a time, for decoding: constant memory, k slots and pool * k scalars. Gives the
// same members as cpu::select (kernels/select.h) bit for bit, and the same thresholds to rounding.
#pragma once

#include <cstdint>
#include <limits>

#include "attention/kernels/top_k_heap.h"
#include "attention/sparsek.h"

namespace sieve {

// State of one (batch row, score head). Candidates are offered in the order in which they enter (key index ascending);
// the threshold after the offer of key j is the one that query j + delay sees.
class StreamingSelection {
 public:
  // pool: thresholds see the top pool * k scores, 0 = all (then memory grows with the soft band). thresholds = false:
  // tau stays -inf.
  StreamingSelection(std::int64_t k, std::int64_t pool, double slope, double temperature, bool thresholds);

  struct Offer {
    std::int64_t slot;     // the slot of the new member, -1: it does not enter
    std::int64_t evicted;  // key index that held the slot before, -1: it was free
  };
  // score: fp32 or fp64 score of the candidate; position: counted from the start of its document (kernels/select.h);
  // keys ascend.
  Offer offer(double score, std::int64_t position) { return offer(score, position, position); }
  Offer offer(double score, std::int64_t position, std::int64_t key);

  void reset();  // a new document

  std::int64_t k() const { return members_.capacity(); }
  std::int64_t size() const { return members_.size(); }  // occupied slots: 0 .. size() - 1
  double tau() const;                                    // -inf while at most k candidates were offered
  std::int64_t key(std::int64_t slot) const { return members_.at_slot(slot).key; }  // key index held by a slot
  double u(std::int64_t slot) const { return members_.at_slot(slot).u; }            // its ordered score
  double z(std::int64_t slot) const;     // its score as the operator sees it: m = clip(z - tau, 0, 1)
  double gate(std::int64_t slot) const;  // m itself
  std::int64_t scalars() const { return operator_.kept(); }  // scores kept for the threshold, at most pool * k
  const IncrementalSparseK& thresholds() const { return operator_; }

 private:
  double slope_, temperature_;
  bool thresholds_;
  std::int64_t offered_ = 0;
  TopKHeap members_;
  IncrementalSparseK operator_;
};

}  // namespace sieve
