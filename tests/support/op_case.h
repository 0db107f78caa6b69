// One struct per op drives its gradient check and its low-precision check (and is made to drive device parity and
// benchmarks): how to draw random inputs, and how to call the op on them. Every registered op has one; a test compares
// the names.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "support/draw.h"
#include "support/gradcheck.h"

namespace sieve::test {

struct OpSample {
  std::string text;            // what was drawn, for messages
  std::vector<Tensor> inputs;  // fp64, dense, O(1); the harness makes views, low-precision copies and leaves of them
  Build build;                 // calls the op; integer inputs and attributes are captured
  // The same function from simpler ops, each rounding its result: its error is the yardstick of the low-precision
  // check. Empty: the yardstick is the fp64 result rounded once.
  Build naive;
};

struct OpCase {
  std::string name;  // as registered
  std::function<OpSample(Draw&)> draw;
  bool has_empty = true;      // some samples have an empty input (checked)
  bool low_precision = true;  // false for ops without a bf16 form
  double step = 1e-5;         // of the central differences
};

struct OpReport {
  double worst = 0;      // of the measure of the check
  double yardstick = 0;  // naive error (low-precision check)
  std::string where;     // the sample of `worst`
  int samples = 0, empty = 0, ones = 0,
      views = 0;  // how many samples had an empty input, an extent of 1, a strided input
};

// Draws `samples` random inputs, of which a third as strided views and some without gradients for every input.
// worst = max |fd - g| / max(1, max |g|).
OpReport check_case_gradients(const OpCase& op, int samples);

// Inputs rounded to `dtype`; output and gradients against fp64 of the same rounded inputs. worst and yardstick are the
// largest errors over all samples, each divided by max(1, max |fp64 result|).
OpReport check_case_precision(const OpCase& op, DType dtype, int samples);

// fp32 on the device of `stream` against fp32 on the CPU, output and gradients. worst as above.
OpReport check_case_on_device(const OpCase& op, const Stream& stream, int samples);

// A strided view with the same values: padded, transposed or stepped storage with NaN in the gaps.
Tensor as_view(const Tensor& t, Draw& draw);

}  // namespace sieve::test
