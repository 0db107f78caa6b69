// Embedding, cross entropy, scores and AdamW against loops in fp64.
#include <cmath>
#include <limits>

#include "tensor/kernel_case.h"

using namespace sieve;
using namespace sieve::test;

TEST_CASE("embedding gathers rows and scatters gradients in row order") {
  check_family(
      [](Draw& draw, DType t, bool large) {
        const std::int64_t R = large ? 1500 : draw.integer(0, 40), V = large ? 97 : draw.integer(1, 20),
                           C = large ? 65 : draw.width();
        const bool accumulate = draw.chance(0.5);
        const DType c = compute_dtype(t);
        const Tensor w = input(draw, {V, C}, t), ids = draw.ids({R}, 0, V - 1), dy = input(draw, {R, C}, t),
                     old = input(draw, {V, C}, c);
        const Tensor y = output({R, C}, t), dw = accumulate ? old.clone() : output({V, C}, c);
        const auto* id = ids.data<std::int32_t>();
        launch({}, EmbeddingArgs{.w_VC = w.raw(), .ids_R = id, .y_RC = y.raw(), .R = R, .V = V, .C = C, .dtype = t});
        launch({}, EmbeddingBackwardArgs{.dy_RC = dy.raw(),
                                         .ids_R = id,
                                         .dw_VC = dw.raw(),
                                         .R = R,
                                         .V = V,
                                         .C = C,
                                         .accumulate = accumulate,
                                         .dtype = t});
        return Outcome{{y, dw}, [=] {
                         const Values table = values_of(w), d = values_of(dy);
                         Values rows, grad = accumulate ? values_of(old) : Values(idx(V * C), 0.0);
                         for (std::int64_t r = 0; r < R; ++r) {
                           for (std::int64_t i = 0; i < C; ++i) {
                             rows.push_back(table[idx(ids.data<std::int32_t>()[r] * C + i)]);
                             grad[idx(ids.data<std::int32_t>()[r] * C + i)] += d[idx(r * C + i)];
                           }
                         }
                         return std::vector{rows, grad};
                       }};
      },
      300);
}

TEST_CASE("gradients of one id are added in row order") {
  Draw draw(301, 0);
  const std::int64_t R = 300, C = 32;
  const Tensor dy = draw.normal({R, C}, 1e4).to(DType::f32), dw = output({1, C}, DType::f32);
  const std::vector<std::int32_t> ids(idx(R), 0);
  launch({}, EmbeddingBackwardArgs{.dy_RC = dy.raw(), .ids_R = ids.data(), .dw_VC = dw.raw(), .R = R, .V = 1, .C = C});
  std::vector<float> forward(idx(C), 0.f), backward = forward;
  for (std::int64_t r = 0; r < R; ++r) {
    for (std::int64_t c = 0; c < C; ++c) {
      forward[idx(c)] += dy.data<float>()[r * C + c];
      backward[idx(c)] += dy.data<float>()[(R - 1 - r) * C + c];
    }
  }
  REQUIRE(forward != backward);  // the order shows
  CHECK(values_of(dw) == Values(forward.begin(), forward.end()));
}

TEST_CASE("an id outside the vocabulary is a data error that names it") {
  const Tensor w = zeros({5, 3}, DType::f32), y = zeros({4, 3}, DType::f32);
  for (std::int32_t bad : {5, -1, std::numeric_limits<std::int32_t>::max()}) {
    const std::array<std::int32_t, 4> ids{0, 4, bad, 1};
    const std::string wanted =
        "[embedding] id " + std::to_string(bad) + " at position 2 is outside the vocabulary of 5";
    CHECK(has(message_of(
                  [&] {
                    launch({}, EmbeddingArgs{
                                   .w_VC = w.raw(), .ids_R = ids.data(), .y_RC = y.raw(), .R = 4, .V = 5, .C = 3});
                  },
                  Exit::data),
              wanted));
    CHECK(has(message_of(
                  [&] {
                    launch({}, EmbeddingBackwardArgs{
                                   .dy_RC = y.raw(), .ids_R = ids.data(), .dw_VC = w.raw(), .R = 4, .V = 5, .C = 3});
                  },
                  Exit::data),
              wanted));
  }
}

TEST_CASE("cross entropy and its gradient, in place or beside") {
  check_family(
      [](Draw& draw, DType t, bool large) {
        const std::int64_t R = large ? 60 : draw.extent(12), V = large ? 5003 : draw.integer(1, 120),
                           pad = draw.chance(0.3) ? 5 : 0;
        const DType c = compute_dtype(t);
        const bool in_place = draw.chance(0.5);
        const DType g = !in_place && t == DType::f32 && draw.chance(0.5) ? DType::bf16 : t;
        const double scale = draw.chance(0.5) ? 1 : 0.25;
        const Tensor logits = input(draw, {R, V + pad}, t, 4), targets = draw.ids({R}, -1, V - 1);
        const Tensor losses = output({R}, c), dlogits = in_place ? logits.clone() : zeros({R, V + pad}, g);
        launch({}, CrossEntropyArgs{.logits_RV = in_place ? dlogits.raw() : logits.raw(),
                                    .targets_R = targets.data<std::int32_t>(),
                                    .losses_R = losses.raw(),
                                    .dlogits_RV = dlogits.raw(),
                                    .R = R,
                                    .V = V,
                                    .ld = V + pad,
                                    .grad_scale = scale,
                                    .dtype = t,
                                    .dlogits_dtype = g});
        return Outcome{{losses, dlogits.slice(1, 0, V)}, [=] {
                         const Values x = values_of(logits.slice(1, 0, V));
                         Values loss, grad;
                         for (std::int64_t r = 0; r < R; ++r) {
                           const auto target = targets.data<std::int32_t>()[r];
                           const double* row = x.data() + r * V;
                           const double top = *std::max_element(row, row + V);
                           double sum = 0;
                           for (std::int64_t v = 0; v < V; ++v) sum += std::exp(row[v] - top);
                           loss.push_back(target < 0 ? 0 : top + std::log(sum) - row[target]);
                           for (std::int64_t v = 0; v < V; ++v)
                             grad.push_back(target < 0 ? 0 : scale * (std::exp(row[v] - top) / sum - (v == target)));
                         }
                         return std::vector{loss, grad};
                       }};
      },
      310);
}

TEST_CASE("cross entropy of huge logits is finite, of NaN is NaN, and nothing else is touched") {
  Tensor logits = from_values<float>(std::array{1e30f, -1e30f, 0.f, 5.f, std::nanf(""), 5.f, 3.f, 3.f, 3.f}, {3, 3});
  const std::array<std::int32_t, 3> targets{0, 1, 2};
  Tensor losses = output({3}, DType::f32);
  launch(
      {},
      CrossEntropyArgs{
          .logits_RV = logits.raw(), .targets_R = targets.data(), .losses_R = losses.raw(), .R = 3, .V = 3, .ld = 3});
  CHECK(losses.data<float>()[0] == 0);
  CHECK(std::isnan(losses.data<float>()[1]));
  CHECK(losses.data<float>()[2] == Approx(std::log(3.0)));
  CHECK(logits.data<float>()[0] == 1e30f);  // forward alone changes no logit
  const std::array<std::int32_t, 3> wrong{0, 3, 2};
  CHECK(has(message_of(
                [&] {
                  launch({}, CrossEntropyArgs{
                                 .logits_RV = logits.raw(), .targets_R = wrong.data(), .R = 3, .V = 3, .ld = 3});
                },
                Exit::data),
            "[cross entropy] target 3 at position 1 is outside the vocabulary of 3"));
}

TEST_CASE("scores and their gradients") {
  check_family(
      [](Draw& draw, DType t, bool large) {
        const std::int64_t B = large ? 2 : draw.extent(3), T = large ? 200 : draw.extent(20),
                           C = large ? 300 : draw.width(), H = large ? 4 : draw.extent(5);
        const DType c = compute_dtype(t);
        const bool accumulate = draw.chance(0.5);
        const Tensor x = input(draw, {B, T, C}, t), w = input(draw, {H, C}, c), ds = input(draw, {B, H, T}, c),
                     old = input(draw, {H, C}, c);
        const Tensor s = output({B, H, T}, c), dx = output({B, T, C}, t),
                     dw = accumulate ? old.clone() : output({H, C}, c);
        launch(
            {},
            ScoreArgs{.x_BTC = x.raw(), .w_HC = w.raw(), .s_BHT = s.raw(), .B = B, .T = T, .C = C, .H = H, .dtype = t});
        launch({}, ScoreBackwardArgs{.ds_BHT = ds.raw(),
                                     .x_BTC = x.raw(),
                                     .w_HC = w.raw(),
                                     .dx_BTC = dx.raw(),
                                     .dw_HC = dw.raw(),
                                     .B = B,
                                     .T = T,
                                     .C = C,
                                     .H = H,
                                     .accumulate = accumulate,
                                     .dtype = t});
        return Outcome{{s, dx, dw}, [=] {
                         const Values xs = values_of(x), ws = values_of(w), g = values_of(ds);
                         Values score(idx(B * H * T), 0.0), gx(idx(B * T * C), 0.0),
                             gw = accumulate ? values_of(old) : Values(idx(H * C), 0.0);
                         for (std::int64_t b = 0; b < B; ++b)
                           for (std::int64_t h = 0; h < H; ++h)
                             for (std::int64_t i = 0; i < T; ++i)
                               for (std::int64_t k = 0; k < C; ++k) {
                                 const std::size_t at = idx((b * H + h) * T + i), xi = idx((b * T + i) * C + k),
                                                   wi = idx(h * C + k);
                                 score[at] += xs[xi] * ws[wi];
                                 gx[xi] += g[at] * ws[wi];
                                 gw[wi] += g[at] * xs[xi];
                               }
                         return std::vector{score, gx, gw};
                       }};
      },
      320);
}

TEST_CASE("a score does not depend on the batch it is computed in") {
  for (DType t : kFloats) {
    const std::int64_t T = 50, C = 203;
    Draw draw(9, 9);
    const Tensor x = input(draw, {1, T, C}, t), w = input(draw, {3, C}, compute_dtype(t)),
                 all = output({1, 3, T}, compute_dtype(t));
    launch({}, ScoreArgs{
                   .x_BTC = x.raw(), .w_HC = w.raw(), .s_BHT = all.raw(), .B = 1, .T = T, .C = C, .H = 3, .dtype = t});
    for (std::int64_t i = 0; i < T; ++i) {
      const Tensor row = x.slice(1, i, i + 1).contiguous(), one = output({1, 3, 1}, compute_dtype(t));
      launch({},
             ScoreArgs{
                 .x_BTC = row.raw(), .w_HC = w.raw(), .s_BHT = one.raw(), .B = 1, .T = 1, .C = C, .H = 3, .dtype = t});
      CHECK(same_bits(one, all.slice(2, i, i + 1)));
    }
  }
}

TEST_CASE("AdamW follows its equations over several steps") {
  for (std::uint64_t round = 0; round < 20; ++round) {
    Draw draw(330, round);
    const std::int64_t n = round == 0 ? 100003 : draw.integer(0, 70);
    const double lr = 0.01, beta1 = 0.9, beta2 = 0.95, eps = 1e-6, decay = draw.chance(0.5) ? 0.1 : 0,
                 clip = draw.chance(0.5) ? 1 : 0.3;
    const Tensor p = input(draw, {n}, DType::f32), m = zeros({n}, DType::f32), v = zeros({n}, DType::f32),
                 copy = output({n}, DType::bf16);
    Values rp = values_of(p), rm(idx(n), 0.0), rv(idx(n), 0.0);
    for (std::int64_t step = 1; step <= 4; ++step) {
      const Tensor g = input(draw, {n}, DType::f32);
      launch({}, AdamWArgs{.p = p.data<float>(),
                           .m = m.data<float>(),
                           .v = v.data<float>(),
                           .g = g.data<float>(),
                           .copy_bf16 = step == 4 ? copy.data<bf16>() : nullptr,
                           .n = n,
                           .step = step,
                           .lr = lr,
                           .beta1 = beta1,
                           .beta2 = beta2,
                           .eps = eps,
                           .weight_decay = decay,
                           .grad_scale = clip});
      const Values rg = values_of(g);
      for (std::size_t i = 0; i < rg.size(); ++i) {
        const double gi = clip * rg[i];
        rm[i] = beta1 * rm[i] + (1 - beta1) * gi;
        rv[i] = beta2 * rv[i] + (1 - beta2) * gi * gi;
        const double mh = rm[i] / (1 - std::pow(beta1, static_cast<double>(step)));
        const double vh = rv[i] / (1 - std::pow(beta2, static_cast<double>(step)));
        rp[i] -= lr * (decay * rp[i] + mh / (std::sqrt(vh) + eps));
      }
    }
    CAPTURE(round, n);
    CHECK(close_to(p, rp, DType::f32));
    CHECK(close_to(m, rm, DType::f32));
    CHECK(close_to(v, rv, DType::f32));
    CHECK(same_bits(copy, p.to(DType::bf16)));
  }
  CHECK(same_for_all_threads([] {
    const Tensor p = random_normal({100003}, 0, 1, 1, 1), m = zeros({100003}, DType::f32), v = m.clone(),
                 g = random_normal({100003}, 0, 1, 1, 2);
    launch({}, AdamWArgs{.p = p.data<float>(),
                         .m = m.data<float>(),
                         .v = v.data<float>(),
                         .g = g.data<float>(),
                         .n = 100003,
                         .lr = 0.1});
    return std::vector{p, m, v};
  }));
  CHECK(has(message_of([] { launch({}, AdamWArgs{.step = 0}); }, Exit::internal), "step counts from 1, got 0"));
}
