// The caching allocator: alignment, reuse, bounded waste, statistics, threads, exhaustion.
#include <cstdint>
#include <cstring>
#include <thread>

#include "support/gpu.h"
#include "tensor/kernel_case.h"

using namespace sieve;
using namespace sieve::test;

namespace {

const Device kCpu{};

std::shared_ptr<Buffer> get(std::size_t bytes) { return allocate(bytes, Stream{}); }

}  // namespace

TEST_CASE("blocks are aligned, writable and distinct") {
  std::vector<std::shared_ptr<Buffer>> live;
  for (std::size_t bytes : {0, 1, 63, 64, 65, 1000, 1024, 1025, 100000, 5000001}) {
    for (int copy = 0; copy < 2; ++copy) {
      live.push_back(get(bytes));
      CHECK(reinterpret_cast<std::uintptr_t>(live.back()->data()) % 64 == 0);
      CHECK(live.back()->bytes() == bytes);
      std::memset(live.back()->data(), static_cast<int>(live.size()), bytes);
    }
  }
  for (std::size_t i = 0; i < live.size(); ++i) {
    const auto* p = static_cast<const unsigned char*>(live[i]->data());
    CHECK(std::all_of(p, p + live[i]->bytes(), [i](unsigned char c) { return c == i + 1; }));
  }
}

TEST_CASE("a returned block serves the next request of its size, without the system") {
  release_cached_memory(kCpu);
  const void* first = get(3000000)->data();
  const auto before = memory_stats(kCpu);
  for (int round = 0; round < 100; ++round) CHECK(get(3000000)->data() == first);
  CHECK(get(2900000)->data() == first);  // a little smaller fits as well
  const auto after = memory_stats(kCpu);
  CHECK(after.allocations - before.allocations == 101);
  CHECK(after.system_allocations == before.system_allocations);
  CHECK(get(1500000)->data() != first);  // half of it would be wasted
  CHECK(memory_stats(kCpu).system_allocations == before.system_allocations + 1);
}

TEST_CASE("statistics count live bytes, their peak and what is held for reuse") {
  release_cached_memory(kCpu);
  reset_peak_memory(kCpu);
  const auto base = memory_stats(kCpu);
  CHECK(base.cached_bytes == 0);
  CHECK(base.peak_bytes == base.current_bytes);
  {
    const Tensor a = empty({1000, 1000}, DType::f32), b = empty({1000}, DType::f64);
    CHECK(memory_stats(kCpu).current_bytes - base.current_bytes == 4008000);
    const Tensor view = a.slice(0, 10, 20);  // views cost nothing
    CHECK(memory_stats(kCpu).current_bytes - base.current_bytes == 4008000);
  }
  const auto after = memory_stats(kCpu);
  CHECK(after.current_bytes == base.current_bytes);
  CHECK(after.peak_bytes - base.peak_bytes == 4008000);
  CHECK(after.cached_bytes >= 4008000);
  CHECK(after.cached_bytes <= 4008000 * 9 / 8);  // a size class wastes at most an eighth
  reset_peak_memory(kCpu);
  CHECK(memory_stats(kCpu).peak_bytes == base.current_bytes);
  release_cached_memory(kCpu);
  CHECK(memory_stats(kCpu).cached_bytes == 0);
}

TEST_CASE("a block wastes at most an eighth") {
  for (std::int64_t bytes = 1025; bytes < 100000000; bytes = bytes * 21 / 20 + 1) {
    release_cached_memory(kCpu);
    (void)get(static_cast<std::size_t>(bytes));
    const std::int64_t capacity = memory_stats(kCpu).cached_bytes;
    CAPTURE(bytes, capacity);
    CHECK(capacity >= bytes);
    CHECK(capacity <= bytes + bytes / 8);
  }
}

TEST_CASE("what is held stays near the highest need") {
  release_cached_memory(kCpu);
  // Ever new sizes, 16 MiB live at a time: without a bound the cache would grow to gigabytes.
  for (std::size_t round = 0; round < 400; ++round) (void)get((std::size_t{8} << 20) + round * 20000);
  const auto stats = memory_stats(kCpu);
  CHECK(stats.cached_bytes <=
        (std::int64_t{16} << 20) * 9 / 8 * 5 / 4 + (std::int64_t{64} << 20) + stats.current_bytes);
  release_cached_memory(kCpu);
}

TEST_CASE("threads may allocate and free at the same time, also each other's blocks") {
  const auto base = memory_stats(kCpu).current_bytes;
  std::vector<std::shared_ptr<Buffer>> exchange(64);
  std::mutex mutex;
  std::vector<std::thread> threads;
  std::atomic<int> damaged = 0;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      Draw draw(3, t);
      for (int round = 0; round < 2000; ++round) {
        auto block = get(static_cast<std::size_t>(draw.integer(1, 3000)));
        std::memset(block->data(), static_cast<int>(t), block->bytes());
        const auto* p = static_cast<const unsigned char*>(block->data());
        damaged += !std::all_of(p, p + block->bytes(), [t](unsigned char c) { return c == t; });
        const std::lock_guard lock(mutex);
        exchange[idx(draw.integer(0, 63))].swap(block);
      }
    });
  }
  for (auto& t : threads) t.join();
  exchange.clear();
  CHECK(damaged == 0);
  CHECK(memory_stats(kCpu).current_bytes == base);
}

TEST_CASE("exhaustion is an error with numbers, and leaves the allocator usable") {
  CHECK(physical_memory_bytes() > (std::int64_t{1} << 28));
  const Tensor live = empty({1 << 20}, DType::f32);
  const auto held = static_cast<std::size_t>(physical_memory_bytes());
  for (std::size_t bytes : {held - (std::size_t{1} << 20), held + 1, std::size_t{1} << 62}) {
    const std::string text = message_of([&] { (void)get(bytes); }, Exit::memory);
    CAPTURE(text);
    CHECK(has(text, "[allocator] out of memory on the cpu: " + std::to_string(bytes) + " bytes wanted"));
    CHECK(has(text, "MiB in live tensors"));
    CHECK(has(text, "MiB of physical memory"));
  }
  CHECK(get(100)->bytes() == 100);
}

TEST_CASE("tensors in static variables may outlive everything") {
  static Tensor forever;
  forever = zeros({100}, DType::f32);  // freed after main: a crash or a leak report would fail the test program
  CHECK(forever.defined());
}

// Kernels read null as "not given": an empty tensor is given.
TEST_CASE("GPU: an empty tensor has an address, and counts no bytes", "[gpu][small]") {
  SIEVE_NEEDS_GPU();
  const std::int64_t before = memory_stats(gpu_stream().device).current_bytes;
  const Tensor t = empty({0, 3}, DType::f32, gpu_stream()), copy = zeros({3, 0}, DType::bf16).to(gpu_stream());
  CHECK(t.raw() != nullptr);
  CHECK(copy.raw() != nullptr);
  CHECK(memory_stats(gpu_stream().device).current_bytes == before);
  CHECK(copy.to(Stream{}).shape() == Shape{3, 0});
}
