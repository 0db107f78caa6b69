// Rows that leave a cache, as tokens again.
#include <algorithm>

#include "attention/kernels/cpu/linear_head.h"

namespace sieve::cpu {

void run(const EvictedRowArgs& a) {
  by_linear_dtype(a.dtype, [&]<class T>() {
    using C = compute_t<T>;
    const std::int64_t R = a.rotary_dims / 2, features = (a.H + 2 * a.Hkv) * a.D;
    for (std::int64_t x = 0; x < a.count; ++x) {
      const EvictedRow& r = a.rows[x];
      const std::int64_t from = ((r.b * a.Hkv + r.kv) * a.capacity + r.row) * a.D;
      T* key = static_cast<T*>(a.qkv_BNF) + (r.b * a.N + r.to) * features + (a.H + r.kv) * a.D;
      std::copy_n(static_cast<const T*>(a.keys_BKCD) + from, a.D, key);
      std::copy_n(static_cast<const T*>(a.values_BKCD) + from, a.D, key + a.Hkv * a.D);
      for (std::int64_t d = 0; d < R; ++d) {
        const C c = static_cast<const C*>(a.cos_XR)[x * R + d], s = static_cast<const C*>(a.sin_XR)[x * R + d],
                u = static_cast<C>(key[d]), v = static_cast<C>(key[R + d]);
        key[d] = static_cast<T>(u * c + v * s);
        key[R + d] = static_cast<T>(v * c - u * s);
      }
    }
  });
}

}  // namespace sieve::cpu
