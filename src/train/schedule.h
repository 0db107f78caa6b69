// Learning rates as pure functions of the step: nothing to save, nothing to restore.
#pragma once

#include <cstdint>
#include <string_view>

#include "core/fields.h"

namespace sieve {

enum class ScheduleType { cosine, wsd, linear, constant, inv_sqrt };
inline constexpr std::string_view kScheduleNames[] = {"cosine", "wsd", "linear", "constant", "inv_sqrt"};

struct ScheduleConfig {
  ScheduleType type = ScheduleType::cosine;
  std::int64_t warmup = 0;
  double min_lr = 0;
  double decay = 0.2;

  void fields(FieldVisitor& v);
};

// The rate of update `step` (0 <= step < total) with peak rate `lr`. During the first `warmup` updates it rises
// linearly, lr (step + 1) / warmup; then, with progress p = (step - warmup) / (total - warmup):
//   cosine    min_lr + (lr - min_lr) (1 + cos(pi p)) / 2     (Loshchilov & Hutter 2017, arXiv 1608.03983, without
//   restarts) linear    lr + (min_lr - lr) p wsd       lr until the last decay * total updates, then linearly towards
//   min_lr     (Hu et al. 2024, arXiv 2404.06395) constant  lr inv_sqrt  max(min_lr, lr sqrt(w / (step + 1))), w =
//   max(warmup, 1)                  (Vaswani et al. 2017, arXiv 1706.03762)
// A falling rate reaches min_lr at step = total, the update after the last one.
double learning_rate(const ScheduleConfig& schedule, double lr, std::int64_t step, std::int64_t total);

}  // namespace sieve
