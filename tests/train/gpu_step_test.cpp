// A model on a GPU: its weights, its updates, its checkpoints.
#include <cmath>
#include <limits>

#include "core/rng.h"
#include "dist/communicator.h"
#include "support/catch.h"
#include "support/compare.h"
#include "support/gpu.h"
#include "support/scratch.h"
#include "train/adamw.h"
#include "train/checkpoint.h"
#include "train/checkpoint_writer.h"
#include "train/gradient_step.h"
#include "train/run_data.h"

using namespace sieve;
using sieve::test::gpu_stream;
using sieve::test::same_bits;
using sieve::test::Scratch;
using sieve::test::text_of;

namespace {

RunConfig small_config() {
  RunConfig c;
  c.model.n_layers = 2;
  c.model.d_model = 32;
  c.model.n_heads = 2;
  c.data.seq_len = 32;
  c.train.steps = 10;
  resolve_config(c, 257, 1);
  return c;
}

std::unique_ptr<Decoder> model_on(const Stream& on, DType compute) {
  auto model =
      std::make_unique<Decoder>(small_config().model, DecoderOptions{.compute = compute, .seed = 3, .recompute = {}});
  place_parameters(model->parameters(), on);
  return model;
}

std::vector<Tensor> masters(const Decoder& model) {
  std::vector<Tensor> out;
  for (const auto& p : model.parameters()) out.push_back(p->master.to(Stream{}).clone());
  return out;
}

std::shared_ptr<const TrainingSet> texts() {
  std::vector<std::int32_t> ids(4000);
  const Philox random{3, 1};
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(random.bits64(i) % 257);
  auto source = std::make_shared<MemoryTokens>("memory", std::move(ids));
  return std::make_shared<TrainingSet>(std::vector<TrainingSet::Source>{{source, {}}}, 32, 1, false);
}

Tensor gradient(const FlatLayout& layout) {
  Tensor flat = zeros({layout.numel}, DType::f32);
  for (std::size_t i = 0; i < layout.size(); ++i)
    flat.slice(0, layout.begins[i], layout.begins[i] + layout.numels[i])
        .copy_from(random_normal({layout.numels[i]}, 0, 1, 3, stream_of(static_cast<std::int64_t>(i))));
  return flat;
}

CheckpointContent content_of(const Decoder& model, const AdamW& adamw) {
  CheckpointContent c;
  c.config_yaml = "schema: 1\n";
  c.config_json = "{}\n";
  c.tokenizer = make_byte_tokenizer();
  collect_weights(model, c.model, c.scorers);
  c.optimizer = adamw.state();
  return c;
}

}  // namespace

TEST_CASE("GPU: weights arrive with the bits they were made with, and their copies too", "[gpu]") {
  SIEVE_NEEDS_GPU();
  const auto here = model_on({}, DType::bf16), there = model_on(gpu_stream(), DType::bf16);
  for (std::size_t i = 0; i < here->parameters().size(); ++i) {
    const Parameter &a = *here->parameters()[i], &b = *there->parameters()[i];
    INFO(a.name);
    CHECK(b.master.device() == gpu_stream().device);
    CHECK(same_bits(a.master, b.master.to(Stream{})));
    CHECK(same_bits(a.value.value(), b.value.value().to(Stream{})));
  }
}

TEST_CASE("GPU: a checkpoint has the files of one from the CPU, and is read into a GPU", "[gpu]") {
  SIEVE_NEEDS_GPU();
  const auto here = model_on({}, DType::bf16), there = model_on(gpu_stream(), DType::bf16);
  AdamW a({}, here->parameters()), b({}, there->parameters());
  a.step(gradient(a.layout()), 1e-2, 0.5);
  b.step(gradient(b.layout()).to(gpu_stream()), 1e-2, 0.5);
  const auto wanted = masters(*here), got = masters(*there);
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    for (std::int64_t k = 0; k < wanted[i].numel(); ++k)  // one update of 0.01: a rounding of the CPU's fma apart
      REQUIRE(std::abs(wanted[i].data<float>()[k] - got[i].data<float>()[k]) < 1e-6f);
  }
  const Scratch scratch;
  for (const bool background : {false, true}) {
    const auto folder = scratch / (background ? "later" : "now");
    CheckpointWriter writer(folder, {}, background);
    writer.save(content_of(*there, b));
    writer.wait();
    // The same bits, brought to the CPU by hand.
    CheckpointContent c = content_of(*there, b);
    for (TensorMap* map : {&c.model, &c.optimizer}) {
      for (auto& [name, tensor] : *map) tensor = tensor.to(Stream{});
    }
    write_checkpoint(scratch / (background ? "later-cpu" : "now-cpu"), c);
    for (const char* file : {"model.safetensors", "optimizer.safetensors"}) {
      INFO(file);
      CHECK(text_of(folder / "step_00000000" / file) ==
            text_of(scratch / (background ? "later-cpu" : "now-cpu") / "step_00000000" / file));
    }
  }
  const auto other = model_on(gpu_stream(), DType::bf16);
  AdamW c({}, other->parameters());
  c.restore(SafetensorsFile(scratch / "now" / "step_00000000" / "optimizer.safetensors"), 1);
  const TensorMap before = b.state();
  for (const auto& [name, tensor] : c.state()) {
    INFO(name);
    CHECK(same_bits(tensor.to(Stream{}), before.at(name).to(Stream{})));
  }
}

TEST_CASE("GPU: three steps follow the CPU's, and one that is not finite changes nothing", "[gpu][small]") {
  SIEVE_NEEDS_GPU();
  const auto train = [](const Stream& on, bool poison, std::vector<double>* losses) {
    SelfCommunicator comm;
    const auto model = model_on(on, DType::f32);
    GradientStep step(*model, comm, {.bucket_bytes = 4000}, 3);
    AdamW adamw({}, step.parameters());
    Loader loader(texts(), 2, {.per_step = 3, .rank = 0, .world = 1}, 0, 2);
    for (int i = 0; i < 3; ++i) {
      if (poison && i == 1) {
        Tensor first = model->parameters().back()->master.flatten().slice(0, 0, 1);
        first.fill(std::numeric_limits<double>::quiet_NaN());
      }
      const StepSummary summary = step.run(
          loader, {}, nullptr, 0.5, [&](const Tensor& g, const Tensor& control) { adamw.step(g, 1e-2, 1.0, control); });
      CHECK(summary.flags.nonfinite == (poison && i > 0));
      if (losses) losses->push_back(summary.loss_sum / static_cast<double>(summary.tokens));
      if (summary.flags.nonfinite) adamw.forget_update();
    }
    CHECK(adamw.updates() == (poison ? 1 : 3));
    return masters(*model);
  };
  std::vector<double> here, there;
  train({}, false, &here);
  train(gpu_stream(), false, &there);
  for (std::size_t i = 0; i < here.size(); ++i) CHECK(there[i] == Approx(here[i]).epsilon(1e-4));  // fp32, other orders
  int bad = 0;
  for (const Tensor& w : train(gpu_stream(), true, nullptr)) {
    for (const float x : w.span<float>()) bad += std::isfinite(x) ? 0 : 1;
  }
  CHECK(bad == 1);  // the poison itself
}
