#include "attention/kernels/decode.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "attention/kernels/cpu/rows.h"
#include "core/parallel_for.h"

namespace sieve::cpu {
namespace {

// One (row, key-value head): all its query heads read each cached row once.
template <class T>
class Decode {
 public:
  explicit Decode(const DecodeArgs& args)
      : a(args),
        G(args.H / args.Hkv),
        Dp((args.D + kLanes<T> - 1) / kLanes<T> * kLanes<T>),
        R(args.rotary_dims / 2),
        queries_(size(G * Dp)),
        far_queries_(size(G * Dp)),
        sums_(size(G * Dp)),
        row_(size(Dp)) {}

  void run(std::int64_t b, std::int64_t kv) {
    const std::int64_t s = b * a.Hs + (a.Hs == 1 ? 0 : kv);
    const CachedSlot* slots = a.slots != nullptr ? a.slots + s * a.slot_stride : nullptr;
    const std::int64_t selected = a.slots != nullptr ? a.slot_count[s] : 0, n = a.plain_rows + selected;
    read_queries(b, kv);
    logits_.resize(size(G * n));
    for (std::int64_t r = 0; r < n; ++r) {
      const CachedSlot* slot = r < a.plain_rows ? nullptr : slots + (r - a.plain_rows);
      make_logits(b, kv, slot != nullptr ? slot->row : r, slot, logits_.data() + r, n);
    }
    for (std::int64_t g = 0; g < G && n > 0; ++g) softmax(logits_.data() + g * n, n, slots);
    std::fill(sums_.begin(), sums_.end(), T(0));
    for (std::int64_t r = 0; r < n; ++r) {
      load_row(a.values_BKCD, b, kv, r < a.plain_rows ? r : slots[r - a.plain_rows].row);
      for (std::int64_t g = 0; g < G; ++g) add(logits_[size(g * n + r)], row_.data(), sums_.data() + g * Dp);
    }
    for (std::int64_t g = 0; g < G; ++g) {
      auto* out = static_cast<std::byte*>(a.out_BHD) + (b * a.out_stride + (kv * G + g) * a.D) * element();
      store_row(sums_.data() + g * Dp, a.D, out, a.dtype);
    }
  }

 private:
  static std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }
  std::int64_t element() const { return static_cast<std::int64_t>(size_of(a.dtype)); }
  bool keys_rotated() const { return a.distance_cos == nullptr; }
  void rotate_by(T* row, std::int64_t distance, T sign) const {
    rotate_row(row, static_cast<const T*>(a.distance_cos) + distance * R,
               static_cast<const T*>(a.distance_sin) + distance * R, R, sign);
  }

  void read_queries(std::int64_t b, std::int64_t kv) {
    for (std::int64_t g = 0; g < G; ++g) {
      T* q = queries_.data() + g * Dp;
      convert_row(static_cast<const std::byte*>(a.qkv_BF) + (b * a.qkv_stride + (kv * G + g) * a.D) * element(),
                  a.dtype, a.D, q);
      for (std::int64_t d = 0; d < a.D; ++d) q[d] *= static_cast<T>(a.scale);
      if (R == 0) continue;
      if (keys_rotated()) {
        rotate_row(q, static_cast<const T*>(a.query_cos), static_cast<const T*>(a.query_sin), R, T(1));
      } else {
        std::copy(q, q + Dp, far_queries_.data() + g * Dp);
        rotate_by(far_queries_.data() + g * Dp, a.far_distance, T(1));
      }
    }
  }

  void load_row(const void* base, std::int64_t b, std::int64_t kv, std::int64_t row) {
    const std::int64_t at = ((b * a.Hkv + kv) * a.capacity + row) * a.D;
    convert_row(static_cast<const std::byte*>(base) + at * element(), a.dtype, a.D, row_.data());
  }

  // (R_i q) . (R_j k) = q . (R_{-(i - j)} k): keys that are not rotated turn by minus their distance.
  void make_logits(std::int64_t b, std::int64_t kv, std::int64_t row, const CachedSlot* slot, T* logits,
                   std::int64_t stride) {
    load_row(a.keys_BKCD, b, kv, row);
    const T* queries = queries_.data();
    if (R > 0 && !keys_rotated()) {
      const std::int64_t distance = slot != nullptr ? slot->distance : (a.position - row) % a.ring;
      if (slot != nullptr && distance > a.far_distance) queries = far_queries_.data();
      else rotate_by(row_.data(), distance, T(-1));
    }
    const T m = slot != nullptr && a.gate == GateMode::kv ? static_cast<T>(slot->gate) : T(1);
    for (std::int64_t g = 0; g < G; ++g) {
      Vec<T> sum{};
      for (std::int64_t d = 0; d < Dp; d += kLanes<T>) sum += load(queries + g * Dp + d) * load(row_.data() + d);
      T total = 0;
      for (int l = 0; l < kLanes<T>; ++l) total += sum[l];
      logits[g * stride] = m * total;
    }
  }

  // Logits become the weights of the values.
  void softmax(T* x, std::int64_t n, const CachedSlot* slots) const {
    T top = x[0], sum = 0;
    for (std::int64_t r = 1; r < n; ++r) top = std::max(top, x[r]);
    for (std::int64_t r = 0; r < n; ++r) {
      x[r] = std::exp(x[r] - top);
      if (r >= a.plain_rows && a.gate == GateMode::prob) x[r] *= static_cast<T>(slots[r - a.plain_rows].gate);
      sum += x[r];
    }
    for (std::int64_t r = 0; r < n; ++r) {
      x[r] /= sum;
      const bool gated = r >= a.plain_rows && (a.gate == GateMode::kv || a.gate == GateMode::value);
      if (gated) x[r] *= static_cast<T>(slots[r - a.plain_rows].gate);
    }
  }

  void add(T weight, const T* row, T* sum) const {
    for (std::int64_t d = 0; d < Dp; d += kLanes<T>) store(sum + d, Vec<T>(load(sum + d) + weight * load(row + d)));
  }

  const DecodeArgs& a;
  const std::int64_t G, Dp, R;
  std::vector<T> queries_, far_queries_, sums_;  // (G, Dp), zero padded
  std::vector<T> row_;                           // (Dp), zero padded
  std::vector<T> logits_;                        // (G, rows)
};

template <class T>
void decode(const DecodeArgs& a) {
  const std::int64_t work = (a.plain_rows + (a.slots != nullptr ? a.slot_stride : 0)) * a.D * (a.H / a.Hkv + 1);
  parallel_for(a.B * a.Hkv, std::max<std::int64_t>(1, 100000 / std::max<std::int64_t>(1, work)),
               [&](std::int64_t first, std::int64_t last) {
                 Decode<T> work(a);
                 for (std::int64_t x = first; x < last; ++x) work.run(x / a.Hkv, x % a.Hkv);
               });
}

}  // namespace

void run(const DecodeArgs& a) {
  if (a.dtype == DType::f64) decode<double>(a);
  else decode<float>(a);
}

void run(const CacheStoreArgs& a) {
  dispatch_float(a.dtype, "cache", [&]<class T>() {
    using C = compute_t<T>;
    const std::int64_t R = a.rotary_dims / 2, features = (a.H + 2 * a.Hkv) * a.D;
    const auto bytes = static_cast<std::size_t>(a.D) * sizeof(T);
    for (std::int64_t x = 0; x < a.count; ++x) {
      const CacheMove& m = a.moves[x];
      const std::int64_t rows = (m.b * a.Hkv + m.kv) * a.capacity;
      T* const keys = static_cast<T*>(a.keys_BKCD) + rows * a.D;
      T* const values = static_cast<T*>(a.values_BKCD) + rows * a.D;
      T* const key = keys + m.to * a.D;
      if (m.from < 0) {
        std::memcpy(key, keys + (-1 - m.from) * a.D, bytes);
        std::memcpy(values + m.to * a.D, values + (-1 - m.from) * a.D, bytes);
        continue;
      }
      const T* token = static_cast<const T*>(a.qkv_BNF) + (m.b * a.N + m.from) * features;
      std::memcpy(key, token + (a.H + m.kv) * a.D, bytes);
      std::memcpy(values + m.to * a.D, token + (a.H + a.Hkv + m.kv) * a.D, bytes);
      for (std::int64_t r = 0; r < R; ++r) {
        const C c = static_cast<const C*>(a.cos_NR)[m.from * R + r],
                s = static_cast<const C*>(a.sin_NR)[m.from * R + r], p = static_cast<C>(key[r]),
                q = static_cast<C>(key[R + r]);
        key[r] = static_cast<T>(p * c - q * s);
        key[R + r] = static_cast<T>(q * c + p * s);
      }
    }
  });
}

}  // namespace sieve::cpu
