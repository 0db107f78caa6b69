// CUDA kernels against their CPU twins: embedding, scores, AdamW.
#include <array>
#include <cmath>

#include "tensor/gpu_case.h"

using namespace sieve;
using namespace sieve::test;

SIEVE_TWIN_CASE("embedding and its gradient equal their CPU twins") {
  check_twin(
      [](Draw& draw, DType t, Place& place, bool large) {
        const auto [R, C] = matrix(draw, large);
        const std::int64_t V = large ? 50 : draw.integer(1, draw.chance(0.3) ? 3 : 200);
        const bool accumulate = draw.chance(0.5);
        const DType c = compute_dtype(t);
        const Tensor w = place.in(input(draw, {V, C}, t)), ids = place.in(draw.ids({R}, 0, V - 1)),
                     dy = place.in(input(draw, {R, C}, t)), y = place.out({R, C}, t);
        const Tensor dw = accumulate ? place.inout(input(draw, {V, C}, c)) : place.out({V, C}, c);
        const auto* id = ids.data<std::int32_t>();
        launch(place.stream(),
               EmbeddingArgs{.w_VC = w.raw(), .ids_R = id, .y_RC = y.raw(), .R = R, .V = V, .C = C, .dtype = t});
        launch(place.stream(), EmbeddingBackwardArgs{.dy_RC = dy.raw(),
                                                     .ids_R = id,
                                                     .dw_VC = dw.raw(),
                                                     .R = R,
                                                     .V = V,
                                                     .C = C,
                                                     .accumulate = accumulate,
                                                     .dtype = t});
        return std::vector{y, dw};
      },
      1200, 2);
}

TEST_CASE("GPU: an id outside the vocabulary gives NaN, and no gradient", "[gpu][small]") {
  SIEVE_NEEDS_GPU();
  const Stream stream = gpu_stream();
  for (std::int64_t C : {3, 8, 65, 768}) {
    for (DType t : kFloats) {
      CAPTURE(C, name_of(t));
      const Tensor w = full({5, C}, 2, t).to(stream), y = zeros({4, C}, t, stream), dy = full({4, C}, 1, t).to(stream),
                   dw = zeros({5, C}, compute_dtype(t), stream);
      const Tensor ids = from_values<std::int32_t>(std::array{4, 5, -1, 4}, {4}).to(stream);
      const auto* id = ids.data<std::int32_t>();
      launch(stream, EmbeddingArgs{.w_VC = w.raw(), .ids_R = id, .y_RC = y.raw(), .R = 4, .V = 5, .C = C, .dtype = t});
      launch(stream, EmbeddingBackwardArgs{
                         .dy_RC = dy.raw(), .ids_R = id, .dw_VC = dw.raw(), .R = 4, .V = 5, .C = C, .dtype = t});
      const Values rows = values_of(y.to(Stream{})), grad = values_of(dw.to(Stream{}));
      for (std::int64_t c = 0; c < C; ++c) {
        CHECK(rows[idx(c)] == 2);
        CHECK(std::isnan(rows[idx(C + c)]));
        CHECK(std::isnan(rows[idx(2 * C + c)]));
        CHECK(rows[idx(3 * C + c)] == 2);
        CHECK(grad[idx(4 * C + c)] == 2);
        CHECK(grad[idx(c)] == 0);
      }
    }
  }
}

SIEVE_TWIN_CASE("scores and their gradients equal their CPU twins") {
  check_twin(
      [](Draw& draw, DType t, Place& place, bool large) {
        const auto [T, C] = matrix(draw, large, 2048);
        const std::int64_t B = large ? 2 : draw.extent(3), H = large ? 12 : draw.extent(draw.chance(0.3) ? 17 : 5);
        const DType c = compute_dtype(t);
        const bool accumulate = draw.chance(0.5), want_dx = draw.chance(0.8), want_dw = draw.chance(0.8);
        const Tensor x = place.in(input(draw, {B, T, C}, t)), w = place.in(input(draw, {H, C}, c)),
                     ds = place.in(input(draw, {B, H, T}, c)), s = place.out({B, H, T}, c),
                     dx = place.out({B, T, C}, t), old = input(draw, {H, C}, c);
        const Tensor dw = accumulate ? place.inout(old) : place.out({H, C}, c);
        launch(
            place.stream(),
            ScoreArgs{.x_BTC = x.raw(), .w_HC = w.raw(), .s_BHT = s.raw(), .B = B, .T = T, .C = C, .H = H, .dtype = t});
        launch(place.stream(), ScoreBackwardArgs{.ds_BHT = ds.raw(),
                                                 .x_BTC = x.raw(),
                                                 .w_HC = w.raw(),
                                                 .dx_BTC = want_dx ? dx.raw() : nullptr,
                                                 .dw_HC = want_dw ? dw.raw() : nullptr,
                                                 .B = B,
                                                 .T = T,
                                                 .C = C,
                                                 .H = H,
                                                 .accumulate = accumulate,
                                                 .dtype = t});
        return std::vector{s, dx, dw};
      },
      1210, 2);
}

TEST_CASE("GPU: a score does not depend on the batch, the heads or the address it is computed in", "[gpu]") {
  SIEVE_NEEDS_GPU();
  const Stream stream = gpu_stream();
  for (DType t : kFloats) {
    for (std::int64_t C : {203, 768}) {
      const std::int64_t T = 40, H = 6;
      CAPTURE(name_of(t), C);
      Draw draw(9, 9);
      const Tensor x = input(draw, {T, C}, t), w = input(draw, {H, C}, compute_dtype(t));
      const auto scores = [&](const Tensor& rows, const Tensor& heads) {
        const std::int64_t n = rows.size(0), h = heads.size(0);
        const Tensor out = empty({1, h, n}, compute_dtype(t), stream);
        launch(stream, ScoreArgs{.x_BTC = rows.raw(),
                                 .w_HC = heads.raw(),
                                 .s_BHT = out.raw(),
                                 .B = 1,
                                 .T = n,
                                 .C = C,
                                 .H = h,
                                 .dtype = t});
        return out.to(Stream{});
      };
      const Tensor all = scores(x.to(stream), w.to(stream));
      for (std::int64_t i = 0; i < T; i += 7) {
        Tensor shifted = empty({C + 3}, t);
        shifted.slice(0, 3, C + 3).copy_from(x.slice(0, i, i + 1).flatten());
        const Tensor row = shifted.to(stream).slice(0, 3, C + 3).reshape({1, C});
        for (std::int64_t h = 0; h < H; ++h) {
          const Tensor one = scores(row, w.slice(0, h, h + 1).contiguous().to(stream));
          CHECK(same_bits(one, all.slice(1, h, h + 1).slice(2, i, i + 1).contiguous()));
        }
      }
    }
  }
}

SIEVE_TWIN_CASE("AdamW over segments equals its CPU twin") {
  const auto twin = [](Draw& draw, DType, Place& place, bool large) {
    const std::int64_t n = large ? 20011 : draw.integer(0, draw.chance(0.3) ? 20000 : 90);
    const std::int64_t segments = large ? 9 : draw.integer(0, 6);
    std::vector<std::int64_t> ends;
    for (std::int64_t s = 0; s < segments; ++s) ends.push_back(draw.integer(0, n));
    if (segments > 0) ends.back() = n;
    std::sort(ends.begin(), ends.end());
    const Tensor end = place.in(from_values<std::int64_t>(ends, {segments})),
                 decay = place.in(draw.uniform({segments}, 0, 1).to(DType::f32).clone());
    const Tensor p = place.inout(input(draw, {n}, DType::f32)), m = place.inout(input(draw, {n}, DType::f32)),
                 v = place.inout(draw.uniform({n}, 0, 1).to(DType::f32).clone()),
                 g = place.in(input(draw, {n}, DType::f32)), copy = place.out({n}, DType::bf16);
    const std::array<float, 2> values{0.5f, draw.chance(0.1) ? 1.f : 0.f};
    const Tensor control = place.in(from_values<float>(values, {2}));
    launch(place.stream(), AdamWArgs{.p = p.data<float>(),
                                     .m = m.data<float>(),
                                     .v = v.data<float>(),
                                     .g = g.data<float>(),
                                     .copy_bf16 = draw.chance(0.7) ? copy.data<bf16>() : nullptr,
                                     .n = n,
                                     .step = draw.integer(1, 1000),
                                     .lr = 0.01,
                                     .weight_decay = draw.chance(0.7) ? 0.1 : 0,
                                     .grad_scale = 0.3,
                                     .segment_end = end.data<std::int64_t>(),
                                     .segment_decay = decay.data<float>(),
                                     .segments = segments,
                                     .control = draw.chance(0.5) ? control.data<float>() : nullptr});
    return std::vector{p, m, v, copy};
  };
  for (std::uint64_t part = 0; part < 3; ++part) check_twin(twin, 1220 + 2 * part, 1, {DType::f32});
}
