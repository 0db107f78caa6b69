// What record() does with an op on this thread. Private to the engine.
#pragma once

#include <functional>

#include "autograd/variable.h"

namespace sieve {

struct GradMode {
  enum class Kind {
    record,
    off,
    note
  };  // note: nothing is recorded, but `note` sees every input that wants a gradient
  Kind kind = Kind::record;
  std::function<void(const Variable&)> note;
};
GradMode& grad_mode();

}  // namespace sieve
