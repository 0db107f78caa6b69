// Times the memory-bound CUDA kernels on the shapes of a GPT-2 step (65,536 rows, 124M parameters) and prints a
// Markdown table: milliseconds (median of 30), TB/s of the bytes that must be read and written once, and that rate as a
// part of a device-to-device copy's in the same run. Two sets of buffers take turns, each larger than the L2 cache.
//   bench_gpu_kernels [part of a name]
#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "core/build.h"
#include "tensor/kernels/kernels.h"
#include "tensor/runtime.h"
#include "tensor/tensor.h"

namespace {

using namespace sieve;

constexpr std::int64_t kRows = 65536, kVocabulary = 50304, kHeads = 12, kBatch = 64;
constexpr std::int64_t kParameters = 124'475'904;
constexpr int kRuns = 30;

std::string filter;
double copy_rate = 0;  // bytes per second

Stream stream() { return main_stream({Device::Kind::cuda, 0}); }

double median_seconds(const std::function<void(int)>& kernel) {
  for (int run = 0; run < 3; ++run) kernel(run);
  std::vector<Event> begin, end;
  for (int run = 0; run < kRuns; ++run) {
    begin.emplace_back(stream().device);
    end.emplace_back(stream().device);
  }
  for (int run = 0; run < kRuns; ++run) {  // all are queued before the first is waited for
    begin[static_cast<std::size_t>(run)].record(stream());
    kernel(run);
    end[static_cast<std::size_t>(run)].record(stream());
  }
  synchronize(stream());
  std::vector<double> seconds;
  for (std::size_t run = 0; run < begin.size(); ++run) seconds.push_back(end[run].seconds_since(begin[run]));
  std::nth_element(seconds.begin(), seconds.begin() + kRuns / 2, seconds.end());
  return seconds[kRuns / 2];
}

void report(const std::string& name, double bytes, const std::function<void(int)>& kernel) {
  if (name.find(filter) == std::string::npos && copy_rate > 0) return;
  const double seconds = median_seconds(kernel), rate = bytes / seconds;
  if (copy_rate == 0) copy_rate = rate;
  std::printf("| %-42s | %8.4f | %6.3f | %5.0f %% |\n", name.c_str(), seconds * 1e3, rate * 1e-12,
              100 * rate / copy_rate);
  std::fflush(stdout);
}

// Two buffers of random numbers that take turns.
class Pair {
 public:
  Pair(const Shape& shape, DType dtype) {
    static std::uint64_t philox_stream = 0;
    for (Tensor& t : tensors_) {
      t = empty(shape, dtype, stream());
      launch(stream(), RandomArgs{.dst = t.raw(),
                                  .n = t.numel(),
                                  .kind = Random::uniform,
                                  .a = 0.1,
                                  .seed = 7,
                                  .philox_stream = philox_stream++,
                                  .dtype = dtype});
    }
  }
  void* operator()(int run) const { return tensors_[run % 2].raw(); }
  template <class T>
  T* as(int run) const {
    return static_cast<T*>((*this)(run));
  }

 private:
  Tensor tensors_[2];
};

struct Sizes {
  DType t;
  std::int64_t D;
  std::string label;
  double s, row_bytes;  // of an element, of (R, D)

  Sizes(DType dtype, std::int64_t width)
      : t(dtype), D(width), label(" " + std::string(name_of(dtype)) + " " + std::to_string(width)) {
    s = static_cast<double>(size_of(t));
    row_bytes = s * static_cast<double>(kRows * D);
  }
};

void norms(const Sizes& z) {
  const std::int64_t R = kRows, D = z.D;
  const DType c = compute_dtype(z.t);
  const Pair x({R, D}, z.t), dy({R, D}, z.t), y({R, D}, z.t), add({R, D}, z.t), w({D}, z.t), b({D}, z.t), mean({R}, c),
      rstd({R}, c), dw({D}, c), db({D}, c);
  report("layer_norm" + z.label, 2 * z.row_bytes, [&](int i) {
    launch(stream(), LayerNormArgs{.x_RD = x(i),
                                   .w_D = w(i),
                                   .b_D = b(i),
                                   .y_RD = y(i),
                                   .mean_R = mean(i),
                                   .rstd_R = rstd(i),
                                   .R = R,
                                   .D = D,
                                   .eps = 1e-5,
                                   .dtype = z.t});
  });
  report("rms_norm" + z.label, 2 * z.row_bytes, [&](int i) {
    launch(stream(),
           RmsNormArgs{
               .x_RD = x(i), .w_D = w(i), .y_RD = y(i), .rstd_R = rstd(i), .R = R, .D = D, .eps = 1e-5, .dtype = z.t});
  });
  for (bool residual : {false, true}) {
    report(std::string("layer_norm backward") + (residual ? " + residual" : "") + z.label,
           (residual ? 4 : 3) * z.row_bytes, [&](int i) {
             launch(stream(), LayerNormBackwardArgs{.dy_RD = dy(i),
                                                    .x_RD = x(i),
                                                    .w_D = w(i),
                                                    .mean_R = mean(i),
                                                    .rstd_R = rstd(i),
                                                    .dx_RD = y(i),
                                                    .dw_D = dw(i),
                                                    .db_D = db(i),
                                                    .R = R,
                                                    .D = D,
                                                    .dtype = z.t,
                                                    .dx_add_RD = residual ? add(i) : nullptr});
           });
  }
  report("rms_norm backward" + z.label, 3 * z.row_bytes, [&](int i) {
    launch(stream(), RmsNormBackwardArgs{.dy_RD = dy(i),
                                         .x_RD = x(i),
                                         .w_D = w(i),
                                         .rstd_R = rstd(i),
                                         .dx_RD = y(i),
                                         .dw_D = dw(i),
                                         .R = R,
                                         .D = D,
                                         .dtype = z.t});
  });
}

void elements(const Sizes& z) {
  const std::int64_t R = kRows, D = z.D;
  const Pair a({R, D}, z.t), b({R, D}, z.t), out({R, D}, z.t), bias({D}, z.t), sums({D}, compute_dtype(z.t));
  for (bool broadcast : {false, true}) {
    report(std::string("add") + (broadcast ? " a row" : "") + z.label, (broadcast ? 2 : 3) * z.row_bytes, [&](int i) {
      launch(stream(), BinaryArgs{.a = a(i),
                                  .b = broadcast ? bias(i) : b(i),
                                  .out = out(i),
                                  .rank = 2,
                                  .extents = {R, D},
                                  .a_strides = {D, 1},
                                  .b_strides = {broadcast ? 0 : D, 1},
                                  .dtype = z.t});
    });
  }
  report("column_sum" + z.label, z.row_bytes, [&](int i) {
    launch(stream(), ColumnSumArgs{.x_RN = a(i), .out_N = sums(i), .R = R, .N = D, .ld = D, .dtype = z.t});
  });
  const Pair positions({R / kBatch, D}, z.t);
  report("reduce over the batch" + z.label, z.row_bytes * (1 + 1.0 / kBatch), [&](int i) {
    launch(stream(), ReduceArgs{.x = a(i),
                                .out = positions(i),
                                .rank = 3,
                                .extents = {kBatch, R / kBatch, D},
                                .x_strides = {R / kBatch * D, D, 1},
                                .reduce = {true},
                                .dtype = z.t,
                                .out_dtype = z.t});
  });
  report("copy transposed" + z.label, 2 * z.row_bytes, [&](int i) {
    launch(stream(), CopyArgs{.src = a(i),
                              .dst = out(i),
                              .rank = 2,
                              .extents = {D, R},
                              .src_strides = {1, D},
                              .dst_strides = {R, 1},
                              .src_dtype = z.t,
                              .dst_dtype = z.t});
  });
}

void activations(const Sizes& z) {
  const std::int64_t n = 4 * kRows * z.D;
  const double bytes = 4 * z.row_bytes;
  const Pair x({n}, z.t), dy({n}, z.t), y({n}, z.t);
  for (bool tanh_form : {true, false}) {
    const std::string form = tanh_form ? " tanh" : " erf";
    report("gelu" + form + z.label, 2 * bytes, [&](int i) {
      launch(stream(), GeluArgs{.x = x(i), .y = y(i), .n = n, .tanh_form = tanh_form, .dtype = z.t});
    });
    report("gelu backward" + form + z.label, 3 * bytes, [&](int i) {
      launch(stream(),
             GeluBackwardArgs{.dy = dy(i), .x = x(i), .dx = y(i), .n = n, .tanh_form = tanh_form, .dtype = z.t});
    });
  }
  const std::int64_t F = 2 * z.D;
  report("swiglu" + z.label, 1.5 * bytes,
         [&](int i) { launch(stream(), SwigluArgs{.x_R2F = x(i), .y_RF = y(i), .R = kRows, .F = F, .dtype = z.t}); });
  report("swiglu backward" + z.label, 2.5 * bytes, [&](int i) {
    launch(stream(),
           SwigluBackwardArgs{.dy_RF = dy(i), .x_R2F = x(i), .dx_R2F = y(i), .R = kRows, .F = F, .dtype = z.t});
  });
}

void model(const Sizes& z) {
  const std::int64_t R = kRows, C = z.D, V = kVocabulary;
  const DType c = compute_dtype(z.t);
  std::vector<std::int32_t> host;  // every sixteenth is the same: frequent tokens are
  for (std::int64_t r = 0; r < R; ++r) host.push_back(r % 16 == 0 ? 11 : static_cast<std::int32_t>(r * r * 31 % V));
  const Tensor ids = from_values<std::int32_t>(host, {R}).to(stream());
  const auto* id = ids.data<std::int32_t>();
  const Pair w({V, C}, z.t), x({R, C}, z.t), y({R, C}, z.t), dw({V, C}, c);
  report("embedding" + z.label, 2 * z.row_bytes, [&](int i) {
    launch(stream(), EmbeddingArgs{.w_VC = w(i), .ids_R = id, .y_RC = y(i), .R = R, .V = V, .C = C, .dtype = z.t});
  });
  const double table = static_cast<double>(V * C) * static_cast<double>(size_of(c));
  report("embedding backward" + z.label, z.row_bytes + table, [&](int i) {
    launch(stream(),
           EmbeddingBackwardArgs{.dy_RC = x(i), .ids_R = id, .dw_VC = dw(i), .R = R, .V = V, .C = C, .dtype = z.t});
  });
  const Pair heads({kHeads, C}, c), scores({kHeads, R}, c), dheads({kHeads, C}, c);
  const double score_bytes = static_cast<double>(kHeads * R) * static_cast<double>(size_of(c));
  report("score, 12 heads" + z.label, z.row_bytes + score_bytes, [&](int i) {
    launch(stream(), ScoreArgs{.x_BTC = x(i),
                               .w_HC = heads(i),
                               .s_BHT = scores(i),
                               .B = kBatch,
                               .T = R / kBatch,
                               .C = C,
                               .H = kHeads,
                               .dtype = z.t});
  });
  report("score backward, 12 heads" + z.label, 2 * z.row_bytes + score_bytes, [&](int i) {
    launch(stream(), ScoreBackwardArgs{.ds_BHT = scores(i),
                                       .x_BTC = x(i),
                                       .w_HC = heads(i),
                                       .dx_BTC = y(i),
                                       .dw_HC = dheads(i),
                                       .B = kBatch,
                                       .T = R / kBatch,
                                       .C = C,
                                       .H = kHeads,
                                       .dtype = z.t});
  });
}

void flat() {
  const std::int64_t n = kParameters, segments = 148;
  const double count = static_cast<double>(n);
  const Pair p({n}, DType::f32), m({n}, DType::f32), v({n}, DType::f32), g({n}, DType::f32), copy({n}, DType::bf16),
      sum({1}, DType::f64), factor({1}, DType::f32);
  report("device-to-device copy f32", 8 * count, [&](int i) {
    launch(stream(),
           CopyArgs{.src = p(i), .dst = g(i), .rank = 1, .extents = {n}, .src_strides = {1}, .dst_strides = {1}});
  });
  report("fill f32", 4 * count, [&](int i) { launch(stream(), FillArgs{.dst = g(i), .n = n, .value = 0.001}); });
  report("random normal f32", 4 * count, [&](int i) { launch(stream(), RandomArgs{.dst = g(i), .n = n, .b = 0.02}); });
  report("copy f32 to bf16", 6 * count, [&](int i) {
    launch(stream(), CopyArgs{.src = p(i),
                              .dst = copy(i),
                              .rank = 1,
                              .extents = {n},
                              .src_strides = {1},
                              .dst_strides = {1},
                              .dst_dtype = DType::bf16});
  });
  report("axpby f32 += f32", 12 * count,
         [&](int i) { launch(stream(), AxpbyArgs{.x = p(i), .y = g(i), .n = n, .alpha = 1e-3, .beta = 1}); });
  report("axpby f32 += bf16, factor in memory", 10 * count, [&](int i) {
    launch(stream(), AxpbyArgs{.x = copy(i),
                               .y = g(i),
                               .n = n,
                               .alpha = 1e-3,
                               .beta = 1,
                               .x_dtype = DType::bf16,
                               .alpha_factor = factor(i)});
  });
  report("sum of squares f32", 4 * count,
         [&](int i) { launch(stream(), SumArgs{.x = g(i), .sum = sum.as<double>(i), .n = n, .square = true}); });
  std::vector<std::int64_t> ends;
  for (std::int64_t s = 1; s <= segments; ++s) ends.push_back(n / segments * s);
  ends.back() = n;
  const Tensor end = from_values<std::int64_t>(ends, {segments}).to(stream()),
               decay = full({segments}, 1, DType::f32).to(stream());
  for (bool segmented : {false, true}) {
    report(std::string("adamw + bf16 copy") + (segmented ? ", 148 segments" : ""), 30 * count, [&](int i) {
      launch(stream(), AdamWArgs{.p = p.as<float>(i),
                                 .m = m.as<float>(i),
                                 .v = v.as<float>(i),
                                 .g = g.as<float>(i),
                                 .copy_bf16 = copy.as<bf16>(i),
                                 .n = n,
                                 .lr = 1e-4,
                                 .weight_decay = 0.1,
                                 .segment_end = segmented ? end.data<std::int64_t>() : nullptr,
                                 .segment_decay = segmented ? decay.data<float>() : nullptr,
                                 .segments = segmented ? segments : 0});
    });
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) filter = argv[1];
  if (cuda_device_count() == 0) {
    std::puts("no CUDA device");
    return 1;
  }
  const DeviceInfo info = device_info(stream().device);
  std::printf("%s, driver %s, sieve %s\n\n", info.name.c_str(), info.driver.c_str(), build::version);
  std::printf("| %-42s | %8s | %6s | %7s |\n|---|---|---|---|\n", "kernel", "ms", "TB/s", "of copy");
  flat();  // the copy comes first: the others are measured against it
  for (std::int64_t D : {768, 1024}) {
    for (DType t : {DType::bf16, DType::f32}) {
      const Sizes sizes(t, D);
      norms(sizes);
      elements(sizes);
      activations(sizes);
      model(sizes);
    }
  }
  return 0;
}
