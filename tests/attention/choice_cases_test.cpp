// The comparison of choices by which a GPU's are judged: it lets rounding pass, and nothing else.
#include "choice_cases.h"

#include "attention/choose.h"
#include "attention/indexer.h"

using namespace sieve;
using namespace sieve::test;

TEST_CASE("a comparison of choices tells wrong lists from those that rounding explains") {
  long lists = 0, better = 0, cut = 0, turned = 0, strange = 0, ties = 0, swapped = 0;
  for (std::uint64_t c = 0; c < 30; ++c) {
    Draw d(82, c);
    const std::int64_t T = d.integer(20, 90), D = d.integer(2, 20), k = d.integer(2, 10), H = d.integer(1, 2);
    const bool together = c % 3 == 1, moba = c % 3 == 2;
    ChoiceCase in{d.normal({1, H, T, D}).to(DType::f32), d.normal({1, H, T, D}).to(DType::f32), {}, {}, moba ? 3 : 0};
    if (together) {
      in.k = d.normal({1, 1, T, D}).to(DType::f32);
      in.weights = d.normal({1, H, T}).to(DType::f32);
    }
    AttentionSpec spec = make_spec(moba ? AttentionKind::moba : AttentionKind::top_k, H, H, D);
    spec.pattern.k = k, spec.pattern.block = 3, spec.pattern.blocks = k;
    const Tensor choice = together ? index_choice({Variable(in.q), Variable(in.k), Variable(in.weights)}, k)
                                   : choose_best(in.q, in.k, spec);
    CHECK(compare_choices(in, choice, choice).other == 0);
    // The list of the last query of head 0: all its places are taken, and others are left out.
    const auto wrong_after = [&](const ChoiceCase& worth_of, auto&& change) {
      Tensor other = choice.clone();
      change(other.data<std::int32_t>() + (T - 1) * k);
      const Compared r = compare_choices(worth_of, other, choice);
      CHECK(r.other == 1);
      return r.wrong;
    };
    const std::int64_t last = in.end(0, T - 1) - 1, places = moba ? k - 1 : k;
    std::vector<std::int64_t> left_out;
    const std::int32_t* list = choice.data<std::int32_t>() + (T - 1) * k;
    for (std::int64_t j = 0; j <= last; ++j)
      if (std::find(list, list + places, j) == list + places) left_out.push_back(j);
    if (left_out.empty()) continue;
    const auto exchange = [&](std::int32_t* x) {
      x[0] = static_cast<std::int32_t>(left_out[0]);
      std::sort(x, x + k);
    };
    const double gap = std::abs(worth(in, 0, 0, T - 1, list[0]).value - worth(in, 0, 0, T - 1, left_out[0]).value);
    if (gap < 1e-3) continue;  // ReLU makes many logits 0
    ++lists;
    better += wrong_after(in, exchange);
    cut += wrong_after(in, [&](std::int32_t* x) { x[k - 1] = kNoChoice; });
    turned += wrong_after(in, [&](std::int32_t* x) { std::swap(x[0], x[1]); });
    strange += wrong_after(in, [&](std::int32_t* x) { x[k - 1] = static_cast<std::int32_t>(T); });
    ChoiceCase tied = in;  // all logits equal: any full list will do
    tied.q = full(in.q.shape(), 0, DType::f32), ++ties;
    swapped += wrong_after(tied, exchange);
  }
  CHECK(lists >= 15);
  CHECK(better == lists);
  CHECK(cut == lists);
  CHECK(turned == lists);
  CHECK(strange == lists);
  CHECK(swapped == 0);
  CHECK(ties == lists);
}
