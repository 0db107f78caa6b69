// Dense attention on a GPU against the softmax engine in fp64 on the same inputs (rounded to bf16 first). The error may
// be twice that of a naive bf16 attention: rotated q and k, the weights, their gradients and the results rounded to
// bf16, all sums in fp32. Letters: B batch, T time, H query heads, Hkv key-value heads, D head size, F features, W
// window.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <string>
#include <thread>
#include <vector>

#include "attention/attention.h"
#include "attention/dense.h"
#include "attention/kernels/dense.h"
#include "attention/warpgroup_engine.h"
#include "autograd/variable.h"
#include "core/build.h"
#include "dense_cases.h"
#include "support/catch.h"
#include "support/compare.h"
#include "support/gpu.h"

using namespace sieve;
using namespace sieve::test;

namespace {

// What the kernels get and give, on the GPU.
struct OnGpu {
  RotaryTable rotary;
  Tensor qkv, dout, out, statistics, dqkv;
  DenseAttentionBackwardArgs args;
};

OnGpu on_gpu(const Problem& p) {
  OnGpu g;
  const Stream stream = gpu_stream();
  const auto poison = [&](const Shape& shape, DType dtype) { return full(shape, std::nan(""), dtype).to(stream); };
  g.qkv = p.qkv.to(stream);
  g.dout = p.dout.to(stream);
  g.out = poison(p.dout.shape(), DType::bf16);
  g.dqkv = poison(p.qkv.shape(), DType::bf16);
  g.statistics = poison({p.B, p.spec.n_heads, p.T}, DType::f32);
  DenseAttentionArgs& f = g.args.forward;
  if (p.rope.rotary_dims > 0) {
    const RotaryTable table = rotary_table(p.rope, p.T, DType::f32, Stream{});
    g.rotary = {table.cos.to(stream), table.sin.to(stream)};
    f.rotary = {g.rotary.cos.raw(), g.rotary.sin.raw(), p.rope.rotary_dims, -1};
  }
  f.qkv_BTF = g.qkv.raw();
  f.out_BTHD = g.out.raw();
  f.statistics_BHT = g.statistics.data<float>();
  f.B = p.B;
  f.T = p.T;
  f.H = p.spec.n_heads;
  f.Hkv = p.spec.n_kv_heads;
  f.D = p.spec.head_dim;
  f.window = p.window();
  f.scale = 1 / std::sqrt(static_cast<double>(f.D));
  g.args.dout_BTHD = g.dout.raw();
  g.args.dqkv_BTF = g.dqkv.raw();
  g.args.deterministic = p.deterministic;
  return g;
}

void run_on_gpu(const OnGpu& g) {
  if constexpr (build::with_cudnn) {
    cuda::run(g.args.forward, gpu_stream());
    cuda::run(g.args, gpu_stream());
  }
}

// Plans of all problems by many threads: compiling them is most of this file's time. Why a problem has none.
std::vector<std::string> prepare_all(const std::vector<Problem>& problems) {
  std::vector<std::string> refused(problems.size());
  if constexpr (build::with_cudnn) {
    std::vector<OnGpu> arguments;
    for (const Problem& p : problems) arguments.push_back(on_gpu(p));
    std::atomic<std::size_t> next{0};
    std::vector<std::thread> threads;
    for (unsigned n = 0; n < std::clamp(std::thread::hardware_concurrency(), 1u, 32u); ++n) {
      threads.emplace_back([&] {
        for (std::size_t i = next++; i < problems.size(); i = next++) {
          try {
            cuda::workspace_bytes(arguments[i].args.forward, arguments[i].qkv.stream());
            cuda::workspace_bytes(arguments[i].args, arguments[i].qkv.stream());
          } catch (const std::exception& e) { refused[i] = e.what(); }
        }
      });
    }
    for (std::thread& t : threads) t.join();
  }
  return refused;
}

Results to_host(const Tensor& out, const Tensor& dqkv) { return {out.to(Stream{}), dqkv.to(Stream{})}; }

}  // namespace

TEST_CASE("the naive bf16 attention is close to the engine") {
  for (std::uint64_t c = 0; c < 6; ++c) {
    Draw d(81, c);
    Problem p = draw_problem(d);
    if (p.T > 130) continue;
    CAPTURE(c, p.str());
    const Results naive = Naive(p).run(), wanted = reference(p);
    CHECK(max_difference(naive.out, wanted.out) <= 0.03);
    CHECK(relative_difference(naive.dqkv, wanted.dqkv) <= 0.03);
  }
}

TEST_CASE("dense attention on the GPU is as exact as naive bf16 attention twice over", "[gpu]") {
  SIEVE_NEEDS_GPU();
  if constexpr (!build::with_cudnn) return;
  std::vector<Problem> problems;
  for (std::uint64_t c = 0; c < 200; ++c) {
    Draw d(83, c);
    problems.push_back(draw_problem(d));
  }
  const auto refused = prepare_all(problems);
  const auto naive = naive_of(problems);
  Comparison comparison;
  for (std::size_t c = 0; c < problems.size(); ++c) {
    const Problem& p = problems[c];
    CAPTURE(c, p.str());
    if (!refused[c].empty()) {
      INFO(refused[c]);
      CHECK((p.spec.head_dim != 64 && p.spec.head_dim != 128));  // these it must have
      continue;
    }
    const OnGpu g = on_gpu(p);
    run_on_gpu(g);
    comparison.add(p, to_host(g.out, g.dqkv), naive[c]);
  }
  comparison.check_largest();
}

// Not [small]: compute-sanitizer would check the library's kernels, whose barriers and copies it cannot follow.
TEST_CASE("dense attention on the GPU: a few short rows", "[gpu]") {
  SIEVE_NEEDS_GPU();
  if constexpr (!build::with_cudnn) return;
  std::vector<Problem> problems;
  for (const std::int64_t window : {0, 20}) {
    for (const bool deterministic : {false, true}) {
      Problem p;
      p.B = 2, p.T = 70;
      p.spec.kind = window > 0 ? AttentionKind::sliding_window : AttentionKind::full;
      p.spec.window = window;
      p.spec.n_heads = 4, p.spec.n_kv_heads = 2, p.spec.head_dim = 64;
      p.rope.rotary_dims = 64;
      p.deterministic = deterministic;
      Draw d(91, static_cast<std::uint64_t>(window));
      fill(p, d);
      problems.push_back(p);
    }
  }
  const auto naive = naive_of(problems);
  Comparison comparison;
  for (std::size_t c = 0; c < problems.size(); ++c) {
    const OnGpu g = on_gpu(problems[c]);
    CAPTURE(problems[c].str());
    run_on_gpu(g);
    comparison.add(problems[c], to_host(g.out, g.dqkv), naive[c]);
  }
  comparison.check_largest();
}

TEST_CASE("the deterministic backward of dense attention gives the same bits 100 times", "[gpu]") {
  SIEVE_NEEDS_GPU();
  if constexpr (!build::with_cudnn) return;
  for (const std::int64_t window : {0, 100}) {
    Problem p;
    p.B = 2;
    p.T = 1000;
    p.spec.kind = window > 0 ? AttentionKind::sliding_window : AttentionKind::full;
    p.spec.window = window;
    p.spec.n_heads = 8;
    p.spec.n_kv_heads = 2;
    p.spec.head_dim = 64;
    p.rope.rotary_dims = 64;
    p.deterministic = true;
    Draw d(85, static_cast<std::uint64_t>(window));
    fill(p, d);
    const OnGpu g = on_gpu(p);
    CAPTURE(p.str());
    run_on_gpu(g);
    const Results first = to_host(g.out, g.dqkv);
    int different = 0;
    for (int run = 1; run < 100; ++run) {
      run_on_gpu(g);
      const Results again = to_host(g.out, g.dqkv);
      different += !same_bits(again.out, first.out) || !same_bits(again.dqkv, first.dqkv);
    }
    CHECK(different == 0);
    CHECK(max_abs(first.dqkv) > 0);
  }
}

TEST_CASE("the deterministic backward in pieces of the batch equals that of single rows", "[gpu]") {
  SIEVE_NEEDS_GPU();
  if constexpr (!build::with_cudnn) return;
  Problem p;  // 512 MiB of weights a row: two pieces of two rows
  p.B = 4;
  p.T = 2048;
  p.spec.n_heads = 64;
  p.spec.n_kv_heads = 1;
  p.spec.head_dim = 64;
  p.rope.rotary_dims = 32;
  p.deterministic = true;
  Draw d(89, 0);
  fill(p, d);
  const OnGpu all = on_gpu(p);
  run_on_gpu(all);
  const Results together = to_host(all.out, all.dqkv);
  for (std::int64_t b = 0; b < p.B; ++b) {
    Problem one = p;
    one.B = 1;
    one.qkv = p.qkv.slice(0, b, b + 1).clone();
    one.dout = p.dout.slice(0, b, b + 1).clone();
    const OnGpu g = on_gpu(one);
    run_on_gpu(g);
    const Results alone = to_host(g.out, g.dqkv);
    CAPTURE(b);
    CHECK(relative_difference(together.out.slice(0, b, b + 1), alone.out) <= 0.01);  // plans may differ by B
    CHECK(relative_difference(together.dqkv.slice(0, b, b + 1), alone.dqkv) <= 0.01);
  }
}

TEST_CASE("the attention op takes dense attention where it serves, forward and backward", "[gpu]") {
  SIEVE_NEEDS_GPU();
  std::vector<Problem> problems;
  for (std::uint64_t c = 0; c < 8; ++c) {
    Draw d(87, c);
    Problem p = draw_problem(d);
    p.T = 100 + 30 * static_cast<std::int64_t>(c);
    p.deterministic = false;
    p.spec.head_dim = c % 2 == 0 ? 64 : 128;
    p.rope.rotary_dims = c % 4 < 2 ? p.spec.head_dim : 0;
    fill(p, d);
    problems.push_back(p);
  }
  const auto naive = naive_of(problems);
  Comparison comparison;
  allow_warpgroup_engine(false);  // it would take windows
  for (std::size_t c = 0; c < problems.size(); ++c) {
    const Problem& p = problems[c];
    CAPTURE(c, p.str());
    const Variable qkv = Variable::leaf(p.qkv.to(gpu_stream()));
    CHECK(dense_path(p.spec, p.rope, qkv.value(), false, true) == build::with_cudnn);
    const Variable out = attention(qkv, {}, {p.spec, p.rope, {}});
    backward(out, p.dout.to(gpu_stream()));
    comparison.add(p, to_host(out.value(), qkv.grad()), naive[c]);
  }
  allow_warpgroup_engine(true);
  comparison.check_largest();
}

TEST_CASE("what dense attention does not serve") {
  AttentionSpec spec;
  spec.n_heads = spec.n_kv_heads = 2;
  spec.head_dim = 64;
  const Tensor on_cpu = zeros({1, 8, spec.qkv_features()}, DType::bf16);
  CHECK_FALSE(dense_path(spec, {}, on_cpu, false, true));
  if (cuda_device_count() == 0) return;
  const Tensor qkv = on_cpu.to(gpu_stream());
  CHECK_FALSE(dense_path(spec, {}, qkv, true, true));                               // documents
  CHECK_FALSE(dense_path(spec, {}, qkv.to(DType::f32), false, true));               // fp32
  CHECK_FALSE(dense_path(spec, {}, qkv.slice(1, 0, 1).contiguous(), false, true));  // one token
  allow_dense_attention(false);
  CHECK_FALSE(dense_path(spec, {}, qkv, false, true));
  allow_dense_attention(true);
  CHECK(dense_path(spec, {}, qkv, false, true) == build::with_cudnn);
  spec.kind = AttentionKind::sliding_window;
  spec.window = 4;
  spec.sinks = 1;
  CHECK_FALSE(dense_path(spec, {}, qkv, false, true));
}
