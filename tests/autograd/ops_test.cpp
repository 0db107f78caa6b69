// Every registered op: gradients in fp64 against finite differences, fp32 and bf16 against fp64.
#include "autograd/ops.h"

#include <algorithm>
#include <string>
#include <vector>

#include "autograd/registry.h"
#include "core/error.h"
#include "op_cases.h"
#include "support/catch.h"
#include "support/compare.h"
#include "support/errors.h"
#include "support/gpu.h"

using namespace sieve;
using namespace sieve::test;

TEST_CASE("every registered op has exactly one case, and every case a registered op") {
  std::vector<std::string> cases, names;
  for (const OpCase& c : autograd_op_cases()) cases.push_back(c.name);
  for (std::string_view n : registered_ops()) names.emplace_back(n);
  std::sort(cases.begin(), cases.end());
  std::sort(names.begin(), names.end());
  CHECK(cases == names);
}

// Nothing but its number tells a second CPU from the first.
TEST_CASE("every op refuses each of its inputs where the others lie on another device") {
  for (const OpCase& op : autograd_op_cases()) {
    CAPTURE(op.name);
    Draw d(194, 0);
    const OpSample sample = op.draw(d);
    for (std::size_t x = 0; sample.inputs.size() > 1 && x < sample.inputs.size(); ++x) {
      if (!sample.inputs[x].defined()) continue;
      std::vector<Variable> in;
      for (std::size_t i = 0; i < sample.inputs.size(); ++i)
        in.emplace_back(i == x ? sample.inputs[i].to(Stream{.device = {.index = 1}}) : sample.inputs[i]);
      const std::string text = error_text([&] { (void)sample.build(in); });
      INFO(text);
      CHECK(contains(text, cat("[", op.name, "] input ")));
      CHECK(contains(text, "lies on cpu, the op runs on cpu"));
    }
  }
}

TEST_CASE("gradients agree with central differences in fp64") {
  for (const OpCase& op : autograd_op_cases()) {
    const OpReport report = check_case_gradients(op, 200);
    INFO(report.where);
    CAPTURE(op.name);
    CHECK(report.worst <= 1e-7);
    CHECK(report.samples == 200);
    CHECK(report.ones > 0);
    CHECK(report.views > 0);
    CHECK((report.empty > 0 || !op.has_empty));
  }
}

TEST_CASE("bf16 and fp32 stay within twice the naive rounding error") {
  for (const OpCase& op : autograd_op_cases()) {
    if (!op.low_precision) continue;
    for (const DType dtype : {DType::bf16, DType::f32}) {
      const OpReport report = check_case_precision(op, dtype, 200);
      INFO(report.where);
      CAPTURE(op.name, name_of(dtype), report.worst, report.yardstick);
      // eps: 32 roundings in fp32, for the fp32 runs, whose yardstick is one rounding, and for exact results in bf16.
      CHECK(report.worst <= 2 * report.yardstick + 32 * 0x1p-24);
    }
  }
}

namespace {

void check_on_gpu(int samples) {
  for (const OpCase& op : autograd_op_cases()) {
    const OpReport report = check_case_on_device(op, gpu_stream(), samples);
    INFO(report.where);
    CAPTURE(op.name);
    CHECK(report.worst <= 1e-5);  // the same short sums in another order
  }
}

}  // namespace

TEST_CASE("GPU: ops and their gradients are those of the CPU in fp32", "[gpu]") {
  SIEVE_NEEDS_GPU();
  check_on_gpu(60);
}

TEST_CASE("GPU, a few samples: ops and their gradients", "[gpu][small]") {
  SIEVE_NEEDS_GPU();
  check_on_gpu(4);
}
