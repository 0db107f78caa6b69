// The engine: order of execution, hooks, sums, memory, errors.
#include <pthread.h>

#include <string>
#include <vector>

#include "autograd/ops.h"
#include "core/parallel_for.h"
#include "support/catch.h"
#include "support/compare.h"
#include "tensor/profile.h"
#include "trace.h"

using namespace sieve;
using namespace sieve::test;

namespace {

Tensor t64(std::vector<double> values, const Shape& shape) { return from_values<double>(values, shape); }
std::vector<double> grads_of(const Variable& v) { return values_of(v.grad()); }
using Values = std::vector<double>;

// Runs f on a thread with a small stack: recursion over a long graph would overflow it.
template <class F>
void on_small_stack(F f) {
  pthread_attr_t attributes;
  REQUIRE(pthread_attr_init(&attributes) == 0);
  REQUIRE(pthread_attr_setstacksize(&attributes, 1 << 20) == 0);
  pthread_t thread;
  const auto entry = [](void* p) -> void* {
    (*static_cast<F*>(p))();
    return nullptr;
  };
  REQUIRE(pthread_create(&thread, &attributes, entry, &f) == 0);
  REQUIRE(pthread_join(thread, nullptr) == 0);
  pthread_attr_destroy(&attributes);
}

}  // namespace

TEST_CASE("a shared subexpression runs once, with the sum of its gradients") {
  const Variable x = Variable::leaf(t64({1, -2, 3}, {3}));
  int runs = 0;
  const Variable square = traced(mul(x, x), [&] { ++runs; });
  backward(sum(add(square, mul(square, square))));  // x^2 + x^4
  CHECK(runs == 1);
  CHECK(grads_of(x) == Values{2 + 4, -4 - 32, 6 + 108});
}

TEST_CASE("a tower of diamonds costs one run a node") {
  const Variable x = Variable::leaf(t64({1}, {}));
  Variable y = x;
  int runs = 0;
  for (int i = 0; i < 40; ++i) y = traced(add(y, y), [&] { ++runs; });
  backward(y);
  CHECK(runs == 40);
  CHECK(grads_of(x) == Values{0x1p40});
}

TEST_CASE("hooks fire once, when the gradient is final, and before older layers run") {
  std::vector<std::string> log;
  const auto say = [&](const std::string& what) { return [&log, what] { log.push_back(what); }; };
  std::vector<Variable> w;
  Tensor at_hook[3];
  for (int i = 0; i < 3; ++i) {
    w.push_back(Variable::leaf(random_normal({4, 4}, 0, 1, 1, static_cast<std::uint64_t>(i))));
    w[static_cast<std::size_t>(i)].on_grad_ready([&, i] {
      log.push_back("w" + std::to_string(i));
      at_hook[i] = w[static_cast<std::size_t>(i)].grad().clone();
    });
  }
  const auto layer = [&](const Variable& x, const Variable& weight, int i) {
    return linear(traced(x, say("below layer " + std::to_string(i))), weight, {});
  };
  Variable x = Variable::leaf(random_normal({2, 4}, 0, 1, 2, 0));

  SECTION("one use each") {
    for (int i = 0; i < 3; ++i) x = layer(x, w[static_cast<std::size_t>(i)], i);
    backward(sum(x));
    CHECK(log == std::vector<std::string>{"w2", "below layer 2", "w1", "below layer 1", "w0", "below layer 0"});
  }
  SECTION("one leaf in two layers waits for both") {
    const int of_layer[4] = {1, 0, 1, 2};
    for (int i = 0; i < 4; ++i) x = layer(x, w[static_cast<std::size_t>(of_layer[i])], i);
    backward(sum(x));
    CHECK(log == std::vector<std::string>{"w2", "below layer 3", "below layer 2", "w0", "below layer 1", "w1",
                                          "below layer 0"});
  }
  SECTION("weights converted before the first layer do not delay the hooks") {
    std::vector<Variable> low;
    for (const Variable& v : w) low.push_back(cast(v, DType::bf16));
    x = cast(x, DType::bf16);
    for (int i = 0; i < 3; ++i) x = layer(x, low[static_cast<std::size_t>(i)], i);
    backward(sum(x));
    CHECK(log == std::vector<std::string>{"w2", "below layer 2", "w1", "below layer 1", "w0", "below layer 0"});
  }
  for (int i = 0; i < 3; ++i) CHECK(same_bits(at_hook[i], w[static_cast<std::size_t>(i)].grad()));
}

TEST_CASE("of several ready ops the one recorded last runs first") {
  std::vector<std::string> log;
  const Variable x = Variable::leaf(t64({1, 2}, {2}));
  const auto branch = [&](const char* name) {
    return scale(traced(scale(x, 2), [&log, name] { log.push_back(name); }), 3);
  };
  const Variable first = branch("first"), second = branch("second"), third = branch("third");
  backward(sum(add(add(third, first), second)));
  CHECK(log == std::vector<std::string>{"third", "second", "first"});
  CHECK(grads_of(x) == Values{18, 18});
}

TEST_CASE("a graph of 100,000 nodes is walked, and dies, without recursion") {
  double gradient = 0;
  on_small_stack([&gradient] {
    const Variable x = Variable::leaf(t64({3}, {}));
    const auto chain = [&x] {
      Variable y = x;
      for (int i = 0; i < 100000; ++i) y = scale(y, i % 2 == 0 ? 2 : 0.5);
      return y;
    };
    { const Variable unused = chain(); }
    {
      Variable unused = x;
      for (int i = 0; i < 20000; ++i) unused = recompute([](const Variable& v) { return scale(v, 2); }, unused);
    }
    backward(chain());
    gradient = x.grad().item();
  });
  CHECK(gradient == 1);
}

TEST_CASE("gradients of broadcast inputs are summed back to their shapes") {
  const Variable column = Variable::leaf(t64({1, 2}, {2, 1})), row = Variable::leaf(t64({3, 4, 5}, {3}));
  const Variable scalar = Variable::leaf(t64({10}, {})), middle = Variable::leaf(t64({1, 1}, {2, 1, 1}));
  backward(mul(add(add(mul(column, row), scalar), middle), Variable(t64({1}, {}))),
           t64({1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, {2, 2, 3}));
  // seed s[i][j][k]: d column_j = sum_ik s row_k, d row_k = sum_ij s column_j
  CHECK(grads_of(column) == Values{3 * 8 + 4 * 10 + 5 * 12, 3 * 14 + 4 * 16 + 5 * 18});
  CHECK(grads_of(row) == Values{1 + 7 + 2 * (4 + 10), 2 + 8 + 2 * (5 + 11), 3 + 9 + 2 * (6 + 12)});
  CHECK(grads_of(scalar) == Values{78});
  CHECK(grads_of(middle) == Values{21, 57});
  CHECK(column.grad().shape() == Shape{2, 1});
}

TEST_CASE("leaf gradients are fp32 for bf16 values, and add up over backwards without losing small terms") {
  const Variable x = Variable::leaf(full({2}, 1, DType::bf16));
  Tensor contribution = full({2}, 1, DType::f32);
  const auto step = [&] { backward(returns(x, [&] { return contribution; }), full({2}, 1, DType::bf16)); };
  step();
  REQUIRE(x.grad().dtype() == DType::f32);
  const void* storage = x.grad().raw();
  contribution = full({2}, 0x1p-12, DType::bf16);  // 1 + 2^-12 is no bf16 number
  for (int i = 0; i < 4; ++i) step();
  CHECK(grads_of(x) == Values{1 + 0x1p-10, 1 + 0x1p-10});
  CHECK(x.grad().raw() == storage);  // in place: a bucket may hold a view
  x.zero_grad();
  CHECK(!x.grad().defined());
}

TEST_CASE("a gradient nobody else holds becomes the leaf's without a copy, a shared one is copied") {
  const Variable x = Variable::leaf(full({8}, 1, DType::f32));
  const void* made = nullptr;
  const auto fresh = [&] {
    Tensor t = full({8}, 2, DType::f32);
    made = t.raw();
    return t;
  };
  backward(returns(x, fresh), full({8}, 1, DType::f32));
  CHECK(x.grad().raw() == made);

  const Variable a = Variable::leaf(full({8}, 1, DType::f32)), b = Variable::leaf(full({8}, 1, DType::f32));
  const Tensor seed = full({8}, 1, DType::f32);
  backward(add(a, b), seed);
  CHECK(a.grad().raw() != b.grad().raw());
  CHECK(a.grad().raw() != seed.raw());
  CHECK(b.grad().raw() != seed.raw());
}

TEST_CASE("gradients of a bf16 value are rounded once, however many consumers it has") {
  const Variable x = Variable::leaf(full({1}, 1, DType::bf16));
  const Variable shared = scale(x, 1);
  // The newest consumer's gradient arrives first. In bf16, 1 + 2^-8 rounds to 1, twice; the sum of all three is 1 +
  // 2^-7, which is a bf16 number.
  Variable y = mul(shared, Variable(full({1}, 0x1p-8, DType::bf16)));
  for (const double factor : {0x1p-8, 1.0}) y = add(y, mul(shared, Variable(full({1}, factor, DType::bf16))));
  backward(y);
  CHECK(grads_of(x) == Values{1 + 0x1p-7});
}

TEST_CASE("saved tensors are freed as soon as they were used") {
  const Device cpu;
  std::vector<std::int64_t> bytes;
  const Variable x = Variable::leaf(random_normal({1 << 16}, 0, 1, 1, 1));
  Variable y = x;
  for (int i = 0; i < 6; ++i)
    y = traced(gelu(y, Gelu::tanh), [&] { bytes.push_back(memory_stats(cpu).current_bytes); });
  y = sum(y);
  backward(y);
  REQUIRE(bytes.size() == 6);
  for (std::size_t i = 1; i < bytes.size(); ++i) {
    // The chain's own values die with the saved inputs; two gradients are alive at any time.
    CHECK(bytes[i] <= bytes[i - 1]);
  }
  CHECK(bytes.back() <= bytes.front() - 4 * (std::int64_t{4} << 16));
}

TEST_CASE("bits do not depend on the number of threads") {
  const int before = num_threads();
  Tensor first;
  for (const int threads : {1, 2, 3}) {
    set_num_threads(threads);
    const Variable w = Variable::leaf(random_normal({65, 33}, 0, 1, 1, 1)),
                   b = Variable::leaf(random_normal({65}, 0, 1, 1, 2));
    const Variable x = Variable::leaf(random_normal({5, 301, 33}, 0, 1, 1, 3));
    const Variable g = Variable::leaf(random_normal({65}, 1, 1, 1, 4));
    backward(sum(gelu(layer_norm(linear(x, w, b), g, b, 1e-5), Gelu::erf)));
    Tensor all = empty({65 * 33 + 65 + 65 + 5 * 301 * 33}, DType::f32);
    std::int64_t at = 0;
    for (const Variable& v : {w, b, g, x}) {
      all.slice(0, at, at + v.grad().numel()).copy_from(v.grad().flatten());
      at += v.grad().numel();
    }
    if (!first.defined()) first = all;
    CHECK(same_bits(all, first));
  }
  set_num_threads(before);
}

TEST_CASE("an op without a gradient to give still releases what lies below") {
  const Variable x = Variable::leaf(full({2}, 1, DType::f32));
  int hooks = 0, runs = 0;
  x.on_grad_ready([&] { ++hooks; });
  const Variable below = traced(x, [&] { ++runs; });
  backward(returns(below, [] { return Tensor(); }), full({2}, 1, DType::f32));
  CHECK(hooks == 1);
  CHECK(runs == 0);  // its gradient is zero
  CHECK(!x.grad().defined());
}

TEST_CASE("a root that is a leaf receives the seed") {
  const Variable x = Variable::leaf(full({2}, 1, DType::f32));
  int hooks = 0;
  x.on_grad_ready([&] { ++hooks; });
  backward(x, full({2}, 3, DType::f32));
  CHECK(grads_of(x) == Values{3, 3});
  CHECK(hooks == 1);
}

TEST_CASE("NoGrad records nothing and ends with its scope") {
  const Variable x = Variable::leaf(full({2}, 1, DType::f32));
  {
    const NoGrad outer;
    CHECK(!grad_enabled());
    { const NoGrad inner; }
    CHECK(!grad_enabled());
    CHECK(!scale(x, 2).requires_grad());
  }
  CHECK(grad_enabled());
  CHECK(scale(x, 2).requires_grad());
  CHECK(!scale(Variable(x.value()), 2).requires_grad());
}

TEST_CASE("errors of backward name the op and the numbers") {
  const Variable x = Variable::leaf(full({2, 3}, 1, DType::f32));
  CHECK(contains(error_text([&] { backward(scale(x, 2)); }), "[backward] the root has shape (2, 3): give a seed"));
  CHECK(contains(error_text([&] {
                   backward(scale(x, 2), full({3, 2}, 1, DType::f32));
                 }),
                 "seed (3, 2) for a root of shape (2, 3)"));
  const Stream elsewhere{.device = {.index = 1}};
  CHECK(contains(error_text([&] {
                   backward(scale(x, 2), full({2, 3}, 1, DType::f32, elsewhere));
                 }),
                 "seed (2, 3) lies on cpu"));
  CHECK(contains(error_text([&] { backward(Variable(x.value())); }), "depends on no leaf"));
  CHECK(contains(error_text([&] { backward(returns(x, [] { return full({5}, 1, DType::f32); }), x.value()); }),
                 "a gradient of shape (5) for an input of shape (2, 3)"));
  const Variable y = scale(x, 2);
  backward(sum(y));
  const Variable fresh = traced(x, [] {});
  CHECK(contains(error_text([&] { backward(sum(add(fresh, y))); }), "graph of 'scale' was already walked"));
  x.zero_grad();
  backward(add(sum(fresh), sum(fresh)));  // what the refused walk had counted is forgotten
  CHECK(grads_of(x) == Values{2, 2, 2, 2, 2, 2});
  CHECK(contains(error_text([&] { (void)y.grad(); }), "only a leaf"));
  CHECK(contains(error_text([] { (void)Variable::leaf(empty({2}, DType::i32)); }), "[leaf] wants a float tensor"));
}

TEST_CASE("a backward that threw leaves leaves usable") {
  const Variable x = Variable::leaf(full({2}, 1, DType::f32));
  int hooks = 0;
  x.on_grad_ready([&] { ++hooks; });
  const auto broken = [&] {
    return add(scale(x, 2), returns(x, []() -> Tensor { fail(Exit::memory, "test", "no memory"); }));
  };
  CHECK(contains(error_text([&] { backward(sum(broken())); }), "no memory"));
  x.zero_grad();
  hooks = 0;
  backward(sum(scale(x, 2)));
  CHECK(hooks == 1);
  CHECK(grads_of(x) == Values{2, 2});
}

namespace {

std::int64_t calls_of(const std::string& kernel, const std::vector<KernelProfile::Entry>& entries) {
  for (const auto& e : entries)
    if (e.kernel == kernel) return e.calls;
  return 0;
}

}  // namespace

TEST_CASE("a norm beside a residual adds the gradient that came past it, before the one rounding") {
  const Tensor x0 = random_normal({5, 16}, 0, 1, 3, 1, DType::bf16),
               w0 = random_normal({16}, 1, 0.1, 3, 2, DType::bf16);
  const Tensor b0 = random_normal({16}, 0, 1, 3, 4, DType::bf16),
               seed = random_normal({5, 16}, 0, 1, 3, 3, DType::bf16);
  const auto gradient = [&](DType dtype, bool layer) {
    const Variable leaf = Variable::leaf(x0.to(dtype)), x = scale(leaf, 1);
    const Variable w(w0.to(dtype)), b(b0.to(dtype));
    const Variable y = add(x, layer ? layer_norm(x, w, b, 1e-2) : rms_norm(x, w, 1e-2));
    KernelProfile::start();
    backward(y, seed.to(dtype));
    CHECK(calls_of("Axpby", KernelProfile::stop()) <= 1);  // scale's own
    return leaf.grad();
  };
  for (const bool layer : {false, true}) {
    const Tensor exact = gradient(DType::f64, layer), low = gradient(DType::bf16, layer);
    CHECK(max_difference(low, exact) <= max_difference(rounded(exact, DType::bf16), exact) * 1.01);
  }
  // Two norms beside a residual: the first finds its input still in use, the second adds all.
  const Variable leaf = Variable::leaf(x0.to(DType::f64)), x = scale(leaf, 1), w(w0.to(DType::f64));
  backward(add(add(x, rms_norm(x, w, 1e-2)), rms_norm(x, w, 1e-2)), seed.to(DType::f64));
  const Variable other = Variable::leaf(x0.to(DType::f64));
  backward(add(other, scale(rms_norm(other, w, 1e-2), 2)), seed.to(DType::f64));
  CHECK(relative_difference(leaf.grad(), other.grad()) <= 1e-14);
}

TEST_CASE("what a gradient is added to may be held by others: it stays as it was") {
  const Tensor seed = full({2, 4}, 1, DType::f32), before = seed.clone();
  const Variable x = Variable::leaf(random_normal({2, 4}, 0, 1, 1, 1)), w(full({4}, 1, DType::f32));
  const Variable y = scale(x, 1);
  backward(add(y, rms_norm(y, w, 1e-2)), seed);
  CHECK(same_bits(seed, before));
}
