#include "support/op_case.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "support/compare.h"

namespace sieve::test {
namespace {

constexpr std::uint64_t kSeed = 20240607;

struct Drawn {
  OpSample sample;
  std::vector<Tensor> inputs;  // of the sample, perhaps as views
  std::vector<bool> wants;
};

Drawn draw_sample(const OpCase& op, int index, OpReport& report) {
  std::uint64_t stream = static_cast<std::uint64_t>(index);
  for (char c : op.name) stream = stream_of(stream, c);  // std::hash differs between libraries
  Draw draw(kSeed, stream);
  Drawn out{.sample = op.draw(draw)};
  const bool views = draw.chance(0.35);
  bool empty_input = false, one = false, any = false;
  for (const Tensor& t : out.sample.inputs) {
    out.inputs.push_back(t.defined() && views ? as_view(t, draw) : t);
    out.wants.push_back(t.defined() && draw.chance(0.75));
    any = any || out.wants.back();
    if (!t.defined()) continue;
    empty_input = empty_input || t.numel() == 0;
    one = one || std::find(t.shape().begin(), t.shape().end(), 1) != t.shape().end();
  }
  if (!any) out.wants[0] = true;
  ++report.samples;
  report.empty += empty_input;
  report.ones += one;
  report.views += std::any_of(out.inputs.begin(), out.inputs.end(),
                              [](const Tensor& t) { return t.defined() && !t.is_contiguous(); });
  return out;
}

struct Outcome {
  Tensor output;
  std::vector<Tensor> grads;
};

// Output and gradients of f in `dtype`, computed on the device of `stream`, given on the CPU. The seed is rounded to
// the output's dtype.
Outcome evaluate(const Build& f, const Drawn& drawn, DType dtype, const Tensor& seed, const Stream& stream = {}) {
  std::vector<Variable> in;
  for (std::size_t i = 0; i < drawn.inputs.size(); ++i) {
    const Tensor& t = drawn.inputs[i];
    const Tensor value = t.defined() ? t.to(dtype).to(stream) : Tensor();
    in.push_back(!t.defined() ? Variable() : drawn.wants[i] ? Variable::leaf(value) : Variable(value));
  }
  Outcome out;
  const Variable y = f(in);
  out.output = y.value().to(Stream{});
  backward(y, seed.to(stream));
  for (std::size_t i = 0; i < in.size(); ++i) {
    Tensor g = drawn.wants[i] ? in[i].grad() : Tensor();
    if (g.defined()) g = g.to(Stream{});
    if (drawn.wants[i] && !g.defined()) g = zeros(in[i].shape(), DType::f64);
    out.grads.push_back(g);
  }
  return out;
}

double error_of(const Tensor& got, const Tensor& reference) {
  return max_difference(got, reference) / std::max(1.0, max_abs(reference));
}

}  // namespace

Tensor as_view(const Tensor& t, Draw& draw) {
  if (t.rank() == 0) return t;
  const int axis = static_cast<int>(draw.integer(0, t.rank() - 1));
  Tensor view;
  if (t.rank() >= 2 && draw.chance(0.4)) {  // two axes swapped in memory
    const int other = static_cast<int>(draw.integer(0, t.rank() - 1));
    Shape stored = t.shape();
    stored.set(axis, t.size(other));
    stored.set(other, t.size(axis));
    view = empty(stored, t.dtype()).transpose(axis, other);
  } else {  // a part of something longer along one axis
    Shape padded = t.shape();
    const std::int64_t before = draw.integer(0, 2);
    padded.set(axis, before + t.size(axis) + draw.integer(1, 3));
    view = full(padded, std::numeric_limits<double>::quiet_NaN(), t.dtype()).slice(axis, before, before + t.size(axis));
  }
  view.copy_from(t);
  return view;
}

OpReport check_case_gradients(const OpCase& op, int samples) {
  OpReport report;
  for (int i = 0; i < samples; ++i) {
    const Drawn drawn = draw_sample(op, i, report);
    Shape shape;
    {
      const NoGrad no_grad;
      std::vector<Variable> in;
      for (const Tensor& t : drawn.inputs) in.push_back(Variable(t));
      shape = drawn.sample.build(in).shape();
    }
    Draw seeds(kSeed + 1, static_cast<std::uint64_t>(i));
    const GradientError error =
        check_gradients(drawn.sample.build, drawn.inputs, drawn.wants, seeds.normal(shape), op.step);
    if (error.worst >= report.worst) {
      report.worst = error.worst;
      report.where = cat(op.name, " sample ", i, " (", drawn.sample.text, "): ", error.where);
    }
  }
  return report;
}

OpReport check_case_precision(const OpCase& op, DType dtype, int samples) {
  OpReport report;
  for (int i = 0; i < samples; ++i) {
    Drawn drawn = draw_sample(op, i, report);
    for (Tensor& t : drawn.inputs)
      if (t.defined()) t.copy_from(t.to(dtype).to(DType::f64));
    std::vector<Variable> probe;
    for (const Tensor& t : drawn.inputs) probe.push_back(t.defined() ? Variable(t.to(dtype)) : Variable());
    const Tensor shape_of = drawn.sample.build(probe).value();
    Draw seeds(kSeed + 2, static_cast<std::uint64_t>(i));
    const Tensor seed = rounded(seeds.normal(shape_of.shape()), shape_of.dtype());
    const Outcome reference = evaluate(drawn.sample.build, drawn, DType::f64, seed);
    const Outcome ours = evaluate(drawn.sample.build, drawn, dtype, seed);
    Outcome naive;
    if (drawn.sample.naive) {
      naive = evaluate(drawn.sample.naive, drawn, dtype, seed);
    } else {
      naive.output = rounded(reference.output, dtype);
      for (const Tensor& g : reference.grads) naive.grads.push_back(g.defined() ? rounded(g, dtype) : g);
    }
    const auto compare = [&](const Tensor& got, const Tensor& simple, const Tensor& wanted, const std::string& what) {
      report.yardstick = std::max(report.yardstick, error_of(simple, wanted));
      const double e = error_of(got, wanted);
      if (e < report.worst) return;
      report.worst = e;
      report.where = cat(op.name, " ", name_of(dtype), " sample ", i, " (", drawn.sample.text, "): ", what, " ",
                         worst_of(got, wanted));
    };
    compare(ours.output, naive.output, reference.output, "output");
    for (std::size_t k = 0; k < reference.grads.size(); ++k)
      if (reference.grads[k].defined())
        compare(ours.grads[k], naive.grads[k], reference.grads[k], cat("gradient of input ", k));
  }
  return report;
}

OpReport check_case_on_device(const OpCase& op, const Stream& stream, int samples) {
  OpReport report;
  for (int i = 0; i < samples; ++i) {
    const Drawn drawn = draw_sample(op, i, report);
    std::vector<Variable> probe;
    for (const Tensor& t : drawn.inputs) probe.push_back(t.defined() ? Variable(t.to(DType::f32)) : Variable());
    Draw seeds(kSeed + 3, static_cast<std::uint64_t>(i));
    const Tensor seed = seeds.normal(drawn.sample.build(probe).shape()).to(DType::f32);
    const Outcome cpu = evaluate(drawn.sample.build, drawn, DType::f32, seed);
    const Outcome device = evaluate(drawn.sample.build, drawn, DType::f32, seed, stream);
    const auto compare = [&](const Tensor& got, const Tensor& wanted, const std::string& what) {
      const double e = error_of(got, wanted);
      if (e < report.worst) return;
      report.worst = e;
      report.where = cat(op.name, " sample ", i, " (", drawn.sample.text, "): ", what, " ", worst_of(got, wanted));
    };
    compare(device.output, cpu.output, "output");
    for (std::size_t k = 0; k < cpu.grads.size(); ++k)
      if (cpu.grads[k].defined()) compare(device.grads[k], cpu.grads[k], cat("gradient of input ", k));
  }
  return report;
}

}  // namespace sieve::test
