#include "attention/kernels/cuda/launch.cuh"
#include "attention/kernels/random_scores.h"
#include "tensor/kernels/cuda/block.cuh"

namespace sieve::cuda {
namespace {

__global__ void __launch_bounds__(256) document_numbers(DocumentNumbersArgs a) {
  SIEVE_GRID_STRIDE(at, a.B * a.T) { fill_document_number(a, at); }
}

__global__ void __launch_bounds__(256) random_scores(RandomScoresArgs a) {
  SIEVE_GRID_STRIDE(at, a.B * a.H * a.T) { fill_random_score(a, at); }
}

}  // namespace

void run(const DocumentNumbersArgs& a, Stream stream) {
  start("document numbers", document_numbers, (a.B * a.T + 255) / 256, 256, 0, stream, a);
}

void run(const RandomScoresArgs& a, Stream stream) {
  start("random scores", random_scores, (a.B * a.H * a.T + 255) / 256, 256, 0, stream, a);
}

}  // namespace sieve::cuda
