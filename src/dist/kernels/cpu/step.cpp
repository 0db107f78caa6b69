#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/parallel_for.h"
#include "dist/kernels/kernels.h"
#include "dist/kernels/step_control.h"

namespace sieve::cpu {
namespace {

template <class T>
void add_chain(const AddChainArgs& a, std::int64_t from, std::int64_t to) {
  constexpr std::int64_t kChunk = 2048;  // stays in the first-level cache while the sources pass
  T value[kChunk];
  for (std::int64_t begin = from; begin < to; begin += kChunk) {
    const std::int64_t count = std::min(kChunk, to - begin);
    const auto bytes = static_cast<std::size_t>(count) * sizeof(T);
    a.leaf ? std::memcpy(value, static_cast<const T*>(a.leaf) + begin, bytes) : std::memset(value, 0, bytes);
    for (int s = 0; s < a.source_count; ++s) {
      const T* lower = static_cast<const T*>(a.sources[s]) + begin;
      for (std::int64_t i = 0; i < count; ++i) value[i] = lower[i] + value[i];
    }
    std::memcpy(static_cast<T*>(a.dest) + begin, value, bytes);
  }
}

}  // namespace

void run(const AddChainArgs& a) {
  require(a.dtype == DType::f32 || a.dtype == DType::f64, "add_chain", "of ", name_of(a.dtype));
  require(a.source_count >= 0 && a.source_count <= AddChainArgs::kMaxSources, "add_chain", a.source_count, " sources");
  parallel_for(a.n, 1 << 16, [&](std::int64_t begin, std::int64_t end) {
    a.dtype == DType::f64 ? add_chain<double>(a, begin, end) : add_chain<float>(a, begin, end);
  });
}

void run(const StepTotalsArgs& a) {
  double bad = 0;
  for (std::int64_t i = 0; i < a.n; ++i) bad += std::isfinite(a.losses[i]) ? 0 : 1;
  a.totals[0] = a.tokens;
  a.totals[1] = bad;
}

void run(const StepControlArgs& a) {
  const StepControl c = step_control(a.totals[0], a.totals[1], *a.squared_norm, std::sqrt(*a.squared_norm), a.clip);
  a.control[0] = c.scale;
  a.control[1] = c.forbidden;
}

}  // namespace sieve::cpu
