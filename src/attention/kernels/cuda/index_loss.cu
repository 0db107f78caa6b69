// The indexer's loss on a GPU: which way it goes, and for tiles slab after slab what their passes share.
#include <algorithm>

#include "attention/kernels/cuda/index_tiles.cuh"

namespace sieve::cuda {
namespace {

constexpr std::int64_t kSlabBlocks = (std::int64_t{256} << 20) / (kSide * kSide * sizeof(float));

// Rows of D numbers become rows of `parts` times `width` bf16 numbers whose sums they are; zeros beyond D.
template <class T>
__global__ void __launch_bounds__(kThreads)
    pack(const T* from, bf16* to, std::int64_t rows, std::int64_t D, std::int64_t width, int parts) {
  SIEVE_GRID_STRIDE(x, rows * width) {
    const std::int64_t row = x / width, d = x % width;
    float rest = d < D ? static_cast<float>(from[row * D + d]) : 0.f;
    for (int part = 0; part < parts; ++part) {
      const bf16 near(rest);
      to[(row * parts + part) * width + d] = near;
      rest -= static_cast<float>(near);
    }
  }
}

struct Slab {
  std::int64_t first, units;
};

// Where things lie in the workspace, in bytes, and how the tiles of the batch are cut.
struct Space {
  std::int64_t sides, blocks = 0, units = 0, slabs = 1;  // blocks and units: the most of a slab
  std::size_t q = 0, k = 0, index_q = 0, index_k = 0, log_sums = 0, counts = 0, entries = 0, words = 0, part_losses = 0,
              differences = 0, seen = 0, bytes = 0;

  explicit Space(const IndexLossArgs& a);
  Slab slab(const IndexTiles& v, std::int64_t B, std::int64_t n) const;
};

int parts_of(const IndexLossArgs& a) { return a.dtype == DType::bf16 ? 1 : 3; }
std::int64_t width_of(std::int64_t D) { return (D + 15) / 16 * 16; }
bool stays(const IndexLossArgs& a, std::int64_t D) { return a.dtype == DType::bf16 && D % 16 == 0; }

// Slab n of `slabs` that have about as many blocks each: tiles as in IndexTiles::blocks_before.
Slab Space::slab(const IndexTiles& v, std::int64_t B, std::int64_t n) const {
  const std::int64_t all = B * sides, total = v.blocks_before(all);
  const auto begin_of = [&](std::int64_t part) {  // the first tile that has that part of the blocks before it
    std::int64_t low = 0, high = all;
    while (low < high) {
      const std::int64_t middle = (low + high) / 2;
      if (v.blocks_before(middle) >= total / slabs * part) high = middle;
      else low = middle + 1;
    }
    return low;
  };
  const std::int64_t first = n == 0 ? 0 : begin_of(n), end = n + 1 == slabs ? all : begin_of(n + 1);
  return {first, end - first};
}

Space::Space(const IndexLossArgs& a) : sides((a.T + kSide - 1) / kSide) {
  const auto take = [&](std::int64_t elements, std::size_t size) {
    const std::size_t at = bytes;
    bytes += (static_cast<std::size_t>(elements) * size + 255) / 256 * 256;
    return at;
  };
  const auto rows = [&](std::int64_t heads, std::int64_t D) {
    return take(stays(a, D) ? 0 : a.B * heads * a.T * parts_of(a) * width_of(D), sizeof(bf16));
  };
  IndexTiles v;
  v.lists.sides = sides;
  slabs = (v.blocks_before(a.B * sides) + kSlabBlocks - 1) / kSlabBlocks;
  for (std::int64_t n = 0; n < slabs; ++n) {
    const Slab s = slab(v, a.B, n);
    units = std::max(units, s.units);
    blocks = std::max(blocks, v.blocks_before(s.first + s.units) - v.blocks_before(s.first));
  }
  q = rows(a.H, a.D), k = rows(a.Hkv, a.D), index_q = rows(a.Hi, a.Di), index_k = rows(1, a.Di);
  log_sums = take(a.B * (a.H + 1) * a.T, sizeof(float));
  counts = take(units, sizeof(std::int32_t));
  entries = take(units * sides, sizeof(std::int32_t));
  words = take(units * sides * kSide, sizeof(Word));
  part_losses = take(units * ((sides + kRun - 1) / kRun) * kSide, sizeof(double));
  if (a.dq_BHTD == nullptr) return;
  differences = take(blocks * kSide * kSide, sizeof(float));
  seen = take(units * sides, sizeof(std::uint8_t));
}

// Rows as the passes take them: where they lie, or a copy.
IndexRows rows_of(const IndexLossArgs& a, const void* from, std::size_t at, std::int64_t heads, std::int64_t D,
                  const Stream& stream) {
  const int parts = parts_of(a), width = static_cast<int>(width_of(D));
  if (stays(a, D)) return {static_cast<const bf16*>(from), heads, width, width};
  auto* to = reinterpret_cast<bf16*>(static_cast<unsigned char*>(a.workspace) + at);
  const std::int64_t rows = a.B * heads * a.T;
  const unsigned blocks = blocks_for(rows * width);
  if (a.dtype == DType::bf16)
    start("index rows", pack<bf16>, blocks, kThreads, 0, stream, static_cast<const bf16*>(from), to, rows, D,
          std::int64_t{width}, parts);
  else
    start("index rows", pack<float>, blocks, kThreads, 0, stream, static_cast<const float*>(from), to, rows, D,
          std::int64_t{width}, parts);
  return {to, heads, width, parts * width};
}

IndexTiles tiles_of(const IndexLossArgs& a, const Space& space, const Stream& stream) {
  auto* memory = static_cast<unsigned char*>(a.workspace);
  IndexTiles v;
  v.q = rows_of(a, a.q_BHTD, space.q, a.H, a.D, stream), v.k = rows_of(a, a.k_BHTD, space.k, a.Hkv, a.D, stream);
  v.index_q = rows_of(a, a.index_q_BHTD, space.index_q, a.Hi, a.Di, stream);
  v.index_k = rows_of(a, a.index_k_BTD, space.index_k, 1, a.Di, stream);
  v.weights = static_cast<const float*>(a.weights_BHT);
  v.T = a.T, v.H = a.H, v.group = a.H / a.Hkv, v.Hi = a.Hi, v.Di = a.Di;
  v.factor = static_cast<float>(a.scale * kLog2E);
  v.lists.rows = a.B, v.lists.T = a.T, v.lists.sides = space.sides;
  v.lists.counts = reinterpret_cast<std::int32_t*>(memory + space.counts);
  v.lists.entries = reinterpret_cast<std::int32_t*>(memory + space.entries);
  v.lists.words = reinterpret_cast<Word*>(memory + space.words);
  v.log_sums = reinterpret_cast<float*>(memory + space.log_sums);
  v.part_losses = reinterpret_cast<double*>(memory + space.part_losses);
  v.losses = a.loss_BT;
  if (a.dq_BHTD == nullptr) return v;
  v.differences = reinterpret_cast<float*>(memory + space.differences);
  v.seen = memory + space.seen;
  v.dq = static_cast<float*>(a.dq_BHTD), v.dk = static_cast<float*>(a.dk_BTD);
  v.dweights = static_cast<float*>(a.dweights_BHT);
  return v;
}

void by_tiles(const IndexLossArgs& a, const Stream& stream) {
  const Space space(a);
  IndexTiles v = tiles_of(a, space, stream);
  PatternPhase phase;
  phase.pattern.kind = AttentionKind::dsa;
  phase.pattern.choice_BHTN = a.choice_BTM, phase.pattern.choice_size = a.M, phase.pattern.T = a.T;
  const int parts = parts_of(a);
  for (std::int64_t n = 0; n < space.slabs; ++n) {
    const Slab slab = space.slab(v, a.B, n);
    if (slab.units == 0) continue;
    v.lists.first = slab.first, v.lists.units = slab.units, v.offset = v.blocks_before(slab.first);
    if (v.seen != nullptr) {
      check(cudaMemsetAsync(v.seen, 0, static_cast<std::size_t>(slab.units * space.sides), handle_of(stream)),
            "index loss");
    }
    fill_lists(phase, v.lists, false, stream);
    index_log_sums(v, parts, stream);
    index_differences(v, parts, stream);
    if (v.differences == nullptr) continue;
    index_query_gradients(v, parts, stream);
    index_key_gradients(v, parts, stream);
  }
}

}  // namespace

std::size_t workspace_bytes(const IndexLossArgs& a, Stream) {
  if (a.B * a.T == 0) return 0;
  if (index_loss_by_tiles(a)) return Space(a).bytes;
  return a.dq_BHTD == nullptr ? 0 : static_cast<std::size_t>(a.B * index_loss_pieces(a) * a.T * a.Di) * sizeof(float);
}

void run(const IndexLossArgs& a, Stream stream) {
  if (a.B * a.T == 0) return;
  require(a.dtype != DType::f64, "index_loss", "has no fp64 kernel on a GPU");
  if (index_loss_by_tiles(a)) by_tiles(a, stream);
  else index_loss_by_rows(a, stream);
}

}  // namespace sieve::cuda
