// Which kernels attention over compressed keys takes. Letters as in kernels/nsa.h.
#include "attention/kernels/cuda/nsa_attention.cuh"

namespace sieve::cuda {
namespace {

constexpr std::int64_t kStaticBytes = 4096;  // more than a kernel has beside
constexpr std::int64_t kKeyBlocks = 768;     // about what fills a GPU
constexpr std::int64_t kMostPieces = 16;     // of the queries, each with sums of its own

bool aligned(std::initializer_list<const void*> addresses) {
  for (const void* p : addresses)
    if (reinterpret_cast<std::uintptr_t>(p) % 16 != 0) return false;
  return true;
}

bool fits(const CompressedJob& e, bool backward) {
  return e.dtype == DType::bf16 && (e.D == kSide || e.D == 2 * kSide) &&
         aligned({e.q, e.k, e.v, e.out, e.dout, e.dq, e.dk, e.dv}) &&
         static_cast<std::int64_t>(compressed_shared_bytes(e.D, backward)) + kStaticBytes <= most_shared_bytes();
}

CompressedJob job_of(const CompressedAttentionArgs& a, const DeviceGrid& grid) {
  if (a.D > 4 * kSide)
    fail(Exit::config, "attention", "head_dim ", a.D, " exceeds the ", 4 * kSide, " that the GPU's kernels hold");
  CompressedJob e;
  e.grid = grid.view;
  e.B = a.grid.B, e.N = a.N, e.H = a.H, e.Hkv = a.Hkv, e.D = a.D, e.scale = a.scale, e.dtype = a.dtype;
  e.q = a.q_BNF, e.k = a.k_BHMD, e.v = a.v_BHMD, e.out = a.out_BNF, e.statistics = a.statistics_BHN;
  return e;
}

template <class C>
__global__ void __launch_bounds__(kThreads)
    add_pieces(const C* dk, const C* dv, C* out_k, C* out_v, std::int64_t n, int pieces) {
  SIEVE_GRID_STRIDE(x, n) {
    C k = 0, v = 0;
    for (int p = 0; p < pieces; ++p) k += dk[p * n + x], v += dv[p * n + x];
    out_k[x] = k, out_v[x] = v;
  }
}

// Few blocks of keys go through the queries in several pieces at a time.
void backward_keys(CompressedJob e, const Stream& stream) {
  const std::int64_t blocks = e.B * e.Hkv * ((e.grid.M + kSide - 1) / kSide), n = e.B * e.Hkv * e.grid.M * e.D;
  if (blocks == 0) return;
  const std::int64_t useful = std::min(kMostPieces, std::max<std::int64_t>(1, e.tiles(kSide) * e.group() / 4));
  e.pieces = static_cast<int>(std::clamp<std::int64_t>(kKeyBlocks / blocks, 1, useful));
  if (e.pieces == 1) return compressed_backward_keys(e, stream);
  const Scratch parts(static_cast<std::size_t>(2 * e.pieces * n) * sizeof(float), stream);
  auto *dk = static_cast<float*>(e.dk), *dv = static_cast<float*>(e.dv), *part = parts.as<float>();
  e.dk = part, e.dv = part + e.pieces * n;
  compressed_backward_keys(e, stream);
  start("compressed keys' sums", add_pieces<float>, blocks_for(n), kThreads, 0, stream, part, part + e.pieces * n, dk,
        dv, n, e.pieces);
}

}  // namespace

void run(const CompressedAttentionArgs& a, Stream stream) {
  if (a.grid.B * a.N == 0) return;
  const DeviceGrid grid(a.grid, stream);
  CompressedJob e = job_of(a, grid);
  const bool tensor_cores = fits(e, false);
  if (tensor_cores) compressed_forward(e, stream);
  else compressed_rows_forward(e, stream);
  if (a.choice_BHNC == nullptr) return;
  constexpr std::int64_t kMost = std::int64_t{1} << 30;
  require(a.block < kMost && a.blocks < kMost, "compressed_attention", a.blocks, " blocks of ", a.block,
          " keys: each must be less than 2^30");
  e.block = static_cast<int>(a.block);
  e.blocks = static_cast<int>(a.blocks), e.width = static_cast<int>(a.grid.T / e.block + 1), e.choice = a.choice_BHNC;
  if (!tensor_cores || !compressed_choice(e, stream)) compressed_rows_choice(e, stream);
}

void run(const CompressedAttentionBackwardArgs& b, Stream stream) {
  const CompressedAttentionArgs& a = b.forward;
  const DeviceGrid grid(a.grid, stream);
  CompressedJob e = job_of(a, grid);
  const Scratch delta(static_cast<std::size_t>(e.B * e.H * e.N) * size_of(compute_dtype(e.dtype)), stream);
  e.delta = delta.as<void>();
  e.dout = b.dout_BNF, e.dq = b.dq_BNF, e.dk = b.dk_BHMD, e.dv = b.dv_BHMD;
  const bool tensor_cores = fits(e, true);
  if (e.B * e.N > 0) {
    if (tensor_cores) compressed_backward_queries(e, stream);
    else compressed_rows_backward_queries(e, stream);
  }
  if (tensor_cores) backward_keys(e, stream);
  else compressed_rows_backward_keys(e, stream);
}

}  // namespace sieve::cuda
