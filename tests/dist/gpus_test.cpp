// Which GPU is whose, without one: what ranks say of their GPUs is given here.
#include "dist/gpus.h"

#include <functional>
#include <string>
#include <vector>

#include "dist/thread_communicator.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/gpu.h"

using namespace sieve;
using sieve::test::contains;
using sieve::testing::run_ranks;

namespace {

std::string message_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    CHECK(e.code() == Exit::config);
    return e.what();
  }
  return "";
}

// What one of the ranks says of these GPUs.
std::string verdict(const std::vector<GpuIdentity>& gpus) {
  return message_of([&] {
    run_ranks(static_cast<int>(gpus.size()),
              [&](Communicator& comm) { check_own_gpus(comm, gpus[static_cast<std::size_t>(comm.rank())]); });
  });
}

}  // namespace

TEST_CASE("a rank takes the GPU of its number or the only one it sees") {
  CHECK(gpu_of_rank(0, 1).index == 0);
  CHECK(gpu_of_rank(3, 4).index == 3);
  CHECK(gpu_of_rank(3, 1).index == 0);  // a launcher that shows every rank its own
  const std::string text = message_of([] { gpu_of_rank(2, 2); });
  CHECK(contains(text, "rank 2 of this machine"));
  CHECK(contains(text, "sees 2"));
  CHECK(contains(message_of([] { gpu_of_rank(0, 0); }), "device.type=cpu"));
}

TEST_CASE("two ranks on one GPU are told apart by machine and bus id") {
  CHECK(verdict({{"a", "0000:1B:00.0"}}).empty());
  CHECK(verdict({{"a", "0000:1B:00.0"}, {"a", "0000:1C:00.0"}, {"b", "0000:1B:00.0"}}).empty());
  CHECK(verdict({{"", ""}, {"", ""}}).empty());  // a run on CPUs
  const std::string text = verdict({{"a", "0000:1B:00.0"}, {"a", "0000:1C:00.0"}, {"a", "0000:1C:00.0"}});
  CHECK(contains(text, "ranks 1 and 2"));
  CHECK(contains(text, "0000:1C:00.0"));
  CHECK(contains(text, "CUDA_VISIBLE_DEVICES"));
}

TEST_CASE("a rank that sees no GPU beside one that does is an error on both") {
  const std::string text = verdict({{"a", "0000:1B:00.0"}, {"", ""}});
  CHECK(contains(text, "rank 0 computes on a GPU"));
  CHECK(contains(text, "rank 1 on the CPU"));
}

TEST_CASE("a GPU is known by machine and bus id", "[gpu]") {
  SIEVE_NEEDS_GPU();
  const GpuIdentity first = identity_of({Device::Kind::cuda, 0});
  INFO(first.host << " " << first.bus);
  CHECK(!first.host.empty());
  CHECK(first.bus.size() >= 12);  // domain:bus:device.function
  CHECK(contains(first.bus, "."));
  for (int other = 1; other < cuda_device_count(); ++other)
    CHECK(identity_of({Device::Kind::cuda, other}).bus != first.bus);
}
