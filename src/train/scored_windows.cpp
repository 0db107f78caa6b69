#include "train/scored_windows.h"

#include <algorithm>
#include <numeric>

namespace sieve {
namespace {

// Targets whose losses are held and exchanged at a time: 16 MiB.
constexpr std::int64_t kRoundTargets = std::int64_t{1} << 22;

// Windows that are scored together, and where the losses of each begin.
struct Round {
  std::span<const EvalWindow> windows;
  std::vector<std::int64_t> offsets;
  std::vector<std::size_t> order;  // the longest first: rows of one forward are about equally long
  Tensor losses;                   // f32 (targets)

  explicit Round(std::span<const EvalWindow> some) : windows(some), order(some.size()) {
    std::int64_t targets = 0;
    for (const EvalWindow& w : windows) {
      offsets.push_back(targets);
      targets += w.targets();
    }
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return windows[a].inputs() > windows[b].inputs(); });
    losses = zeros({targets}, DType::f32);
  }
};

// Rows of one forward.
struct EvalBatch {
  TokenBatch tensors;
  std::span<const std::size_t> members;  // the round's windows, one a row
  std::int64_t T = 0;
};

// First token that is visible from each row of a window, counted from the window. Before the first start in the window
// runs a document that began earlier: it counts from the window's own beginning.
void fill_starts(const EvalWindow& w, std::span<const std::int64_t> starts, std::int32_t* mask, std::int64_t T) {
  const auto stop = std::lower_bound(starts.begin(), starts.end(), w.begin + w.inputs());
  for (auto start = std::lower_bound(starts.begin(), stop, w.begin); start != stop; ++start) {
    const std::int64_t from = *start - w.begin, to = start + 1 != stop ? start[1] - w.begin : T;
    std::fill(mask + from, mask + to, static_cast<std::int32_t>(from));
  }
}

EvalBatch make_batch(const TokenSource& source, const Round& round, std::span<const std::size_t> members,
                     std::span<const std::int64_t> starts) {
  EvalBatch batch{{}, members, round.windows[members.front()].inputs()};
  const std::int64_t T = batch.T, rows = static_cast<std::int64_t>(members.size());
  batch.tensors.tokens = zeros({rows, T}, DType::i32);
  batch.tensors.targets = full({rows, T}, -1, DType::i32);
  if (!starts.empty()) batch.tensors.document_starts = zeros({rows, T}, DType::i32);
  std::vector<std::int32_t> text;
  for (std::int64_t r = 0; r < rows; ++r) {
    const EvalWindow& w = round.windows[members[static_cast<std::size_t>(r)]];
    text.resize(static_cast<std::size_t>(w.end - w.begin));
    source.read(w.begin, text);
    std::copy(text.begin(), text.end() - 1, batch.tensors.tokens.data<std::int32_t>() + r * T);
    const std::int64_t unscored = w.score_begin - 1 - w.begin;
    std::copy(text.begin() + unscored + 1, text.end(), batch.tensors.targets.data<std::int32_t>() + r * T + unscored);
    if (!starts.empty()) fill_starts(w, starts, batch.tensors.document_starts.data<std::int32_t>() + r * T, T);
  }
  return batch;
}

void keep_losses(const EvalBatch& batch, const Tensor& losses, Round& round) {
  const float* row = losses.data<float>();
  for (const std::size_t member : batch.members) {
    const EvalWindow& w = round.windows[member];
    std::copy_n(row + w.score_begin - 1 - w.begin, w.targets(), round.losses.data<float>() + round.offsets[member]);
    row += batch.T;
  }
}

// This rank's forwards of a round; the losses of others stay 0. The next batch is made while a GPU works on this one.
void score_round(const Decoder& model, const TokenSource& source, std::int64_t rows,
                 std::span<const std::int64_t> starts, Communicator& comm, Round& round) {
  const auto size = static_cast<std::size_t>(rows);
  const auto batch_at = [&](std::size_t first) {
    const std::size_t count = std::min(size, round.order.size() - first);
    return make_batch(source, round, std::span<const std::size_t>(round.order).subspan(first, count), starts);
  };
  const std::size_t step = size * static_cast<std::size_t>(comm.size());
  std::size_t first = size * static_cast<std::size_t>(comm.rank());
  EvalBatch next;
  if (first < round.order.size()) next = batch_at(first);
  for (; first < round.order.size(); first += step) {
    const EvalBatch batch = std::move(next);
    Tensor losses;
    model.loss_sum(batch.tensors, &losses);
    if (first + step < round.order.size()) next = batch_at(first + step);
    keep_losses(batch, losses.to(Stream{}), round);
    comm.progress().beat();
  }
}

}  // namespace

void visit_scored_windows(const Decoder& model, const TokenSource& source, const std::vector<EvalWindow>& windows,
                          std::int64_t rows, std::span<const std::int64_t> starts, Communicator& comm,
                          const std::function<void(const ScoredWindow&)>& visit) {
  const NoGrad no_grad;
  std::vector<std::int32_t> text;
  for (std::size_t first = 0, last = 0; first < windows.size(); first = last) {
    for (std::int64_t targets = 0; last < windows.size() && targets < kRoundTargets; ++last)
      targets += windows[last].targets();
    Round round(std::span<const EvalWindow>(windows).subspan(first, last - first));
    score_round(model, source, rows, starts, comm, round);
    // A place is filled by one rank and 0 elsewhere: the sum over ranks is exact in any order.
    comm.all_reduce(round.losses, ReduceOp::sum, "evaluation losses");
    for (std::size_t i = 0; i < round.windows.size(); ++i) {
      const EvalWindow& w = round.windows[i];
      text.resize(static_cast<std::size_t>(w.end - w.begin));
      source.read(w.begin, text);
      visit({w, text, {round.losses.data<float>() + round.offsets[i], static_cast<std::size_t>(w.targets())}});
    }
  }
}

}  // namespace sieve
