// Times every matrix product of a GPT-2 124M step (65,536 rows, bf16) as the model calls it, fused epilogues included,
// and cross entropy between them: milliseconds (median of 20) and TF/s with the library's first proposal, the same with
// proposals timed, and how often a step does it. Products with sums of A (the bias gradient beside dW) stand there
// three times: with the sums out of the product, by a kernel of their own, and without.
//   bench_gpu_products [part of a name]
#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "core/build.h"
#include "tensor/kernels/cuda/matmul_tuning.h"
#include "tensor/kernels/kernels.h"
#include "tensor/runtime.h"
#include "tensor/tensor.h"

namespace {

using namespace sieve;

constexpr std::int64_t R = 65536, C = 768, F = 3072, Q = 2304, V = 50304, kChunk = 8192;
constexpr int kRuns = 20;
std::string filter;

Stream stream() { return main_stream({Device::Kind::cuda, 0}); }

double median_seconds(const std::function<void()>& kernel) {
  for (int run = 0; run < 3; ++run) kernel();
  std::vector<Event> at;
  for (int run = 0; run <= kRuns; ++run) at.emplace_back(stream().device);
  at[0].record(stream());
  for (std::size_t run = 0; run < kRuns; ++run) {  // all are queued before the first is waited for
    kernel();
    at[run + 1].record(stream());
  }
  synchronize(stream());
  std::vector<double> seconds;
  for (std::size_t run = 0; run < kRuns; ++run) seconds.push_back(at[run + 1].seconds_since(at[run]));
  std::nth_element(seconds.begin(), seconds.begin() + kRuns / 2, seconds.end());
  return seconds[kRuns / 2];
}

// Memory for every operand, random so that the chip's clocks see real work.
Tensor operand(std::int64_t elements, DType dtype = DType::bf16) {
  static std::uint64_t philox_stream = 0;
  const Tensor t = empty({elements}, dtype, stream());
  launch(stream(), RandomArgs{.dst = t.raw(),
                              .n = elements,
                              .kind = Random::normal,
                              .b = 0.1,
                              .seed = 7,
                              .philox_stream = philox_stream++,
                              .dtype = dtype});
  return t;
}

double step_seconds[2] = {0, 0};

void report(const std::string& name, int per_step, const MatmulArgs& args) {
  if (name.find(filter) == std::string::npos) return;
  const double flops = 2.0 * static_cast<double>(args.M) * static_cast<double>(args.N) * static_cast<double>(args.K);
  double seconds[2];
  for (const int timed : {0, 1}) {
    cuda::set_matmul_tuning(timed == 1);
    seconds[timed] = median_seconds([&] { launch(stream(), args); });
    step_seconds[timed] += per_step * seconds[timed];
  }
  std::printf("| %-34s | %4d | %7.3f | %5.0f | %7.3f | %5.0f |\n", name.c_str(), per_step, seconds[0] * 1e3,
              flops / seconds[0] * 1e-12, seconds[1] * 1e3, flops / seconds[1] * 1e-12);
  std::fflush(stdout);
}

struct Layer {
  const char* name;
  std::int64_t I, O;
  Epilogue forward, backward;  // backward: fused into dx
  bool residual;
};

void layer_products(const Layer& layer) {
  const std::int64_t I = layer.I, O = layer.O;
  const Tensor x = operand(R * I), w = operand(O * I), y = operand(R * O), bias = operand(O), residual = operand(R * O);
  const Tensor dx = operand(R * I), pre_in = operand(R * I), dw = operand(O * I, DType::f32),
               db = operand(O, DType::f32);
  MatmulArgs args{.M = R,
                  .N = O,
                  .K = I,
                  .lda = I,
                  .ldb = I,
                  .ldc = O,
                  .transpose_b = true,
                  .dtype = DType::bf16,
                  .c_dtype = DType::bf16};
  args.a = x.raw(), args.b = w.raw(), args.c = y.raw(), args.bias_N = bias.raw();
  args.epilogue = layer.forward;
  if (layer.forward == Epilogue::gelu) args.pre_MN = residual.raw();
  if (layer.residual) args.add_MN = residual.raw();
  report(std::string(layer.name) + " y", 12, args);

  args = {.M = R, .N = I, .K = O, .lda = O, .ldb = I, .ldc = I, .dtype = DType::bf16, .c_dtype = DType::bf16};
  args.a = y.raw(), args.b = w.raw(), args.c = dx.raw();
  args.epilogue = layer.backward;
  if (layer.backward == Epilogue::gelu_backward) args.pre_MN = pre_in.raw();
  report(std::string(layer.name) + " dx", 12, args);

  args = {.M = O,
          .N = I,
          .K = R,
          .lda = O,
          .ldb = I,
          .ldc = I,
          .transpose_a = true,
          .dtype = DType::bf16,
          .c_dtype = DType::f32};
  args.a = y.raw(), args.b = x.raw(), args.c = dw.raw();
  report(std::string(layer.name) + " dW alone", 0, args);
  args.a_sum_M = db.raw();
  report(std::string(layer.name) + " dW, sums beside it", 12, args);
  cuda::set_matmul_fused_sums(true);
  report(std::string(layer.name) + " dW, sums in it", 0, args);
  cuda::set_matmul_fused_sums(false);
}

void loss_products() {
  const Tensor x = operand(kChunk * C), w = operand(V * C), logits = operand(kChunk * V), dx = operand(kChunk * C);
  const Tensor dw = operand(V * C, DType::f32), losses = operand(kChunk, DType::f32);
  const Tensor targets = zeros({kChunk}, DType::i32, stream());
  MatmulArgs args{.M = kChunk,
                  .N = V,
                  .K = C,
                  .lda = C,
                  .ldb = C,
                  .ldc = V,
                  .transpose_b = true,
                  .dtype = DType::bf16,
                  .c_dtype = DType::bf16};
  args.a = x.raw(), args.b = w.raw(), args.c = logits.raw();
  report("head, a chunk of logits", 8, args);
  args = {.M = kChunk, .N = C, .K = V, .lda = V, .ldb = C, .ldc = C, .dtype = DType::bf16, .c_dtype = DType::bf16};
  args.a = logits.raw(), args.b = w.raw(), args.c = dx.raw();
  report("head dx", 8, args);
  args = {.M = V,
          .N = C,
          .K = kChunk,
          .lda = V,
          .ldb = C,
          .ldc = C,
          .transpose_a = true,
          .beta = 1,
          .dtype = DType::bf16,
          .c_dtype = DType::f32};
  args.a = logits.raw(), args.b = x.raw(), args.c = dw.raw();
  report("head dW", 8, args);
  const double seconds = median_seconds([&] {
    launch(stream(), CrossEntropyArgs{.logits_RV = logits.raw(),
                                      .targets_R = targets.data<std::int32_t>(),
                                      .losses_R = losses.raw(),
                                      .dlogits_RV = logits.raw(),
                                      .R = kChunk,
                                      .V = V,
                                      .ld = V,
                                      .dtype = DType::bf16,
                                      .dlogits_dtype = DType::bf16});
  });
  std::printf("cross entropy of a chunk, 8 a step: %.3f ms, %.2f TB/s\n", seconds * 1e3,
              2.0 * 2 * static_cast<double>(kChunk * V) / seconds * 1e-12);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) filter = argv[1];
  if (cuda_device_count() == 0) {
    std::puts("no CUDA device");
    return 1;
  }
  std::printf("%s\n| product | a step | ms | TF/s | timed: ms | TF/s |\n|---|---|---|---|---|---|\n",
              device_info({Device::Kind::cuda, 0}).name.c_str());
  layer_products({"qkv", C, Q, Epilogue::none, Epilogue::none, false});
  layer_products({"out", C, C, Epilogue::none, Epilogue::none, true});
  layer_products({"up", C, F, Epilogue::gelu, Epilogue::none, false});
  layer_products({"down", F, C, Epilogue::none, Epilogue::gelu_backward, true});
  loss_products();
  std::printf("all products of a step: %.1f ms, timed %.1f ms\n", step_seconds[0] * 1e3, step_seconds[1] * 1e3);
  return 0;
}
