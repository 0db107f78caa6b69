// Sums gradients over micro-batches and ranks while backward still runs. Knows tensors, not autograd: leaf hooks call
// ready().
//
//   GradientReducer reducer(comm, slots, {});
//   reducer.begin_step(accumulation);
//   for (each micro-batch of this rank, in order) {
//     backward(loss);              // hooks: reducer.ready(i, grad); the gradient was copied, the hook may drop it
//     reducer.end_micro_batch();   // parameters that got no gradient count as zeros
//   }
//   reducer.finish();              // reducer.gradient(i) is now the sum over all micro-batches of all ranks
//
// Gradients lie in one flat buffer (tensor/flat_layout.h), on the CPU or on a GPU. A bucket is a range of it; buckets
// follow each other from its end, because backward reaches the last parameters first. When the last micro-batch
// completes a bucket, its reduction starts beside backward: on one side thread where memory is the CPU's, on the
// communicator's stream where it is a GPU's (nothing here waits for a GPU then: finish() makes its stream wait).
// Buckets go out strictly in order, so that all ranks agree on the sequence whatever the hooks' order.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "dist/communicator.h"
#include "tensor/flat_layout.h"
#include "tensor/tensor.h"

namespace sieve {

struct GradientSlot {
  std::string name;
  Shape shape;
};

struct ReducerOptions {
  std::int64_t bucket_bytes = 25 << 20;  // a parameter larger than this gets a bucket of its own
  bool deterministic = true;             // the tree of dist/tree.h; false: running sum and the backend's all_reduce
  bool overlap = true;                   // false: reductions start in finish(); the same bits
  // Each rank needs its FlatLayout::part alone (ZeRO-1). Where not deterministic, only that part is reduced then.
  bool shard = false;
};

struct ReducerStats {         // of the last finished step; CPU only, a GPU's times are its profiler's
  double wait_seconds = 0;    // finish() waited for the side thread
  double reduce_seconds = 0;  // the side thread spent in reductions: 1 - wait/reduce of it was hidden behind backward
};

class GradientReducer {
 public:
  GradientReducer(Communicator& comm, std::vector<GradientSlot> parameters, const ReducerOptions& options,
                  const Stream& stream = {});  // where gradients come from and lie
  ~GradientReducer();                          // in the middle of a step: abandons the communicator
  GradientReducer(const GradientReducer&) = delete;
  GradientReducer& operator=(const GradientReducer&) = delete;

  void begin_step(std::int64_t micro_batches);  // of this rank; the same number on every rank
  void ready(std::int64_t parameter,
             const Tensor& grad);  // f32, the parameter's shape, once per micro-batch; any thread, one at a time
  void end_micro_batch();
  void finish();  // after the last end_micro_batch(); rethrows what went wrong on the side thread

  std::int64_t parameters() const { return static_cast<std::int64_t>(places_.size()); }
  // The reduced gradient, a view in the parameter's shape, valid (and writable: clipping) until the next begin_step.
  Tensor gradient(std::int64_t parameter) const;
  Tensor flat() const;  // of all parameters: layout()
  const FlatLayout& layout() const { return layout_; }
  // Does every rank hold the whole sum, or its part alone?
  bool sharded() const { return options_.shard && !options_.deterministic && comm_.size() > 1; }
  // Sum of squares of the reduced gradient (of the own part, if sharded), () in fp64 on the gradient's device: a fixed
  // tree over the flat buffer, the same for any bucket size, thread count and number of ranks.
  Tensor squared_norm() const;
  const ReducerStats& stats() const { return stats_; }
  std::int64_t bucket_count() const { return static_cast<std::int64_t>(buckets_.size()); }
  std::int64_t bytes() const;  // held in gradient buffers now

  // fp32 copies of the gradient that a step of so many micro-batches per rank holds (beside the one of autograd in
  // flight).
  static int buffers(std::int64_t micro_batches, bool deterministic);

 private:
  struct Place {
    GradientSlot slot;
    std::int64_t bucket;
    bool seen = false;  // in this micro-batch
  };
  struct Bucket {
    std::int64_t begin = 0, end = 0;  // of the flat buffer
    std::int64_t parameters = 0, seen = 0;
  };
  void accumulate(std::size_t parameter, const Tensor& grad);
  void release(std::int64_t bucket);
  void reduce_released();
  void run();
  void reduce(std::int64_t bucket);

  Communicator& comm_;
  ReducerOptions options_;
  Stream stream_;
  FlatLayout layout_;
  std::vector<Place> places_;
  std::vector<Bucket> buckets_;
  std::vector<Tensor> slots_;                     // partial sums, flat; slot 0 receives the result
  std::optional<Communicator::Overlap> overlap_;  // of a step on a GPU
  std::int64_t micro_batches_ = 0, micro_batch_ = 0;
  bool in_step_ = false;
  ReducerStats stats_;

  std::mutex mutex_;  // guards what the side thread shares:
  std::condition_variable changed_;
  std::int64_t released_ = 0, reduced_ = 0;  // buckets [0, released_) may go out, [0, reduced_) are done
  std::vector<char> complete_;
  double reduce_seconds_ = 0;
  bool stop_ = false;
  std::exception_ptr error_;
  std::thread side_;
};

}  // namespace sieve
