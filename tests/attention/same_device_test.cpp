// Ops that are given a tensor of another device say so before they read any.
#include "tensor/same_device.h"

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "attention/choose.h"
#include "attention/evicted_keys.h"
#include "attention/indexer.h"
#include "attention/kernels/nsa.h"
#include "attention/kernels/pattern.h"
#include "attention/linear.h"
#include "attention/nsa.h"
#include "attention/pattern.h"
#include "attention/pattern_cache.h"
#include "attention/random_scores.h"
#include "attention/registry.h"
#include "attention/rotate.h"
#include "attention/timestep_norm.h"
#include "attention_cases.h"
#include "support/catch.h"
#include "support/compare.h"
#include "support/errors.h"
#include "support/gpu.h"

using namespace sieve;
using namespace sieve::test;

namespace {

using Inputs = std::vector<Tensor>;

struct Op {
  std::string name;                // as its errors say it
  std::vector<const char*> names;  // of the inputs; the first says where the op runs
  Inputs inputs;                   // on the host
  std::function<void(const Inputs&)> run;
};

constexpr std::int64_t kT = 8;

Tensor starts() { return zeros({1, kT}, DType::i32); }
Tensor reals(Draw& d, const Shape& shape) { return d.normal(shape).to(DType::f32); }
// The key at 0, for every query.
Tensor first_key() {
  Tensor t = full({1, 1, kT, 2}, kNoChoice, DType::i32);
  for (std::int64_t i = 0; i < kT; ++i) t.data<std::int32_t>()[2 * i] = 0;
  return t;
}
AttentionSpec spec_of(AttentionKind kind) {
  AttentionSpec spec = make_spec(kind, 2, 1, 8);
  spec.window = 3, spec.sparsek.k = 2, spec.pattern.k = 2;
  spec.pattern.compress_block = 4, spec.pattern.compress_stride = 2;
  return spec;
}
RopeSpec rope() {
  RopeSpec r;
  r.rotary_dims = 8;
  return r;
}

std::vector<Op> softmax_ops(Draw& d) {
  const auto qkv = [&] { return reals(d, {1, kT, 32}); };
  return {
      {"attention",
       {"qkv", "input 2", "document_starts"},
       {qkv(), reals(d, {1, 1, kT}), starts()},
       [](const Inputs& x) {
         attention(Variable(x[0]), Variable(x[1]), {spec_of(AttentionKind::sparsek), rope(), x[2]});
       }},
      {"pattern_attention",
       {"qkv", "choice", "document_starts"},
       {qkv(), first_key(), starts()},
       [](const Inputs& x) {
         pattern_attention(Variable(x[0]), x[1], {spec_of(AttentionKind::dsa), rope(), x[2]});
       }},
      {"cache",
       {"qkv", "choice"},
       {qkv(), first_key()},
       [](const Inputs& x) { PatternCache(spec_of(AttentionKind::dsa), rope(), 1, DType::f32, kT).step(x[0], x[1]); }},
      {"compressed_attention",
       {"q", "input 2", "input 3", "document_starts"},
       {reals(d, {1, kT, 16}), reals(d, {1, 1, 3, 8}), reals(d, {1, 1, 3, 8}), starts()},
       [](const Inputs& x) {
         compressed_attention(Variable(x[0]), Variable(x[1]), Variable(x[2]), spec_of(AttentionKind::nsa), kT, x[3]);
       }},
  };
}

std::vector<Op> choosing_ops(Draw& d) {
  const Shape index_q{1, 2, kT, 4}, index_k{1, 1, kT, 4}, weights{1, 2, kT};
  return {
      {"choose",
       {"q", "keys", "document_starts"},
       {reals(d, {1, 2, kT, 8}), reals(d, {1, 1, kT, 8}), starts()},
       [](const Inputs& x) { choose_best(x[0], x[1], spec_of(AttentionKind::top_k), x[2]); }},
      {"dsa",
       {"q", "k", "weights", "document_starts"},
       {reals(d, index_q), reals(d, index_k), reals(d, weights), starts()},
       [](const Inputs& x) {
         index_choice({Variable(x[0]), Variable(x[1]), Variable(x[2])}, 2, x[3]);
       }},
      {"index_loss",
       {"qkv", "q", "k", "weights", "choice"},
       {reals(d, {1, kT, 32}), reals(d, index_q), reals(d, index_k), reals(d, weights), first_key()},
       [](const Inputs& x) {
         index_loss({Variable(x[1]), Variable(x[2]), Variable(x[3])}, x[4], x[0],
                    {spec_of(AttentionKind::dsa), rope(), {}});
       }},
      {"with_loss",
       {"x", "input 2"},
       {reals(d, {1, kT, 8}), reals(d, {})},
       [](const Inputs& x) { with_loss(Variable(x[0]), Variable(x[1])); }},
      {"timestep_norm",
       {"s", "input 2", "document_starts"},
       {reals(d, {1, 2, kT}), reals(d, {2}), starts()},
       [](const Inputs& x) { timestep_norm(Variable(x[0]), Variable(x[1]), x[2]); }},
      {"timestep_norm",
       {"s", "gain", "running.count", "running.sum", "running.squares"},
       {reals(d, {1, 2, kT}), reals(d, {2}), d.normal({2}), d.normal({2}), d.normal({2})},
       [](const Inputs& x) {
         RunningScore running{x[2].clone(), x[3].clone(), x[4].clone()};
         timestep_norm_extend(x[0], x[1], running);
       }},
      {"document numbers",
       {"tokens", "document_starts"},
       {starts(), starts()},
       [](const Inputs& x) { document_numbers(x[0], x[1]); }},
      {"document numbers",
       {"tokens", "the numbers before"},
       {starts(), zeros({1}, DType::i64)},
       [](const Inputs& x) { document_numbers(x[0], {}, 3, x[1]); }},
      {"random scores",
       {"numbers", "document_starts"},
       {zeros({1, kT}, DType::i64), starts()},
       [](const Inputs& x) { random_scores(x[0], 2, {}, x[1]); }},
      {"rotate_first_heads",
       {"x", "document_starts"},
       {reals(d, {1, kT, 24}), starts()},
       [](const Inputs& x) { rotate_first_heads(Variable(x[0]), 3, 2, rope(), x[1]); }},
  };
}

std::vector<Op> linear_ops(Draw& d) {
  const LinearShape shape{2, 1, 4, 4};
  const Tensor lives = zeros({1, 1, kT}, DType::i32), first = zeros({1, 1, kT + 1}, DType::i32);
  return {
      {"linear_attention",
       {"qkv", "document_starts", "exits.first", "exits.keys"},
       {reals(d, {1, kT, 16}), starts(), first, lives},
       [=](const Inputs& x) {
         linear_attention(Variable(x[0]), shape, x[1], {x[2], x[3]});
       }},
      {"linear_attention",
       {"qkv", "exits.first", "exits.keys", "the state"},
       {reals(d, {1, kT, 16}), first, lives, reals(d, {1, 1, 4, 5})},
       [=](const Inputs& x) {
         Tensor state = x[3].clone();
         linear_attention_extend(x[0], shape, {x[1], x[2]}, state);
       }},
      {"gated_linear_attention",
       {"qkv", "input 2", "document_starts"},
       {reals(d, {1, kT, 16}), reals(d, {1, kT, 4}), starts()},
       [=](const Inputs& x) { gated_linear_attention(Variable(x[0]), Variable(x[1]), shape, x[2]); }},
      {"gated_linear_attention",
       {"qkv", "gates", "the state"},
       {reals(d, {1, kT, 16}), reals(d, {1, kT, 4}), reals(d, {1, 1, 4, 4})},
       [=](const Inputs& x) {
         Tensor state = x[2].clone();
         gated_linear_attention_extend(x[0], x[1], shape, state);
       }},
      {"key_exits",
       {"from", "to", "document_starts"},
       {lives, lives, starts()},
       [](const Inputs& x) { key_exits(x[0], x[1], 3, x[2]); }},
      {"silu_gate",
       {"x", "input 2"},
       {reals(d, {1, kT, 8}), reals(d, {1, kT, 8})},
       [](const Inputs& x) { silu_gate(Variable(x[0]), Variable(x[1])); }},
      {"add_gated_heads",
       {"base", "input 2", "input 3"},
       {reals(d, {1, kT, 8}), reals(d, {1, kT, 8}), reals(d, {2})},
       [](const Inputs& x) { add_gated_heads(Variable(x[0]), Variable(x[1]), Variable(x[2])); }},
      {"join_features",
       {"a", "input 2"},
       {reals(d, {1, kT, 8}), reals(d, {1, kT, 4})},
       [](const Inputs& x) { join_features(Variable(x[0]), Variable(x[1])); }},
      {"compress_rows",
       {"x", "input 2", "document_starts"},
       {reals(d, {1, kT, 8}), reals(d, {4, 8}), starts()},
       [](const Inputs& x) {
         compress_rows(Variable(x[0]), Variable(x[1]), 1, spec_of(AttentionKind::nsa).pattern, x[2]);
       }},
      {"gate_branches",
       {"x0", "input 2", "input 3", "input 4"},
       {reals(d, {1, kT, 8}), reals(d, {1, kT, 8}), reals(d, {1, kT, 8}), reals(d, {1, kT, 6})},
       [](const Inputs& x) { gate_branches(Variable(x[0]), Variable(x[1]), Variable(x[2]), Variable(x[3]), 2); }},
  };
}

std::string message_of(const Op& op, const Inputs& inputs) {
  return coded_error_text([&] { op.run(inputs); });
}

// Ops that take one tensor: there is nothing that could lie elsewhere.
constexpr std::string_view kOneInput[] = {"rotate_heads", "shared_qk"};

// Every op with all its inputs on `here`, then with each of the others on `there`.
void check_ops(const Stream& here, const Stream& there) {
  Draw d(191, 0);
  for (const auto& ops : {softmax_ops(d), choosing_ops(d), linear_ops(d)}) {
    for (const Op& op : ops) {
      Inputs inputs;
      for (const Tensor& t : op.inputs) inputs.push_back(t.to(here));
      INFO(op.name);
      CHECK(message_of(op, inputs) == "no error");
      for (std::size_t x = 1; x < inputs.size(); ++x) {
        Inputs strayed = inputs;
        strayed[x] = op.inputs[x].to(there);
        CHECK(message_of(op, strayed) == cat("1 [", op.name, "] ", op.names[x], " ", op.inputs[x].shape(), " lies on ",
                                             there.device.str(), ", the op runs on ", here.device.str(),
                                             ": bring it there first, by Tensor::to(stream)"));
      }
    }
  }
}

}  // namespace

// Nothing but the number of a second CPU tells it from the first: its memory may be read by an op that does not look.
TEST_CASE("ops of attention refuse inputs of another device") { check_ops({}, {{Device::Kind::cpu, 1}, nullptr}); }

TEST_CASE("every registered op of attention is asked about inputs of another device or takes one alone") {
  Draw d(192, 0);
  std::vector<std::string> asked;
  for (const auto& ops : {softmax_ops(d), choosing_ops(d), linear_ops(d)})
    for (const Op& op : ops) asked.push_back(op.name);
  for (const std::string_view name : kAttentionOps) {
    INFO(name);
    const bool listed = std::count(asked.begin(), asked.end(), name) > 0,
               alone = std::count(std::begin(kOneInput), std::end(kOneInput), name) > 0;
    CHECK(listed != alone);
  }
}

TEST_CASE("caches that refuse a tensor of another device go on as if it had not come") {
  const Stream there{{Device::Kind::cpu, 1}, nullptr};
  AttentionSpec spec = spec_of(AttentionKind::sparsek);
  Draw d(193, 0);
  const Tensor qkv = reals(d, {1, kT, 32}), scores = reals(d, {1, 1, kT});
  AttentionCache cache(spec, rope(), 1, DType::f32, kT, 1), alone(spec, rope(), 1, DType::f32, kT, 1);
  EvictedKeys evicted(spec, rope(), 1, 1), evicted_alone(spec, rope(), 1, 1);
  const Tensor prompt = qkv.slice(1, 0, 3), prompt_scores = scores.slice(2, 0, 3);
  CHECK(contains(error_text([&] { cache.step(prompt, prompt_scores.to(there)); }), "[cache] scores (1, 1, 3) lies on"));
  for (std::int64_t t = 0; t < kT; ++t) {
    const Tensor x = qkv.slice(1, t, t + 1).contiguous(), s = scores.slice(2, t, t + 1).contiguous();
    if (t > 0) CHECK(contains(error_text([&] { evicted.step(cache, x.to(there), s.to(there)); }), "[evicted keys] "));
    CHECK(contains(error_text([&] { evicted.step(cache, x, s.to(there)); }), "[evicted keys] scores (1, 1, 1) lies"));
    CHECK(contains(error_text([&] { cache.step(x, s.to(there)); }), "[cache] scores (1, 1, 1) lies on"));
    CHECK(same_bits(evicted.step(cache, x, s), evicted_alone.step(alone, x, s)));
    CHECK(same_bits(cache.step(x, s), alone.step(x, s)));
  }
}

TEST_CASE("GPU: ops of attention refuse inputs of the host", "[gpu]") {
  SIEVE_NEEDS_GPU();
  check_ops(gpu_stream(), {});
}

TEST_CASE("GPU: ops of attention on the host refuse inputs of a GPU", "[gpu]") {
  SIEVE_NEEDS_GPU();
  check_ops({}, gpu_stream());
}
