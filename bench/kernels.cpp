// Times the CPU kernels on the shapes of a GPT-2 124M step (2,048 rows) and prints a table: GFLOP/s for products, GB/s
// (bytes that must be read and written once) for the rest. Best of several runs: other work on the machine only slows
// things down.
//   bench_kernels [threads] [part of a name]
#include "tensor/kernels/kernels.h"

#include <time.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <string>

#include "core/parallel_for.h"
#include "tensor/tensor.h"

namespace {

using namespace sieve;

// One thread is timed by the CPU time it used, which other programs disturb less than the clock on the wall.
double now() {
  timespec t{};
  clock_gettime(num_threads() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

std::string filter;

double best_seconds(const std::function<void()>& f) {
  double best = std::numeric_limits<double>::infinity(), total = 0;
  f();  // plans, caches, first touch
  for (int run = 0; run < 50 && (run < 3 || total < 0.4); ++run) {
    const double start = now();
    f();
    const double seconds = now() - start;
    best = std::min(best, seconds);
    total += seconds;
  }
  return best;
}

void report(const std::string& name, double amount, const char* unit, const std::function<void()>& f) {
  if (name.find(filter) == std::string::npos) return;
  const double seconds = best_seconds(f);
  std::printf("%-34s %10.3f ms %9.1f %s\n", name.c_str(), seconds * 1e3, amount / seconds / 1e9, unit);
  std::fflush(stdout);
}

Tensor random(const Shape& shape, DType dtype) {
  static std::uint64_t stream = 0;
  return random_normal(shape, 0, 1, 7, stream++, dtype);
}

// Forward y = x W^T + b, dX = dY W, dW = dY^T X of a layer with I inputs and O outputs.
void layer(const std::string& name, std::int64_t rows, std::int64_t I, std::int64_t O, DType t) {
  if ((name + " forward dX dW").find(filter) == std::string::npos && name.find(filter) == std::string::npos) return;
  const Tensor x = random({rows, I}, t), w = random({O, I}, t), b = random({O}, t), y = random({rows, O}, t);
  const Tensor dw = zeros({O, I}, compute_dtype(t)), dx = zeros({rows, I}, t), out = zeros({rows, O}, t);
  const double flops = 2.0 * static_cast<double>(rows) * static_cast<double>(I) * static_cast<double>(O);
  const std::string label = name + " " + std::string(name_of(t));
  report(label + " forward", flops, "GFLOP/s", [&] {
    launch({}, MatmulArgs{.a = x.raw(),
                          .b = w.raw(),
                          .c = out.raw(),
                          .bias_N = b.raw(),
                          .M = rows,
                          .N = O,
                          .K = I,
                          .lda = I,
                          .ldb = I,
                          .ldc = O,
                          .transpose_b = true,
                          .dtype = t,
                          .c_dtype = t});
  });
  report(label + " dX", flops, "GFLOP/s", [&] {
    launch({}, MatmulArgs{.a = y.raw(),
                          .b = w.raw(),
                          .c = dx.raw(),
                          .M = rows,
                          .N = I,
                          .K = O,
                          .lda = O,
                          .ldb = I,
                          .ldc = I,
                          .dtype = t,
                          .c_dtype = t});
  });
  report(label + " dW", flops, "GFLOP/s", [&] {
    launch({}, MatmulArgs{.a = y.raw(),
                          .b = x.raw(),
                          .c = dw.raw(),
                          .M = O,
                          .N = I,
                          .K = rows,
                          .lda = O,
                          .ldb = I,
                          .ldc = I,
                          .transpose_a = true,
                          .dtype = t,
                          .c_dtype = compute_dtype(t)});
  });
}

void products(DType t) {
  layer("qkv 768->2304", 2048, 768, 2304, t);
  layer("proj 768->768", 2048, 768, 768, t);
  layer("fc 768->3072", 2048, 768, 3072, t);
  layer("fcproj 3072->768", 2048, 3072, 768, t);
  layer("head 768->50304 x512", 512, 768, 50304, t);
  layer("decode qkv x1", 1, 768, 2304, t);
  layer("decode head x1", 1, 768, 50304, t);
}

void rows_and_elements(DType t) {
  const std::int64_t R = 2048, C = 768, F = 3072, V = 50304;
  const DType c = compute_dtype(t);
  const std::string label = " " + std::string(name_of(t));
  const double s = static_cast<double>(size_of(t)), RC = static_cast<double>(R * C), RF = static_cast<double>(R * F);
  const Tensor x = random({R, C}, t), dy = random({R, C}, t), y = zeros({R, C}, t), w = random({C}, t),
               b = random({C}, t);
  const Tensor mean = zeros({R}, c), rstd = full({R}, 1, c), dw = zeros({C}, c), db = zeros({C}, c);
  report("layer_norm" + label, 2 * s * RC, "GB/s", [&] {
    launch({}, LayerNormArgs{.x_RD = x.raw(),
                             .w_D = w.raw(),
                             .b_D = b.raw(),
                             .y_RD = y.raw(),
                             .mean_R = mean.raw(),
                             .rstd_R = rstd.raw(),
                             .R = R,
                             .D = C,
                             .eps = 1e-5,
                             .dtype = t});
  });
  report("layer_norm backward" + label, 3 * s * RC, "GB/s", [&] {
    launch({}, LayerNormBackwardArgs{.dy_RD = dy.raw(),
                                     .x_RD = x.raw(),
                                     .w_D = w.raw(),
                                     .mean_R = mean.raw(),
                                     .rstd_R = rstd.raw(),
                                     .dx_RD = y.raw(),
                                     .dw_D = dw.raw(),
                                     .db_D = db.raw(),
                                     .R = R,
                                     .D = C,
                                     .dtype = t});
  });
  report("rms_norm" + label, 2 * s * RC, "GB/s", [&] {
    launch({}, RmsNormArgs{.x_RD = x.raw(),
                           .w_D = w.raw(),
                           .y_RD = y.raw(),
                           .rstd_R = rstd.raw(),
                           .R = R,
                           .D = C,
                           .eps = 1e-5,
                           .dtype = t});
  });
  const Tensor h = random({R, F}, t), dh = random({R, F}, t), g = zeros({R, F}, t), bias = zeros({F}, c);
  for (bool tanh_form : {true, false}) {
    const std::string form = tanh_form ? " tanh" : " erf";
    report("gelu" + form + label, 2 * s * RF, "GB/s",
           [&] { launch({}, GeluArgs{.x = h.raw(), .y = g.raw(), .n = R * F, .tanh_form = tanh_form, .dtype = t}); });
    report("gelu backward" + form + label, 3 * s * RF, "GB/s", [&] {
      launch({}, GeluBackwardArgs{
                     .dy = dh.raw(), .x = h.raw(), .dx = g.raw(), .n = R * F, .tanh_form = tanh_form, .dtype = t});
    });
  }
  report("swiglu" + label, 1.5 * s * RF, "GB/s",
         [&] { launch({}, SwigluArgs{.x_R2F = h.raw(), .y_RF = g.raw(), .R = R, .F = F / 2, .dtype = t}); });
  report("swiglu backward" + label, 2.5 * s * RF, "GB/s", [&] {
    launch({},
           SwigluBackwardArgs{.dy_RF = dh.raw(), .x_R2F = h.raw(), .dx_R2F = g.raw(), .R = R, .F = F / 2, .dtype = t});
  });
  const BinaryArgs sum{.op = Binary::add,
                       .a = h.raw(),
                       .b = dh.raw(),
                       .out = g.raw(),
                       .rank = 2,
                       .extents = {R, F},
                       .a_strides = {F, 1},
                       .b_strides = {F, 1},
                       .dtype = t};
  report("add" + label, 3 * s * RF, "GB/s", [&] { launch({}, sum); });
  report("scale in place" + label, 2 * s * RF, "GB/s", [&] {
    launch({}, AxpbyArgs{.x = g.raw(), .y = g.raw(), .n = R * F, .alpha = 1.0, .x_dtype = t, .y_dtype = t});
  });
  report("column sum" + label, s * RF, "GB/s", [&] {
    launch({}, ColumnSumArgs{.x_RN = dh.raw(), .out_N = bias.raw(), .R = R, .N = F, .ld = F, .dtype = t});
  });
  double total = 0;
  report("sum of squares" + label, s * RF, "GB/s",
         [&] { launch({}, SumArgs{.x = h.raw(), .sum = &total, .n = R * F, .square = true, .dtype = t}); });
  Tensor transposed = zeros({F, R}, t);
  report("copy transposed" + label, 2 * s * RF, "GB/s", [&] { transposed.copy_from(h.transpose(0, 1)); });
  report("copy f32 to bf16 (once)" + label, 6 * RF, "GB/s",
         [&, from = h.to(DType::f32), to = h.to(DType::bf16)] { Tensor(to).copy_from(from); });
  const Tensor table = random({V, C}, t), dtable = zeros({V, C}, c), ids = empty({R}, DType::i32);
  for (std::int64_t r = 0; r < R; ++r) ids.data<std::int32_t>()[r] = static_cast<std::int32_t>(r * r * 31 % V);
  report("embedding" + label, 2 * s * RC, "GB/s", [&] {
    launch({}, EmbeddingArgs{.w_VC = table.raw(),
                             .ids_R = ids.data<std::int32_t>(),
                             .y_RC = y.raw(),
                             .R = R,
                             .V = V,
                             .C = C,
                             .dtype = t});
  });
  report("embedding backward" + label, (s + 8) * RC, "GB/s", [&] {
    launch({}, EmbeddingBackwardArgs{.dy_RC = dy.raw(),
                                     .ids_R = ids.data<std::int32_t>(),
                                     .dw_VC = dtable.raw(),
                                     .R = R,
                                     .V = V,
                                     .C = C,
                                     .accumulate = true,
                                     .dtype = t});
  });
  const std::int64_t N = 512;
  const Tensor logits = random({N, V}, t), dlogits = zeros({N, V}, t), losses = zeros({N}, c);
  report("cross_entropy with gradient" + label, 2 * s * static_cast<double>(N * V), "GB/s", [&] {
    launch({}, CrossEntropyArgs{.logits_RV = logits.raw(),
                                .targets_R = ids.data<std::int32_t>(),
                                .losses_R = losses.raw(),
                                .dlogits_RV = dlogits.raw(),
                                .R = N,
                                .V = V,
                                .ld = V,
                                .dtype = t,
                                .dlogits_dtype = t});
  });
  const Tensor heads = random({12, C}, t), scores = zeros({1, 12, R}, c), dheads = zeros({12, C}, c);
  report("score 12 heads" + label, s * RC, "GB/s", [&] {
    launch(
        {},
        ScoreArgs{
            .x_BTC = x.raw(), .w_HC = heads.raw(), .s_BHT = scores.raw(), .B = 1, .T = R, .C = C, .H = 12, .dtype = t});
  });
  report("score backward 12 heads" + label, 2 * s * RC, "GB/s", [&] {
    launch({}, ScoreBackwardArgs{.ds_BHT = scores.raw(),
                                 .x_BTC = x.raw(),
                                 .w_HC = heads.raw(),
                                 .dx_BTC = y.raw(),
                                 .dw_HC = dheads.raw(),
                                 .B = 1,
                                 .T = R,
                                 .C = C,
                                 .H = 12,
                                 .dtype = t});
  });
}

void optimizer() {
  const std::int64_t n = 1 << 24;
  const Tensor p = random({n}, DType::f32), m = zeros({n}, DType::f32), v = zeros({n}, DType::f32),
               g = random({n}, DType::f32);
  const Tensor copy = zeros({n}, DType::bf16);
  report("adamw with bf16 copy", 30.0 * static_cast<double>(n), "GB/s", [&] {
    launch({}, AdamWArgs{.p = p.data<float>(),
                         .m = m.data<float>(),
                         .v = v.data<float>(),
                         .g = g.data<float>(),
                         .copy_bf16 = copy.data<bf16>(),
                         .n = n,
                         .lr = 1e-4,
                         .weight_decay = 0.1});
  });
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) set_num_threads(std::max(1, std::atoi(argv[1])));
  if (argc > 2) filter = argv[2];
  std::printf("%d threads, -march=%s\n", num_threads(), build::march);
  for (DType t : {DType::f32, DType::bf16}) {
    products(t);
    rows_and_elements(t);
  }
  optimizer();
  return 0;
}
