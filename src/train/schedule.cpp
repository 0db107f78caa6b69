#include "train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/error.h"

namespace sieve {

void ScheduleConfig::fields(FieldVisitor& v) {
  v.choice({"type", "shape of the learning rate after the warm-up"}, kScheduleNames, type);
  v.integer({.name = "warmup", .doc = "updates of linear warm-up from 0", .min = 0}, warmup);
  v.real({.name = "min_lr", .doc = "rate at the end of the run (cosine, linear, wsd) or floor (inv_sqrt)", .min = 0},
         min_lr);
  v.real({.name = "decay", .doc = "wsd: share of all updates over which the rate falls at the end", .min = 0, .max = 1},
         decay);
}

double learning_rate(const ScheduleConfig& schedule, double lr, std::int64_t step, std::int64_t total) {
  const double floor = schedule.min_lr;
  if (step < schedule.warmup) return lr * static_cast<double>(step + 1) / static_cast<double>(schedule.warmup);
  const auto span = static_cast<double>(std::max<std::int64_t>(1, total - schedule.warmup));
  const double progress = std::min(1.0, static_cast<double>(step - schedule.warmup) / span);
  switch (schedule.type) {
    case ScheduleType::cosine: return floor + 0.5 * (lr - floor) * (1.0 + std::cos(std::numbers::pi * progress));
    case ScheduleType::linear: return lr + (floor - lr) * progress;
    case ScheduleType::constant: return lr;
    case ScheduleType::wsd: {
      const double falling = schedule.decay * static_cast<double>(total);
      const double left = static_cast<double>(total - step);
      return left >= falling ? lr : floor + (lr - floor) * std::max(0.0, left) / falling;
    }
    case ScheduleType::inv_sqrt: {
      const auto scale = static_cast<double>(std::max<std::int64_t>(1, schedule.warmup));
      return std::max(floor, lr * std::sqrt(scale / static_cast<double>(step + 1)));
    }
  }
  fail(Exit::internal, "schedule", "unknown type ", static_cast<int>(schedule.type));
}

}  // namespace sieve
