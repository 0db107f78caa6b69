// One warp walks a row, 32 scores at a time: prefix sums inside the warp that stop at document starts, a carry from
// step to step. Backward walks it forwards for the statistics, then backwards for the suffix sums.
#include "attention/kernels/cuda/launch.cuh"
#include "attention/kernels/timestep_norm.h"
#include "tensor/kernels/cuda/block.cuh"
#include "tensor/kernels/cuda/scratch.h"

namespace sieve::cuda {
namespace {

struct Statistics {
  double count, sum, squares;
  __device__ double mean() const { return sum / count; }
  __device__ double inverse_std(double eps) const {
    const double mu = mean(), v = squares / count - mu * mu;
    return 1.0 / sqrt((v < 0 ? 0 : v) + eps);
  }
};

// Two sums over the lanes up to and including this one (down to it, if `backwards`), from the nearest lane on that has
// `edge`, with the carry of earlier steps where no edge lies between.
template <bool backwards>
__device__ void scan(double& p, double& q, bool edge, double& carry_p, double& carry_q) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int stop = edge;
  for (int step = 1; step < 32; step *= 2) {
    const double other_p = backwards ? __shfl_down_sync(0xffffffffu, p, step) : __shfl_up_sync(0xffffffffu, p, step);
    const double other_q = backwards ? __shfl_down_sync(0xffffffffu, q, step) : __shfl_up_sync(0xffffffffu, q, step);
    const int other = backwards ? __shfl_down_sync(0xffffffffu, stop, step) : __shfl_up_sync(0xffffffffu, stop, step);
    const bool inside = backwards ? lane + step < 32 : lane >= step;
    if (inside && stop == 0) p += other_p, q += other_q, stop = other;
  }
  if (stop == 0) p += carry_p, q += carry_q;
  carry_p = __shfl_sync(0xffffffffu, p, backwards ? 0 : 31);
  carry_q = __shfl_sync(0xffffffffu, q, backwards ? 0 : 31);
}

// Statistics of position j after its score; every lane of the warp calls it, j ascending by 32.
template <class T>
class Walker {
 public:
  __device__ Walker(const TimestepNormArgs& args, std::int64_t row)
      : a(args),
        s_(static_cast<const T*>(a.s_BHT) + row * a.T),
        starts_(a.document_starts_BT != nullptr ? a.document_starts_BT + row / a.H * a.T : nullptr) {
    count_ = a.count_BH != nullptr ? a.count_BH[row] : a.prior_count;
    sum_ = a.count_BH != nullptr ? a.sum_BH[row] : 0.0;
    squares_ = a.count_BH != nullptr ? a.squares_BH[row] : a.prior_count;
  }
  __device__ Statistics step(std::int64_t j) {
    const bool real = j < a.T, begins = real && starts_ != nullptr && starts_[j] == j;
    const double s = real ? static_cast<double>(s_[j]) : 0;
    double sum = s, squares = s * s + (begins ? a.prior_count : 0);
    scan<false>(sum, squares, begins, sum_, squares_);
    const double count = real && starts_ != nullptr ? a.prior_count + static_cast<double>(j - starts_[j] + 1)
                                                    : count_ + static_cast<double>(j + 1);
    return {count, sum, squares};
  }
  __device__ double score(std::int64_t j) const { return static_cast<double>(s_[j]); }

  const TimestepNormArgs& a;

 private:
  const T* s_;
  const std::int32_t* starts_;
  double count_, sum_, squares_;
};

__device__ std::int64_t row_of_warp() { return (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32; }

template <class T>
__global__ void normalise(const TimestepNormArgs a) {
  const std::int64_t row = row_of_warp(), lane = threadIdx.x % 32;
  if (row >= a.B * a.H) return;  // whole warps leave
  const double gain = static_cast<double>(static_cast<const T*>(a.gain_H)[row % a.H]);
  Walker<T> walk(a, row);
  for (std::int64_t base = 0; base < a.T; base += 32) {
    const std::int64_t j = base + lane;
    const Statistics st = walk.step(j);
    if (j >= a.T) continue;
    static_cast<T*>(a.out_BHT)[row * a.T + j] =
        static_cast<T>(gain * (walk.score(j) - st.mean()) * st.inverse_std(a.eps));
    if (a.count_BH != nullptr && j == a.T - 1)
      a.count_BH[row] = st.count, a.sum_BH[row] = st.sum, a.squares_BH[row] = st.squares;
  }
}

// after (rows, T): the statistics of every position. dgain_rows (rows).
template <class T>
__global__ void normalise_backward(const TimestepNormBackwardArgs b, Statistics* after_BHT, double* dgain_rows) {
  const TimestepNormArgs& a = b.forward;
  const std::int64_t row = row_of_warp(), lane = threadIdx.x % 32;
  if (row >= a.B * a.H) return;  // whole warps leave
  const double gain = static_cast<double>(static_cast<const T*>(a.gain_H)[row % a.H]);
  const std::int32_t* starts = a.document_starts_BT != nullptr ? a.document_starts_BT + row / a.H * a.T : nullptr;
  Statistics* after = after_BHT + row * a.T;
  Walker<T> walk(a, row);
  for (std::int64_t base = 0; base < a.T; base += 32) {
    const Statistics st = walk.step(base + lane);
    if (base + lane < a.T) after[base + lane] = st;
  }
  double dgain = 0, mean_carry = 0, square_carry = 0;
  for (std::int64_t base = (a.T - 1) / 32 * 32; base >= 0; base -= 32) {
    const std::int64_t j = base + lane;
    const bool real = j < a.T;
    // A sum going backwards stops at the last position of a document: its successor begins another.
    const bool ends = real && starts != nullptr && j + 1 < a.T && starts[j + 1] == j + 1;
    double mean_terms = 0, square_terms = 0, direct = 0, s = 0;
    if (real) {
      const Statistics st = after[j];  // written by this lane
      s = walk.score(j);
      const double r = st.inverse_std(a.eps), mu = st.mean(), centred = s - mu,
                   g = static_cast<double>(static_cast<const T*>(b.grad_BHT)[row * a.T + j]);
      dgain += g * centred * r;
      const double dv = -0.5 * g * gain * centred * r * r * r;
      mean_terms = (-g * gain * r - 2 * mu * dv) / st.count;
      square_terms = dv / st.count;
      direct = g * gain * r;
    }
    scan<true>(mean_terms, square_terms, ends, mean_carry, square_carry);
    if (real) static_cast<T*>(b.ds_BHT)[row * a.T + j] = static_cast<T>(direct + mean_terms + 2 * s * square_terms);
  }
  dgain = warp_sum(dgain);
  if (lane == 0) dgain_rows[row] = dgain;
}

template <class T>
__global__ void sum_gains(const double* rows, T* dgain, std::int64_t B, std::int64_t H) {
  SIEVE_GRID_STRIDE(h, H) {
    double sum = 0;
    for (std::int64_t b = 0; b < B; ++b) sum += rows[b * H + h];
    dgain[h] = static_cast<T>(sum);
  }
}

template <class F>
void by_dtype(DType dtype, F&& f) {
  if (dtype == DType::f32) return f.template operator()<float>();
  require(dtype == DType::f64, "timestep_norm", "wants f32 or f64 scores, got ", name_of(dtype));
  f.template operator()<double>();
}

std::int64_t blocks_of(const TimestepNormArgs& a) { return (a.B * a.H * 32 + kThreads - 1) / kThreads; }

}  // namespace

void run(const TimestepNormArgs& a, Stream stream) {
  if (a.B * a.H * a.T == 0) return;
  by_dtype(a.dtype, [&]<class T>() { start("timestep norm", normalise<T>, blocks_of(a), kThreads, 0, stream, a); });
}

void run(const TimestepNormBackwardArgs& b, Stream stream) {
  const TimestepNormArgs& a = b.forward;
  if (a.H == 0) return;
  const auto rows = static_cast<std::size_t>(a.B * a.H);
  const Scratch after(rows * static_cast<std::size_t>(a.T) * sizeof(Statistics), stream);
  const Scratch dgain(rows * sizeof(double), stream);
  by_dtype(a.dtype, [&]<class T>() {
    start("timestep norm backward", normalise_backward<T>, blocks_of(a), kThreads, 0, stream, b, after.as<Statistics>(),
          dgain.as<double>());
    start("timestep norm gain", sum_gains<T>, blocks_for(a.H), kThreads, 0, stream, dgain.as<double>(),
          static_cast<T*>(b.dgain_H), a.B, a.H);
  });
}

}  // namespace sieve::cuda
