#include "attention/kernels/linear.h"
#include "core/error.h"

namespace sieve::cuda {

void run(const LinearArgs&, Stream) {
  fail(Exit::config, "attention", "types linear and gla have no GPU kernel: run them with device.type=cpu");
}
void run(const LinearBackwardArgs&, Stream) {
  fail(Exit::config, "attention", "types linear and gla have no GPU kernel: run them with device.type=cpu");
}

}  // namespace sieve::cuda
