// The instructions of sm_90a that the kernels of this folder are made of: barriers in shared memory, the tensor copy
// engine, 16-byte gathers, products of warpgroups. Sources: PTX ISA 9.0, "Asynchronous Warpgroup Level Matrix
// Instructions", "Data Movement and Conversion Instructions", "mbarrier". Other architectures compile these functions
// to a trap: attention/warpgroup_engine.h decides who calls them.
//
// Tiles in shared memory: rows of 64 bf16 (128 bytes), one slab of `rows` x 128 bytes per 64 features, 1,024-byte
// aligned, 16-byte piece c of row r stored at piece c ^ (r % 8) ("128-byte swizzle").
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>

#include <cstdint>

#include "attention/kernels/cuda/tile.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDA_ARCH__)  // what only the compiler of device code knows
#define SIEVE_SM90A(...) asm volatile(__VA_ARGS__)
#else
#define SIEVE_SM90A(...) __trap()
#endif

namespace sieve::cuda::hopper {

inline constexpr int kWarpgroup = 128;       // threads
inline constexpr int kSlabFeatures = 64;     // bf16 features of a slab's row
inline constexpr int kSlabRowBytes = 128;    // of one row of a slab
inline constexpr int kTileAlignment = 1024;  // of every slab

__device__ inline std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}
// Byte offset of 16-byte piece `piece` (0 .. 7) of row `row` in a slab.
__device__ inline std::uint32_t swizzled(std::uint32_t row, std::uint32_t piece) {
  return row * kSlabRowBytes + ((piece ^ (row & 7)) << 4);
}

// ---- Barriers (mbarrier). A phase completes when `count` arrivals and all expected bytes are in; wait(parity) returns
// once the phase of that parity is complete: the first phase has parity 0, and waiting for parity 1 on a fresh barrier
// returns at once.
__device__ inline void init_barrier(std::uint64_t* bar, std::uint32_t count) {
  SIEVE_SM90A("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(count) : "memory");
}
// After all init_barrier, by the thread that did them, before a __syncthreads.
__device__ inline void publish_barriers() {
  SIEVE_SM90A("fence.mbarrier_init.release.cluster;" ::: "memory");
  SIEVE_SM90A("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ inline void arrive(std::uint64_t* bar) {
  SIEVE_SM90A("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory");
}
__device__ inline void arrive_expecting(std::uint64_t* bar, std::uint32_t bytes) {
  SIEVE_SM90A("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes)
              : "memory");
}
// Expected bytes without an arrival.
__device__ inline void expect(std::uint64_t* bar, std::uint32_t bytes) {
  SIEVE_SM90A("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes)
              : "memory");
}
__device__ inline void wait(std::uint64_t* bar, std::uint32_t parity) {
  SIEVE_SM90A(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n}" ::"r"(shared_address(bar)),
      "r"(parity)
      : "memory");
}
// `threads` of the block meet at hardware barrier `id` (1 .. 15; 0 is __syncthreads).
__device__ inline void meet(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// The same for those that need not wait: they count, and go on.
__device__ inline void announce(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- Copies
// Writes of this thread to shared memory by plain stores or cp.async become visible to wgmma and to the copy engine.
__device__ inline void fence_shared_for_async() { SIEVE_SM90A("fence.proxy.async.shared::cta;" ::: "memory"); }

// A box of a tensor map (host: map_rows) to shared memory; its bytes count on `bar`. One thread calls it. Coordinates:
// feature, head, position, batch row; positions outside [0, T) arrive as zeros and count too.
__device__ inline void copy_box(void* to, const CUtensorMap* map, std::uint64_t* bar, int feature, int head,
                                int position, int b) {
  SIEVE_SM90A(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(bar)), "r"(feature), "r"(head), "r"(position), "r"(b)
      : "memory");
}
// 16 bytes from global to shared memory, past L1; zeros if !real (`from` must be a valid address all the same).
__device__ inline void copy_16(std::uint32_t to, const void* from, bool real) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(real ? 16 : 0) : "memory");
}
// Moves the line of `from` into L2, or nothing; waits for nothing.
__device__ inline void ask_for_line(const void* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- Registers: a producer gives up what the consumers take; all threads of a warpgroup call it. Multiples of 8.
template <int kRegisters>
__device__ inline void keep_registers() {
  SIEVE_SM90A("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void take_registers() {
  SIEVE_SM90A("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- Products. c (64, N) of a warpgroup: warp w holds rows 16 w .. 16 w + 15, lane l the rows g = l / 4 and g + 8 of
// those and the columns 8 n + 2 (l % 4) + {0, 1}: c[4 n + {0, 1}] of row g, c[4 n + {2, 3}] of row g + 8.
// Between the first issue and the wait nobody may touch c, nor the registers of a left operand.
__device__ inline void fence_products() { SIEVE_SM90A("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit_products() { SIEVE_SM90A("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ inline void wait_products() {
  SIEVE_SM90A("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// The compiler must neither move reads of c above a wait nor keep copies of it across one.
template <int N>
__device__ inline void pin(float (&c)[N]) {
#pragma unroll
  for (int x = 0; x < N; ++x) asm volatile("" : "+f"(c[x])::"memory");
}

// Matrix descriptor of a 128-byte swizzled tile. `address` of the first row; stride of 8-row groups is 1,024 bytes;
// `slab_bytes` is the distance of slabs, needed where the long (row) index is the reduction (transposed right operand
// with N > 64).
__device__ inline std::uint64_t tile_descriptor(std::uint32_t address, std::uint32_t slab_bytes = 16) {
  return (static_cast<std::uint64_t>(address & 0x3ffff) >> 4) | (static_cast<std::uint64_t>(slab_bytes >> 4) << 16) |
         (static_cast<std::uint64_t>(1024 >> 4) << 32) | (std::uint64_t{1} << 62);
}

// One k = 16 step. kTransposedB false: B is a tile of N rows with the 16 reduction features beside each other (row n
// holds B[k][n] at feature k): k step s starts 32 bytes further. kTransposedB true: B is a tile of reduction rows, N
// features beside each other: k step s starts 16 rows (2,048 bytes) further.
// kAdd false: c is overwritten.
template <int N, bool kTransposedB>
__device__ inline void product_step(float (&c)[N / 2], std::uint64_t a, std::uint64_t b, bool add);
template <int N, bool kTransposedB>
__device__ inline void product_step(float (&c)[N / 2], const std::uint32_t (&a)[4], std::uint64_t b, bool add);

#define SIEVE_C8(c, x)                                                                                        \
  "+f"(c[x]), "+f"(c[x + 1]), "+f"(c[x + 2]), "+f"(c[x + 3]), "+f"(c[x + 4]), "+f"(c[x + 5]), "+f"(c[x + 6]), \
      "+f"(c[x + 7])
#define SIEVE_C32(c, x) SIEVE_C8(c, x), SIEVE_C8(c, x + 8), SIEVE_C8(c, x + 16), SIEVE_C8(c, x + 24)
#define SIEVE_R32                                                                                                  \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29," \
  "%30,%31"
#define SIEVE_R64                                                                                             \
  SIEVE_R32                                                                                                   \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57," \
  "%58,%59,%60,%61,%62,%63"

#define SIEVE_PRODUCT(N, T, C, R, P0, P1, P2, P3, P4, P5, P6)                                                          \
  template <>                                                                                                          \
  __device__ inline void product_step<N, T>(float(&c)[N / 2], std::uint64_t a, std::uint64_t b, bool add) {            \
    SIEVE_SM90A("{\n.reg .pred p;\nsetp.ne.b32 p, %" P2 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N                   \
                "k16.f32.bf16.bf16 {" R "}, %" P0 ", %" P1 ", p, 1, 1, 0, %" P3 ";\n}"                                 \
                : C                                                                                                    \
                : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(T ? 1 : 0));                                         \
  }                                                                                                                    \
  template <>                                                                                                          \
  __device__ inline void product_step<N, T>(float(&c)[N / 2], const std::uint32_t(&a)[4], std::uint64_t b, bool add) { \
    SIEVE_SM90A("{\n.reg .pred p;\nsetp.ne.b32 p, %" P5 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N                   \
                "k16.f32.bf16.bf16 {" R "}, {%" P0 ",%" P1 ",%" P2 ",%" P3 "}, %" P4 ", p, 1, 1, %" P6 ";\n}"          \
                : C                                                                                                    \
                : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)), "n"(T ? 1 : 0));     \
  }
#define SIEVE_OF32 SIEVE_C32(c, 0)
#define SIEVE_OF64 SIEVE_C32(c, 0), SIEVE_C32(c, 32)
SIEVE_PRODUCT(64, false, SIEVE_OF32, SIEVE_R32, "32", "33", "34", "35", "36", "37", "38")
SIEVE_PRODUCT(64, true, SIEVE_OF32, SIEVE_R32, "32", "33", "34", "35", "36", "37", "38")
SIEVE_PRODUCT(128, true, SIEVE_OF64, SIEVE_R64, "64", "65", "66", "67", "68", "69", "70")

// c (64, N) (+)= A B^T over D features; A (64 rows) and B (N rows) are tiles of D / 64 slabs, slabs `a_slab` and
// `b_slab` bytes apart. Issues only: fence before, commit and wait after.
template <int N, int D>
__device__ inline void issue_rows_by_rows(float (&c)[N / 2], std::uint32_t a, std::uint32_t a_slab, std::uint32_t b,
                                          std::uint32_t b_slab) {
#pragma unroll
  for (int d = 0; d < D / 16; ++d) {
    const std::uint32_t step = d % 4 * 32;
    product_step<N, false>(c, tile_descriptor(a + d / 4 * a_slab + step), tile_descriptor(b + d / 4 * b_slab + step),
                           d > 0);
  }
}
// c (64, D) += A B over kRows reduction rows; A (64, kRows) in registers as packed by pack_left; B a tile of kRows rows
// of D features.
template <int D, int kRows>
__device__ inline void issue_left_by_rows(float (&c)[D / 2], const std::uint32_t (&a)[kRows / 16][4], std::uint32_t b,
                                          std::uint32_t b_slab) {
#pragma unroll
  for (int k = 0; k < kRows / 16; ++k)
    product_step<D, true>(c, a[k], tile_descriptor(b + k * 16 * kSlabRowBytes, b_slab), true);
}

__device__ inline std::uint32_t pack_pair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const std::uint32_t&>(pair);
}
// A product's result becomes the left operand of the next: the columns of c are its reduction index.
template <int N>
__device__ inline void pack_left(std::uint32_t (&a)[N / 16][4], const float (&c)[N / 2]) {
#pragma unroll
  for (int k = 0; k < N / 16; ++k) {
#pragma unroll
    for (int x = 0; x < 4; ++x) a[k][x] = pack_pair(c[8 * k + 2 * x], c[8 * k + 2 * x + 1]);
  }
}

// The same number, of which the compiler knows nothing: what follows from it is computed anew where it is used, not
// held in registers from one end of a tile to the other.
__device__ inline int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// 2^x by the special function unit alone.
__device__ inline float fast_power_of_2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace sieve::cuda::hopper
