// How cuBLASLt's algorithms are chosen. No CUDA header in sight.
#pragma once

namespace sieve::cuda {

// Off (the default): the library's first proposal, the same in every run. On: large products time the first eight
// proposals once, at their first call, which waits for the GPU; the winner, and with it the last bits, may then differ
// from run to run: not for deterministic mode.
void set_matmul_tuning(bool timed);

// Whether the sums of A (a bias gradient beside dW) may come out of the product itself. Off (the default): a kernel of
// their own, which reads A once more, 0.03 to 0.1 ms for 65,536 rows. dW has few tiles and a long K: it needs the
// algorithms that split K, and which of those can sum A too is the library's secret. bench_gpu_products shows both.
void set_matmul_fused_sums(bool fused);
bool matmul_fused_sums();

}  // namespace sieve::cuda
