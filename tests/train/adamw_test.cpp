// Flat parameters and the optimizer over them: bits, leaves, control, moments shared by ranks.
#include "train/adamw.h"

#include "core/rng.h"
#include "dist/thread_communicator.h"
#include "support/catch.h"
#include "support/compare.h"
#include "support/scratch.h"

using namespace sieve;
using sieve::test::same_bits;
using sieve::test::Scratch;
using sieve::testing::run_ranks;

namespace {

const OptimizerConfig kConfig{.lr = 0.1, .betas = {0.9, 0.95}, .eps = 1e-8, .weight_decay = 0.3};

// Sizes that leave gaps; one without weight decay between two with it.
std::vector<ParameterPtr> parameters(DType compute) {
  ParameterFactory make(compute, 7);
  return {make.make("a.weight", {5, 7}, {.std = 1.0}), make.make("norm.weight", {129}, {.constant = 1.0}),
          make.make_scorer("sparsek.score.weight", {2, 7}, {.std = 1.0}), make.make("b.weight", {64, 3}, {.std = 1.0})};
}

Tensor gradient(const FlatLayout& layout, std::int64_t step) {
  Tensor flat = zeros({layout.numel}, DType::f32);
  for (std::size_t i = 0; i < layout.size(); ++i)
    flat.slice(0, layout.begins[i], layout.begins[i] + layout.numels[i])
        .copy_from(random_normal({layout.numels[i]}, 0, 1, 3, stream_of(step, static_cast<std::int64_t>(i))));
  return flat;
}

std::vector<Tensor> masters(const std::vector<ParameterPtr>& parameters) {
  std::vector<Tensor> out;
  for (const auto& p : parameters) out.push_back(p->master.clone());
  return out;
}

void steps(AdamW& adamw, std::int64_t from, std::int64_t to) {
  for (std::int64_t t = from; t < to; ++t) adamw.step(gradient(adamw.layout(), t), 0.1 / double(t + 1), 0.25);
}

}  // namespace

TEST_CASE("parameters move into one flat buffer, bit by bit, and stay the leaves they were") {
  auto all = parameters(DType::bf16);
  const auto before = parameters(DType::bf16);
  freeze(*all[1]);
  int called = 0;
  all[0]->value.on_grad_ready([&called] { ++called; });
  const auto leaf = all[0]->value.leaf_state();
  const auto home = place_parameters(all, {});
  REQUIRE(home->layout.begins == std::vector<std::int64_t>{0, 64, 128});
  REQUIRE(home->layout.numel == 320);
  for (std::size_t i = 0; i < all.size(); ++i) {
    CHECK(same_bits(all[i]->master, before[i]->master));
    CHECK(same_bits(all[i]->value.value(), before[i]->value.value()));
    CHECK(all[i]->master.same_storage(home->master) == (i != 1));
  }
  CHECK(all[0]->value.value().same_storage(home->copy));
  CHECK(all[2]->value.value().same_storage(home->master));  // a scorer computes in fp32
  CHECK(all[0]->value.leaf_state() == leaf);
  backward(all[0]->value, full({5, 7}, 1, DType::bf16));
  CHECK(called == 1);
  double gaps = 0;
  for (std::int64_t i = 35; i < 64; ++i) gaps += std::abs(static_cast<double>(home->master.data<float>()[i]));
  CHECK(gaps == 0);
  CHECK(place_parameters(all, {}) == home);  // nothing moves twice

  freeze(*all[2]);  // leaves the flat range
  CHECK_FALSE(all[2]->master.same_storage(home->master));
  CHECK_FALSE(all[2]->value.requires_grad());
  const auto rest = place_parameters(all, {});
  CHECK(rest->layout.size() == 2);
  for (std::size_t i = 0; i < all.size(); ++i) CHECK(same_bits(all[i]->master, before[i]->master));
}

TEST_CASE("one update over the flat range is the update of each parameter") {
  const auto flat = parameters(DType::bf16), single = parameters(DType::bf16);
  AdamW all(kConfig, flat);
  std::vector<AdamW> each;
  for (const auto& p : single) each.emplace_back(kConfig, std::vector<ParameterPtr>{p});
  for (std::int64_t t = 0; t < 4; ++t) {
    const Tensor g = gradient(all.layout(), t);
    all.step(g, 0.1, 0.5);
    for (std::size_t i = 0; i < each.size(); ++i) {
      const std::int64_t begin = all.layout().begins[i];
      const Tensor part = g.slice(0, begin, begin + single[i]->numel()).reshape(single[i]->master.shape());
      each[i].step(std::vector<Tensor>{part}, 0.1, 0.5);
    }
  }
  for (std::size_t i = 0; i < flat.size(); ++i) {
    INFO(flat[i]->name);
    CHECK(same_bits(flat[i]->master, single[i]->master));
    CHECK(same_bits(flat[i]->value.value(), single[i]->value.value()));
  }
}

TEST_CASE("control scales the gradient or forbids the update") {
  const auto plain = parameters(DType::f32), controlled = parameters(DType::f32);
  AdamW a(kConfig, plain), b(kConfig, controlled);
  const float values[] = {0.125f, 0.f}, never[] = {0.125f, 1.f};
  a.step(gradient(a.layout(), 0), 0.1, 0.125);
  b.step(gradient(b.layout(), 0), 0.1, 1.0, from_values<float>(values, {2}));
  const auto after = masters(controlled);
  b.step(gradient(b.layout(), 1), 0.1, 1.0, from_values<float>(never, {2}));
  b.forget_update();
  for (std::size_t i = 0; i < after.size(); ++i) {
    CHECK(same_bits(controlled[i]->master, after[i]));
    CHECK(same_bits(plain[i]->master, after[i]));
  }
  CHECK(b.updates() == 1);
}

TEST_CASE("shared moments give the bits of moments of one's own, and the same state") {
  const Scratch scratch;
  const auto file = [&](int ranks) { return scratch / (std::to_string(ranks) + ".safetensors"); };
  auto alone = parameters(DType::bf16);
  AdamW plain(kConfig, alone);
  steps(plain, 0, 3);
  TensorMap wanted;  // as it is now: the state lives on
  for (const auto& [name, moment] : plain.state()) wanted[name] = moment.clone();
  write_safetensors(file(1), wanted);
  const auto middle = masters(alone);
  steps(plain, 3, 5);
  for (const int ranks : {2, 3, 4, 7}) {
    INFO(ranks << " ranks");
    run_ranks(ranks, [&](Communicator& comm) {
      const auto mine = parameters(DType::bf16);
      AdamW shared(kConfig, mine, &comm);
      steps(shared, 0, 3);
      const TensorMap state = shared.state();
      require(state.empty() == (comm.rank() != 0), "test", "state on rank ", comm.rank());
      for (const auto& [name, moment] : state) require(same_bits(moment, wanted.at(name)), "test", name);
      if (comm.rank() == 0) write_safetensors(file(ranks), state);
      comm.barrier("written");
      // From the file of another number of ranks, with the weights of then.
      const auto again = parameters(DType::bf16);
      AdamW resumed(kConfig, again, &comm);
      for (std::size_t i = 0; i < again.size(); ++i) {
        again[i]->master.copy_from(middle[i]);
        refresh_value(*again[i]);
      }
      resumed.restore(SafetensorsFile(file(comm.rank() % 2 ? 1 : ranks)), 3);
      steps(resumed, 3, 5);
      for (std::size_t i = 0; i < again.size(); ++i) {
        require(same_bits(again[i]->master, alone[i]->master), "test", again[i]->name);
        require(same_bits(again[i]->value.value(), alone[i]->value.value()), "test", again[i]->name);
      }
    });
  }
}
