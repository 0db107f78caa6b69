// Inputs at the edge: empty batches, document starts as a strided view, scores that are not numbers.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "attention/decode.h"
#include "attention/timestep_norm.h"
#include "attention_cases.h"
#include "support/catch.h"
#include "support/compare.h"
#include "support/errors.h"

using namespace sieve;
using namespace sieve::test;

namespace {

ReferenceInput small(AttentionKind kind, std::int64_t B, std::int64_t T) {
  ReferenceInput in;
  in.spec = make_spec(kind, 4, 2, 8);
  in.spec.window = 5;
  in.spec.sparsek.k = 6;
  in.B = B, in.T = T;
  in.score_heads = 2;
  in.rope.rotary_dims = 8;
  Draw d(61, static_cast<std::uint64_t>(T));
  fill_values(in, d, "normal");
  return in;
}

constexpr AttentionKind kKinds[] = {AttentionKind::full, AttentionKind::sliding_window, AttentionKind::sparsek};

}  // namespace

TEST_CASE("an empty batch and empty rows go forward and back, with and without documents") {
  for (const AttentionKind kind : kKinds) {
    for (const auto& [B, T] : {std::pair{0, 5}, std::pair{0, 700}, std::pair{0, 0}, std::pair{2, 0}}) {
      for (const bool documents : {false, true}) {
        CAPTURE(static_cast<int>(kind), B, T, documents);
        AttentionInputs how{small(kind, 1, 1).spec, {8}, {}};
        if (documents) how.document_starts = empty({B, T}, DType::i32);
        const Variable qkv = Variable::leaf(empty({B, T, 64}, DType::f32));
        const bool sparse = kind == AttentionKind::sparsek;
        const Variable scores = sparse ? Variable::leaf(empty({B, 2, T}, DType::f32)) : Variable();
        const Variable out = attention(qkv, scores, how);
        CHECK(out.shape() == Shape{B, T, 32});
        backward(out, zeros({B, T, 32}, DType::f32));
        CHECK(qkv.grad().shape() == Shape{B, T, 64});
        if (sparse) CHECK(scores.grad().shape() == Shape{B, 2, T});
      }
    }
  }
  const Variable s = Variable::leaf(empty({0, 2, 5}, DType::f32)), gain = Variable::leaf(full({2}, 1, DType::f32));
  const Variable y = timestep_norm(s, gain, empty({0, 5}, DType::i32));
  backward(y, empty({0, 2, 5}, DType::f32));
  CHECK(max_abs(gain.grad()) == 0);
}

TEST_CASE("document starts as a strided view are those of its values") {
  ReferenceInput in = small(AttentionKind::sparsek, 3, 40);
  Draw d(62, 1);
  fill_documents(in, d);
  const Tensor dense = from_values<std::int32_t>(in.document_starts, {3, 40}), view = starts_view(in);
  REQUIRE(!view.is_contiguous());
  const Variable scores(tensor_of(in.scores, {3, 2, 40}, DType::f32));
  const Variable gain(full({2}, 1, DType::f32));
  CHECK(same_bits(timestep_norm(scores, gain, view).value(), timestep_norm(scores, gain, dense).value()));
  for (const AttentionKind kind : kKinds) {
    in.spec.kind = kind;
    const Variable qkv(tensor_of(in.qkv, {3, 40, 64}, DType::f32));
    const Variable s = kind == AttentionKind::sparsek ? scores : Variable();
    CHECK(same_bits(attention(qkv, s, {in.spec, in.rope, view}).value(),
                    attention(qkv, s, {in.spec, in.rope, dense}).value()));
  }
  CHECK(contains(coded_error_text([&] { timestep_norm(scores, gain, dense.slice(1, 0, 39)); }),
                 "[timestep_norm] wants document_starts i32 (3, 40), got i32 (3, 39)"));
  CHECK(contains(coded_error_text([&] {
                   timestep_norm(scores, gain, full({3, 40}, 0, DType::f32));
                 }),
                 "got f32 (3, 40)"));
  CHECK(contains(coded_error_text([&] {
                   timestep_norm(scores, gain, full({3, 40}, 1, DType::i32));
                 }),
                 "[timestep_norm] document_starts[0, 0] = 1"));
}

TEST_CASE("scores that are not numbers end an evaluation and poison a training step") {
  for (const GateMode gate : {GateMode::kv, GateMode::hard}) {
    ReferenceInput in = small(AttentionKind::sparsek, 2, 40);
    in.spec.sparsek.gate = gate;
    const Tensor qkv = tensor_of(in.qkv, {2, 40, 64}, DType::f32);
    const auto run = [&] {
      const NoGrad no_grad;
      run_engine(in, DType::f32, {});
    };
    CHECK(coded_error_text(run) == "no error");
    in.scores[7] = in.scores[90] = std::nan("");
    CHECK(contains(coded_error_text(run), "5 [attention] 2 of 160 scores are NaN"));
    // Recording: nobody may take the result for a number, nor the gradients.
    const auto dout = std::vector<double>(2 * 40 * 32, 1.0);
    const EngineRun poisoned = run_engine(in, DType::f32, dout);
    for (double x : values_of(poisoned.out)) REQUIRE(std::isnan(x));
    CHECK(!std::isfinite(max_abs(poisoned.dqkv)));
    // One row of NaN is enough, and infinities are scores like others.
    in.scores[7] = in.scores[90] = std::numeric_limits<double>::infinity();
    CHECK(coded_error_text(run) == "no error");
  }
}

TEST_CASE("a layer that is run again in backward passes NaN scores on to the loss as a recorded one does") {
  ReferenceInput in = small(AttentionKind::sparsek, 1, 40);
  in.scores[7] = std::nan("");
  const Variable qkv = Variable::leaf(tensor_of(in.qkv, {1, 40, in.spec.qkv_features()}, DType::f32));
  const Variable scores = Variable::leaf(tensor_of(in.scores, {1, 2, 40}, DType::f32));
  const Variable out = recompute([&](const Variable& x) { return attention(x, scores, inputs_of(in)); }, qkv);
  for (double x : values_of(out.value())) REQUIRE(std::isnan(x));
  backward(out, tensor_of(std::vector<double>(40 * 32, 1.0), out.shape(), DType::f32));
  CHECK(std::isnan(values_of(qkv.grad())[0]));
}

TEST_CASE("a cache refuses scores that are not numbers and stays as it was") {
  ReferenceInput in = small(AttentionKind::sparsek, 1, 40);
  const Tensor qkv = tensor_of(in.qkv, {1, 40, 64}, DType::f32), good = tensor_of(in.scores, {1, 2, 40}, DType::f32);
  in.scores[30] = std::nan("");
  const Tensor bad = tensor_of(in.scores, {1, 2, 40}, DType::f32);
  AttentionCache cache(in.spec, in.rope, 1, DType::f32, 40, 2);
  CHECK(contains(coded_error_text([&] { cache.step(qkv, bad); }), "5 [cache] 1 of 80 scores are NaN"));
  CHECK(cache.length() == 0);
  cache.step(qkv.slice(1, 0, 30), good.slice(2, 0, 30));
  CHECK(contains(coded_error_text([&] { cache.step(qkv.slice(1, 30, 31), bad.slice(2, 30, 31)); }),
                 "1 of 2 scores are NaN"));
  CHECK(cache.length() == 30);
  const Tensor last = cache.step(qkv.slice(1, 30, 40), good.slice(2, 30, 40));
  const Tensor wanted = attention(Variable(qkv), Variable(good), {in.spec, in.rope, {}}).value().slice(1, 30, 40);
  CHECK(relative_difference(last, wanted) <= 1e-5);
}

TEST_CASE("a pool of 1 is refused where weights come from thresholds") {
  ReferenceInput in = small(AttentionKind::sparsek, 1, 12);
  in.spec.sparsek.pool = 1;
  for (const GateMode gate : {GateMode::kv, GateMode::value, GateMode::prob}) {
    in.spec.sparsek.gate = gate;
    CHECK(contains(coded_error_text([&] { run_engine(in, DType::f32, {}); }), "2 [attention] sparsek pool 1 leaves"));
  }
  in.spec.sparsek.gate = GateMode::hard;
  CHECK(coded_error_text([&] { run_engine(in, DType::f32, {}); }) == "no error");
}
