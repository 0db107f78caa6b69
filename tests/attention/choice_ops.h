// Op cases of what stands around a choice of keys: rotation, shared queries and keys, the indexer's loss.
#pragma once

#include <cmath>

#include "attention/indexer.h"
#include "attention/rotate.h"
#include "attention/shared_qk.h"
#include "support/op_case.h"

namespace sieve::test {

inline OpSample draw_rotate_heads(Draw& d) {
  const std::int64_t B = d.extent(3), T = d.extent(12), H = d.integer(1, 3), D = d.integer(1, 9);
  const RopeSpec rope{2 * d.integer(0, D / 2), d.chance(0.5) ? 100.0 : 10000.0};
  const std::int64_t first = d.chance(0.5) ? 0 : d.integer(1, 200);
  return {cat(B, " ", T, " ", H, " ", D, " rotary ", rope.rotary_dims),
          {d.normal({B, T, H * D})},
          [=](const std::vector<Variable>& x) { return rotate_heads(x[0], H, rope, first); },
          {}};
}

inline OpSample draw_rotate_first_heads(Draw& d) {
  const std::int64_t B = d.extent(3), T = d.extent(12), H = d.integer(1, 4), D = d.integer(1, 9);
  const std::int64_t turned = d.integer(0, H), first = d.chance(0.5) ? 0 : d.integer(1, 200);
  const RopeSpec rope{2 * d.integer(0, D / 2), d.chance(0.5) ? 100.0 : 10000.0};
  Tensor starts;
  if (d.chance(0.6)) {
    starts = zeros({B, T}, DType::i32);
    for (std::int64_t x = 0; x < B * T; ++x) {
      const std::int64_t t = x % T;
      if (t > 0)
        starts.data<std::int32_t>()[x] =
            d.chance(0.2) ? static_cast<std::int32_t>(t) : starts.data<std::int32_t>()[x - 1];
    }
  }
  return {
      cat(B, " ", T, " ", turned, "/", H, " ", D, " rotary ", rope.rotary_dims, starts.defined() ? " documents" : ""),
      {d.normal({B, T, H * D})},
      [=](const std::vector<Variable>& x) {
        const Tensor there = starts.defined() ? starts.to(x[0].value().stream()) : Tensor();
        return rotate_first_heads(x[0], H, turned, rope, there, first);
      },
      {}};
}

inline OpSample draw_shared_qk(Draw& d) {
  const std::int64_t B = d.extent(3), T = d.extent(6), Hv = d.integer(1, 2), H = Hv * d.integer(1, 3),
                     D = d.integer(3, 9);
  return {cat(B, " ", T, " ", H, "/", Hv, " ", D),
          {d.normal({B, T, (H + Hv) * D})},
          [=](const std::vector<Variable>& x) { return shared_qk(x[0], H, Hv, D); },
          {}};
}

// Whether a product of an index query and an index key is so near 0 that a finite difference sees ReLU's corner.
inline bool near_corner(const Tensor& q, const Tensor& k) {
  const std::int64_t B = q.size(0), H = q.size(1), T = q.size(2), D = q.size(3);
  for (std::int64_t x = 0; x < B * H * T * T; ++x) {
    const std::int64_t j = x % T, i = x / T % T, h = x / T / T % H, b = x / T / T / H;
    double sum = 0;
    for (std::int64_t c = 0; c < D; ++c)
      sum += q.data<double>()[((b * H + h) * T + i) * D + c] * k.data<double>()[(b * T + j) * D + c];
    if (std::abs(sum) < 1e-3) return true;
  }
  return false;
}

inline OpSample draw_index_loss(Draw& d) {
  for (;;) {
    const std::int64_t B = d.extent(2), T = d.extent(7), Hi = d.integer(1, 3), Di = d.integer(1, 5);
    AttentionInputs how;
    how.spec.kind = AttentionKind::dsa;
    how.spec.n_kv_heads = d.integer(1, 2), how.spec.n_heads = how.spec.n_kv_heads * d.integer(1, 2);
    how.spec.head_dim = 4, how.rope.rotary_dims = d.chance(0.5) ? 4 : 0;
    const Tensor q = d.normal({B, Hi, T, Di}), k = d.normal({B, 1, T, Di}), w = d.normal({B, Hi, T});
    if (near_corner(q, k)) continue;
    const Tensor qkv = d.normal({B, T, how.spec.qkv_features()});
    const Tensor choice = index_choice({Variable(q), Variable(k), Variable(w)}, d.integer(1, 4));
    return {cat(B, " ", T, " ", Hi, " ", Di),
            {q, k, w},
            [=](const std::vector<Variable>& x) {
              return index_loss({x[0], x[1], x[2]}, choice, qkv, how);
            },
            {}};
  }
}

// The loss is a constant here: its gradient is 1 by definition, not the derivative of anything.
inline OpSample draw_with_loss(Draw& d) {
  const Shape shape = d.shape(3, 4);
  return {"with_loss",
          {d.normal(shape)},
          [](const std::vector<Variable>& x) {
            return with_loss(x[0], Variable(full({}, 3, DType::f64, x[0].value().stream())));
          },
          {}};
}

inline std::vector<OpCase> choice_op_cases() {
  return {{.name = "rotate_heads", .draw = draw_rotate_heads},
          {.name = "rotate_first_heads", .draw = draw_rotate_first_heads},
          {.name = "shared_qk", .draw = draw_shared_qk},
          {.name = "index_loss", .draw = draw_index_loss, .low_precision = false},
          {.name = "with_loss", .draw = draw_with_loss}};
}

}  // namespace sieve::test
