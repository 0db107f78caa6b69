// The arithmetic of StepControlArgs, the same on host and device: plain fp64, each operation rounded by itself.
#pragma once

#include "core/dtype.h"

namespace sieve {

struct StepControl {
  float scale = 0, forbidden = 0;
};

SIEVE_HD inline StepControl step_control(double tokens, double nonfinite, double squared_norm, double norm,
                                         double clip) {
  const double per_token = 1.0 / (tokens > 1.0 ? tokens : 1.0);
  const double seen = norm * per_token;
  const double factor = clip > 0 && seen > clip ? clip / seen : 1.0;
  // x - x is 0 for finite x alone.
  const bool bad = nonfinite > 0 || !(squared_norm - squared_norm == 0.0);
  return {static_cast<float>(per_token * factor), bad ? 1.f : 0.f};
}

}  // namespace sieve
