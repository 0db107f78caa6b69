// The op cases of src/autograd/ops. Benchmarks and device tests use them too.
#pragma once

#include <vector>

#include "support/op_case.h"

namespace sieve::test {

std::vector<OpCase> autograd_op_cases();

}  // namespace sieve::test
