// recompute(): the same bits for less memory.
#include <string>
#include <vector>

#include "autograd/ops.h"
#include "support/catch.h"
#include "support/compare.h"
#include "trace.h"

using namespace sieve;
using namespace sieve::test;

namespace {

struct Block {
  Variable w1, w2, g;
  Block(DType dtype, std::uint64_t seed, std::int64_t C)
      : w1(Variable::leaf(random_normal({4 * C, C}, 0, 0.3, seed, 1, dtype))),
        w2(Variable::leaf(random_normal({C, 4 * C}, 0, 0.3, seed, 2, dtype))),
        g(Variable::leaf(random_normal({C}, 1, 0.1, seed, 3, dtype))) {}
  Variable operator()(const Variable& x) const {
    return add(x, linear(gelu(linear(rms_norm(x, g, 1e-5), w1, {}), Gelu::tanh), w2, {}));
  }
};

struct Result {
  std::vector<Tensor> grads;
  std::int64_t peak = 0;
  std::vector<int> hooks;
};

enum class How { plain, by_block, nested };

Result train(DType dtype, How how, std::int64_t T, bool share) {
  std::vector<Block> blocks;
  for (std::uint64_t i = 0; i < 10; ++i) blocks.emplace_back(dtype, i, 16);
  if (share) blocks[8] = blocks[1];  // one set of leaves used twice
  const Variable w = Variable::leaf(random_normal({5, 16}, 0, 1, 9, 1, dtype));
  const Variable input = Variable::leaf(random_normal({T, 16}, 0, 1, 9, 2, dtype));
  std::vector<Variable> leaves{w, input};
  for (const Block& b : blocks) leaves.insert(leaves.end(), {b.w1, b.w2, b.g});
  Result result;
  result.hooks.assign(leaves.size(), 0);
  for (std::size_t i = 0; i < leaves.size(); ++i) leaves[i].on_grad_ready([&result, i] { ++result.hooks[i]; });
  reset_peak_memory({});
  const std::int64_t before = memory_stats({}).current_bytes;
  Variable x = input;
  if (how == How::nested) {
    x = recompute([&](const Variable& h) { return recompute(blocks[1], recompute(blocks[0], h)); }, x);
    for (std::size_t i = 2; i < 10; i += 2)
      x = recompute([&blocks, i](const Variable& h) { return recompute(blocks[i + 1], blocks[i](h)); }, x);
  } else {
    for (const Block& b : blocks) x = how == How::plain ? b(x) : recompute(b, x);
  }
  backward(sum(linear(x, w, {})));
  result.peak = memory_stats({}).peak_bytes - before;
  for (const Variable& v : leaves) result.grads.push_back(v.grad());
  return result;
}

}  // namespace

TEST_CASE("recompute gives the bits of the plain graph and needs less memory") {
  const DType dtype = GENERATE(DType::f32, DType::bf16, DType::f64);
  const bool share = GENERATE(false, true);
  const Result plain = train(dtype, How::plain, 512, share);
  for (const How how : {How::by_block, How::nested}) {
    const Result again = train(dtype, how, 512, share);
    for (std::size_t i = 0; i < plain.grads.size(); ++i) {
      CAPTURE(name_of(dtype), share, i);
      CHECK(same_bits(again.grads[i], plain.grads[i]));
      // Leaves listed twice (share) carry the second hook only.
      CHECK(again.hooks[i] == plain.hooks[i]);
      CHECK(again.hooks[i] <= 1);
    }
    CAPTURE(again.peak, plain.peak);
    CHECK(again.peak < plain.peak / 2);
  }
}

TEST_CASE("the hook of a leaf inside recompute fires after the piece ran, before older pieces") {
  std::vector<std::string> log;
  const Variable w = Variable::leaf(full({2, 2}, 1, DType::f32)), v = Variable::leaf(full({2, 2}, 1, DType::f32));
  w.on_grad_ready([&] { log.push_back("w"); });
  v.on_grad_ready([&] { log.push_back("v"); });
  const auto piece = [&](const Variable& weight, const char* name) {
    return [&log, weight, name](const Variable& x) {
      return traced(linear(x, weight, {}), [&log, name] { log.push_back(name); });
    };
  };
  const Variable x(full({3, 2}, 1, DType::f32));
  backward(sum(recompute(piece(v, "second"), recompute(piece(w, "first"), x))));
  CHECK(log == std::vector<std::string>{"second", "v", "first", "w"});
}

TEST_CASE("recompute without a gradient to make is a plain call") {
  const Variable x(full({2}, 1, DType::f32)), w = Variable::leaf(full({2}, 1, DType::f32));
  int calls = 0;
  const auto f = [&](const Variable& v) {
    ++calls;
    return mul(v, w);
  };
  CHECK(!recompute([](const Variable& v) { return scale(v, 2); }, x).requires_grad());
  {
    const NoGrad no_grad;
    CHECK(!recompute(f, x).requires_grad());
  }
  CHECK(calls == 1);
  const Variable y = recompute(f, x);
  CHECK(calls == 2);
  backward(sum(y));
  CHECK(calls == 3);
  CHECK(grad_enabled());
}

TEST_CASE("recompute refuses what it cannot differentiate") {
  const Variable x = Variable::leaf(full({2}, 1, DType::f32));
  const Variable made = scale(x, 2);
  CHECK(contains(error_text([&] { (void)recompute([&](const Variable& v) { return mul(v, made); }, x); }),
                 "[recompute] f reads a recorded value besides its input"));
  CHECK(grad_enabled());
  int calls = 0;
  const Variable y = recompute([&](const Variable& v) { return slice(v, 0, 0, ++calls); }, x);
  CHECK(contains(error_text([&] { backward(y, full({1}, 1, DType::f32)); }),
                 "f gave f32 (2) the second time, f32 (1) the first"));
}
