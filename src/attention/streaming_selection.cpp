#include "attention/streaming_selection.h"

#include <algorithm>

#include "attention/kernels/select.h"
#include "core/error.h"

namespace sieve {

StreamingSelection::StreamingSelection(std::int64_t k, std::int64_t pool, double slope, double temperature,
                                       bool thresholds)
    : slope_(slope),
      temperature_(temperature),
      thresholds_(thresholds),
      members_(k),
      operator_(k, pool_scores(pool, k)) {
  require(temperature > 0, "sparsek", "temperature must be positive, got ", temperature);
}

StreamingSelection::Offer StreamingSelection::offer(double score, std::int64_t position, std::int64_t key) {
  const double u = order_score(score, slope_, position);
  ++offered_;
  if (thresholds_) operator_.add(operator_score(u, temperature_));
  const auto [slot, evicted] = members_.offer(u, key);
  return {slot, evicted};
}

void StreamingSelection::reset() {
  offered_ = 0;
  members_.clear();
  operator_.clear();
}

double StreamingSelection::tau() const {
  return offered_ > k() ? operator_.tau() : -std::numeric_limits<double>::infinity();
}

double StreamingSelection::z(std::int64_t slot) const { return operator_score(members_.at_slot(slot).u, temperature_); }

double StreamingSelection::gate(std::int64_t slot) const { return std::clamp(z(slot) - tau(), 0.0, 1.0); }

}  // namespace sieve
