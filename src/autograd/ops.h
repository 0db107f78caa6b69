// Every differentiable op that is not attention. Letters: B batch, T time, C channels, V vocabulary, I/O features
// in/out, N rows. Values may be fp32, bf16 or fp64; a bf16 op computes in fp32 and rounds its output once. Gradients of
// leaves are fp32 (fp64 in fp64 graphs). Each op lives in ops/*.cpp with its backward beside it; docs/adding_an_op.md
// walks through one.
#pragma once

#include <cstdint>
#include <string_view>

#include "autograd/variable.h"

namespace sieve {

// Names of the ops below: record() takes no other, and a test demands an op_case for each (autograd/registry.h).
inline constexpr std::string_view kAutogradOps[] = {
    "add",      "mul",        "scale",    "sum",           "cast",
    "reshape",  "slice",      "linear",   "embedding",     "layer_norm",
    "rms_norm", "gelu",       "swiglu",   "cross_entropy", "linear_cross_entropy",
    "score",    "linear_add", "gelu_mlp",
};

enum class Gelu { tanh, erf };

Variable add(const Variable& a, const Variable& b);  // broadcasts
Variable mul(const Variable& a, const Variable& b);  // broadcasts
Variable scale(const Variable& x, double factor);
Variable sum(const Variable& x);  // (): fp32 (fp64 for fp64), fixed summation tree
Variable cast(const Variable& x, DType dtype);
Variable reshape(const Variable& x, const Shape& shape);
Variable slice(const Variable& x, int axis, std::int64_t begin, std::int64_t end);

// y = x W^T + b.   x (..., I), w (O, I), b (O) or undefined -> (..., O)
Variable linear(const Variable& x, const Variable& w, const Variable& bias);
// x W^T + b + residual, rounded once. residual: the result's shape.
Variable linear_add(const Variable& x, const Variable& w, const Variable& bias, const Variable& residual);
// gelu(x W1^T + b1) W2^T + b2 + residual, the tanh form; each step fused with the product beside it. Biases and
// residual may be undefined. x (..., C), w1 (F, C), w2 (O, F) -> (..., O). keep_hidden false: backward computes GELU
// once more instead of keeping its output (F numbers a row).
Variable gelu_mlp(const Variable& x, const Variable& w1, const Variable& b1, const Variable& w2, const Variable& b2,
                  const Variable& residual, bool keep_hidden = true);
// Rows of w chosen by ids. w (V, C), ids i32 (...) -> (..., C). An id outside [0, V) is Error(Exit::data).
Variable embedding(const Variable& w, const Tensor& ids);

// Ba et al. 2016 (arXiv 1607.06450); Zhang & Sennrich 2019 (arXiv 1910.07467). Statistics in fp32. x (..., C), w, b (C)
Variable layer_norm(const Variable& x, const Variable& w, const Variable& bias, double eps);
Variable rms_norm(const Variable& x, const Variable& w, double eps);

Variable gelu(const Variable& x, Gelu kind);  // Hendrycks & Gimpel 2016 (arXiv 1606.08415)
// Shazeer 2020 (arXiv 2002.05202): silu(gate) * up. x (..., 2F) = [gate | up] -> (..., F)
Variable swiglu(const Variable& x);

// Sum over rows with target >= 0 of -log softmax(logits)[target]. logits (N, V), targets i32 (N) -> () fp32. Target -1:
// ignored.
Variable cross_entropy(const Variable& logits, const Tensor& targets);
// The same from the last hidden state, in chunks of rows: all logits never exist at once; forward computes the
// gradients too (where they are wanted) and backward scales them by the incoming one, which is free for exactly 1. x
// (N, C), w (V, C), targets i32 (N) -> (). `losses` (N), optional, receives each row's loss, in the dtype of the
// result. chunk_rows 0: loss_chunk() chooses; it is part of the result's last bits (dW is summed over chunks), so it
// must not depend on the machine, only on whether it is a GPU. There the logits of a bf16 model are bf16.
Variable linear_cross_entropy(const Variable& x, const Variable& w, const Tensor& targets, Tensor* losses = nullptr,
                              std::int64_t chunk_rows = 0);

// One chunk of logits: so many rows of V numbers, ld apart, in this dtype (their gradient has x's).
struct LossChunk {
  std::int64_t rows = 0, ld = 0;
  DType logits = DType::f32;
};
LossChunk loss_chunk(Device device, std::int64_t N, std::int64_t C, std::int64_t V, DType dtype,
                     std::int64_t chunk_rows = 0);

// Scores of the SparseK scoring network: s[b,h,t] = x[b,t,:] . w[h,:], accumulated in an order that depends on C alone,
// so that prefill and decode agree in every bit. x (B, T, C), w (Hs, C) -> (B, Hs, T), fp32 (fp64 in fp64 graphs). w
// may be fp32 beside a bf16 x.
Variable score(const Variable& x, const Variable& w);

}  // namespace sieve
