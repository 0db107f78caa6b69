// linear_cross_entropy in chunks of rows, and the messages of ops given the wrong thing.
#include <cmath>
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

struct Problem {
  Tensor x, w, targets;
  Problem(std::int64_t N, std::int64_t C, std::int64_t V, DType dtype)
      : x(random_normal({N, C}, 0, 1, 3, 1, dtype)),
        w(random_normal({V, C}, 0, 1, 3, 2, dtype)),
        targets(empty({N}, DType::i32)) {
    auto t = targets.span<std::int32_t>();
    for (std::size_t i = 0; i < t.size(); ++i)
      t[i] = i % 7 == 3 ? -1 : static_cast<std::int32_t>((i * 5) % static_cast<std::size_t>(V));
  }
};

struct Gradients {
  Tensor loss, x, w;
};

template <class Loss>
Gradients run(const Problem& p, double factor, Loss loss) {
  const Variable x = Variable::leaf(p.x), w = Variable::leaf(p.w);
  const Variable l = loss(x, w);
  backward(scale(l, factor));
  return {l.value(), x.grad(), w.grad()};
}

}  // namespace

TEST_CASE("linear_cross_entropy equals cross_entropy of linear for every chunking and incoming gradient") {
  const Problem p(23, 6, 11, DType::f64);
  for (const double factor : {1.0, 1.0 / 23, -2.0}) {
    const auto whole = run(p, factor, [&](auto& x, auto& w) { return cross_entropy(linear(x, w, {}), p.targets); });
    for (const std::int64_t chunk : {0, 1, 5, 23, 100}) {
      const auto parts =
          run(p, factor, [&](auto& x, auto& w) { return linear_cross_entropy(x, w, p.targets, nullptr, chunk); });
      CAPTURE(factor, chunk);
      CHECK(relative_difference(parts.loss, whole.loss) <= 1e-14);
      CHECK(relative_difference(parts.x, whole.x) <= 1e-13);
      CHECK(relative_difference(parts.w, whole.w) <= 1e-13);
    }
  }
}

TEST_CASE("linear_cross_entropy reports each row's loss, 0 where the target is ignored") {
  const Problem p(9, 4, 5, DType::f64);
  Tensor losses;
  const Variable total = linear_cross_entropy(Variable(p.x), Variable(p.w), p.targets, &losses, 4);
  CHECK(!total.requires_grad());
  const auto x = values_of(p.x), w = values_of(p.w), got = values_of(losses);
  double sum = 0;
  for (std::size_t n = 0; n < 9; ++n) {
    double z[5], norm = 0;
    for (std::size_t v = 0; v < 5; ++v) {
      z[v] = 0;
      for (std::size_t c = 0; c < 4; ++c) z[v] += x[n * 4 + c] * w[v * 4 + c];
      norm += std::exp(z[v]);
    }
    const std::int32_t t = p.targets.span<std::int32_t>()[n];
    const double wanted = t < 0 ? 0 : std::log(norm) - z[t];
    CHECK(std::abs(got[n] - wanted) <= 1e-12);
    sum += wanted;
  }
  CHECK(std::abs(total.value().item() - sum) <= 1e-11);
}

TEST_CASE("linear_cross_entropy never holds all logits, and no gradients where none are wanted") {
  const std::int64_t N = 4096, C = 8, V = 512;
  const Problem p(N, C, V, DType::f32);
  const std::int64_t logits = N * V * 4;
  const auto peak_of = [&](auto f) {
    reset_peak_memory({});
    const std::int64_t before = memory_stats({}).current_bytes;
    f();
    return memory_stats({}).peak_bytes - before;
  };
  const std::int64_t trained =
      peak_of([&] { (void)run(p, 0.5, [&](auto& x, auto& w) { return linear_cross_entropy(x, w, p.targets); }); });
  const std::int64_t evaluated = peak_of([&] {
    const NoGrad no_grad;
    (void)linear_cross_entropy(Variable::leaf(p.x), Variable::leaf(p.w), p.targets);
  });
  const std::int64_t gradients = (N + V) * C * 4;
  CHECK(trained < logits / 8 + 2 * gradients);
  CHECK(evaluated < logits / 8);
  CHECK(trained > evaluated);
}

TEST_CASE("linear_cross_entropy multiplies by no 1, and takes its factor from memory") {
  const Problem p(9, 4, 5, DType::f32);
  const auto backward_kernels = [&](const Tensor& seed) {
    const Variable x = Variable::leaf(p.x), w = Variable::leaf(p.w);
    const Variable l = linear_cross_entropy(x, w, p.targets);
    KernelProfile::start();
    backward(l, seed);
    std::string names;
    for (const auto& entry : KernelProfile::stop()) names += entry.kernel;
    return names;
  };
  CHECK(backward_kernels({}) == "Fill");  // the 1 itself
  CHECK(backward_kernels(full({}, 3, DType::f32)) == "Axpby");
}

TEST_CASE("chunks of logits: as many rows as channels on a CPU, 8,192 aligned rows in the model's dtype on a GPU") {
  const LossChunk cpu = loss_chunk({}, 65536, 768, 50257, DType::bf16);
  CHECK((cpu.rows == 768 && cpu.ld == 50257 && cpu.logits == DType::f32));
  const LossChunk gpu = loss_chunk({Device::Kind::cuda, 0}, 65536, 768, 50257, DType::bf16);
  CHECK((gpu.rows == 8192 && gpu.ld == 50304 && gpu.logits == DType::bf16));
}

TEST_CASE("linear_cross_entropy does not depend on the number of threads") {
  const int before = num_threads();
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Problem p(601, 48, 1003, dtype);
    std::vector<Gradients> results;
    for (const int threads : {1, 2, 3}) {
      set_num_threads(threads);
      results.push_back(run(p, 0.25, [&](auto& x, auto& w) { return linear_cross_entropy(x, w, p.targets); }));
      CHECK(same_bits(results.back().loss, results[0].loss));
      CHECK(same_bits(results.back().x, results[0].x));
      CHECK(same_bits(results.back().w, results[0].w));
    }
  }
  set_num_threads(before);
}

TEST_CASE("ops say what is wrong with their inputs") {
  const auto f32 = [](const Shape& s) { return Variable(full(s, 1, DType::f32)); };
  const Variable low(full({4}, 1, DType::bf16));
  const Tensor ids = zeros({2}, DType::i32), wrong = full({2}, 7, DType::i32);
  CHECK(contains(error_text([&] { add(f32({2, 3}), f32({4})); }), "[add] shapes do not broadcast: (2, 3) and (4)"));
  CHECK(
      contains(error_text([&] { mul(f32({4}), low); }), "[mul] dtypes differ: f32 (4) and bf16 (4); cast one of them"));
  CHECK(contains(error_text([&] {
                   linear(f32({2, 3}), f32({5, 4}), {});
                 }),
                 "x (..., I) and w (O, I), got (2, 3) and (5, 4)"));
  CHECK(contains(error_text([&] { linear(f32({2, 3}), f32({5, 3}), f32({3})); }), "bias of shape (5), got (3)"));
  CHECK(contains(error_text([&] { linear({}, f32({5, 3}), {}); }), "[linear] wants a float tensor, got none"));
  CHECK(contains(error_text([&] {
                   layer_norm(f32({2, 3}), f32({2}), {}, 1e-5);
                 }),
                 "wants x (..., D) and w (D), got (2, 3) and (2)"));
  CHECK(contains(error_text([&] { rms_norm(f32({2, 3}), f32({2}), 1e-5); }), "[rms_norm]"));
  CHECK(contains(error_text([&] { swiglu(f32({2, 3})); }), "[swiglu] wants x (..., 2F) = [gate | up], got (2, 3)"));
  CHECK(contains(error_text([&] { reshape(f32({2, 3}), {5}); }), "[reshape] (2, 3) has 6 elements, (5) has 5"));
  CHECK(contains(error_text([&] { slice(f32({2, 3}), 1, 2, 4); }), "[slice] [2, 4) of axis 1 of (2, 3)"));
  CHECK(contains(error_text([&] { cast(f32({2}), DType::i32); }), "[cast] to i32"));
  CHECK(contains(error_text([&] {
                   score(f32({2, 3}), f32({1, 3}));
                 }),
                 "[score] wants x (B, T, C) and w (Hs, C), got (2, 3) and (1, 3)"));
  CHECK(contains(error_text([&] {
                   embedding(f32({5, 2}), full({2}, 1, DType::f32));
                 }),
                 "[embedding] ids must be i32, got f32"));
  CHECK(contains(error_text([&] {
                   cross_entropy(f32({3, 4}), ids);
                 }),
                 "logits (N, V) and targets (N), got (3, 4) and (2)"));
  CHECK(contains(error_text([&] {
                   linear_cross_entropy(f32({2, 4}), f32({5, 3}), ids);
                 }),
                 "got (2, 4), (5, 3) and (2)"));
  const Stream elsewhere{.device = {.index = 1}};
  const Tensor far = ids.to(elsewhere);
  CHECK(contains(error_text([&] { embedding(f32({5, 2}), far); }), "[embedding] ids (2) lies on cpu"));
  CHECK(contains(error_text([&] { cross_entropy(f32({2, 4}), far); }), "[cross_entropy] targets (2) lies on cpu"));
  CHECK(contains(error_text([&] {
                   linear_cross_entropy(f32({2, 3}), f32({5, 3}), far);
                 }),
                 "[linear_cross_entropy] targets (2) lies on cpu"));
  // Ids come from data files: another exit code.
  const auto code_of = [](auto f) {
    try {
      f();
    } catch (const Error& e) { return e.code(); }
    return Exit::ok;
  };
  CHECK(code_of([&] { embedding(f32({5, 2}), wrong); }) == Exit::data);
  CHECK(code_of([&] { cross_entropy(f32({2, 5}), wrong); }) == Exit::data);
  CHECK(code_of([&] { linear_cross_entropy(f32({2, 3}), f32({5, 3}), wrong); }) == Exit::data);
}
