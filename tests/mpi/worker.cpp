// What mpirun starts in the tests of src/dist:
//   mpi_worker collectives [--funneled] [--chunk BYTES]
//     every collective on whole numbers, compared by ==
//   mpi_worker hash MICRO_BATCHES [--fast] [--late] [--no-norm]
//     hash of a reduced random gradient, loss and norm (rank 0, stdout); --late: no overlap
//   mpi_worker train DIR TIMEOUT [--hang RANK] [--freeze RANK] [--data-error RANK]
//     a training loop without a model, until a signal stops it; at step 40 RANK loops for ever, or stops itself
//   mpi_worker world
//     prints rank and size
// With --gpu tensors lie on a GPU per rank and travel by NCCL; with fewer GPUs than ranks all say "skipped", with
// --own-gpu only where there is none.
// Written as the program itself is: make_communicator() outside, errors through die().
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "core/log.h"
#include "core/rng.h"
#include "dist/communicator.h"
#include "dist/die.h"
#include "dist/gpus.h"
#include "dist/launch.h"
#include "dist/mpi_communicator.h"
#include "dist/reducer.h"
#include "dist/signals.h"
#include "dist/step_summary.h"
#include "dist/tree.h"
#include "dist/watchdog.h"

using namespace sieve;

namespace {

using Arguments = std::vector<std::string>;

// The value after a flag, or `fallback`; a flag without a value yields "".
std::string option(const Arguments& args, const std::string& name, const std::string& fallback) {
  for (std::size_t i = 0; i < args.size(); ++i) {
    if (args[i] == name) return i + 1 < args.size() ? args[i + 1] : "";
  }
  return fallback;
}

bool has(const Arguments& args, const std::string& name) { return option(args, name, "absent") != "absent"; }

// Element i on rank r: small enough for sums to be exact.
Tensor pattern(std::int64_t n, int rank, DType dtype) {
  Tensor t = empty({n}, DType::f64);
  for (std::int64_t i = 0; i < n; ++i) t.data<double>()[i] = static_cast<double>((i % 97) * (rank + 1));
  return t.to(dtype);
}

// Where the tensors of this rank lie. Connects the GPUs where there are some.
Stream place_of(Communicator& comm, const Arguments& args) {
  if (!has(args, "--gpu")) return {};
  const Device device = gpu_of_rank(comm.local_rank(), cuda_device_count());
  const Stream stream = main_stream(device);
  connect_gpus(comm, device, 60);
  return stream;
}

// Does a have the bytes of b? Either may be on a GPU.
bool same(const Tensor& a, const Tensor& b) {
  const Tensor x = a.to(Stream{}), y = b.to(Stream{});
  return x.nbytes() == y.nbytes() && std::memcmp(x.raw(), y.raw(), x.nbytes()) == 0;
}

void check_reductions(Communicator& comm, std::int64_t n, const Stream& on) {
  const double sum = comm.size() * (comm.size() + 1) / 2.0;
  for (DType dtype : {DType::f32, DType::f64, DType::i32, DType::i64}) {
    Tensor total = pattern(n, comm.rank(), dtype).to(on), highest = pattern(n, comm.rank(), dtype).to(on);
    comm.all_reduce(total, ReduceOp::sum, "sum");
    comm.all_reduce(highest, ReduceOp::max, "max");
    const Tensor sums = total.to(Stream{}).to(DType::f64), maxima = highest.to(Stream{}).to(DType::f64);
    for (std::int64_t i = 0; i < n; ++i) {
      const double one = static_cast<double>(i % 97), got = sums.data<double>()[i], max = maxima.data<double>()[i];
      require(got == one * sum, "sum", name_of(dtype), " element ", i, " is ", got);
      require(max == one * comm.size(), "max", name_of(dtype), " element ", i, " is ", max);
    }
    if (!is_float(dtype)) continue;
    Tensor tree = pattern(n, comm.rank(), dtype).to(on);
    tree_all_reduce(comm, tree, "tree");
    require(same(tree, total), "tree", "differs from all_reduce on whole numbers");
    const int root = comm.size() / 2;
    Tensor mine = pattern(n, comm.rank(), dtype).to(on);
    comm.reduce(mine, root, "reduce");
    require(comm.rank() != root || same(mine, total), "reduce", "differs from all_reduce on whole numbers");
  }
}

void check_moves(Communicator& comm, std::int64_t n, const Stream& on) {
  const int r = comm.rank(), size = comm.size();
  Tensor sent = pattern(n, r, DType::f32).to(on);
  comm.broadcast(sent, size - 1, "broadcast");
  const Tensor last = pattern(n, size - 1, DType::f32);
  require(same(sent, last), "broadcast", "is not what rank ", size - 1, " sent");
  const Tensor all = comm.all_gather(pattern(n, r, DType::i32).to(on), "all_gather");
  require(all.shape() == Shape{size, n}, "all_gather", all.shape());
  for (int from = 0; from < size; ++from) {
    const Tensor part = pattern(n, from, DType::i32);
    require(same(all.slice(0, from, from + 1), part), "all_gather", "part ", from);
  }
  const int peer = r ^ 1;
  if (peer < size) {
    Tensor got = empty({n + peer}, DType::f64, on);  // sizes differ
    comm.exchange(pattern(n + r, r, DType::f64).to(on), got, peer, "exchange");
    const Tensor theirs = pattern(n + peer, peer, DType::f64);
    require(same(got, theirs), "exchange", "is not what rank ", peer, " sent");
  }
}

void collectives(const Arguments& args) {
  const MpiOptions options{.funneled = has(args, "--funneled"),
                           .chunk_bytes = std::stoul(option(args, "--chunk", "1073741824"))};
  const auto comm = has(args, "--gpu") ? make_communicator() : make_mpi_communicator(detect_launch(), options);
  require(comm->backend() == "mpi" || has(args, "--gpu"), "backend", comm->backend());
  const Stream on = place_of(*comm, args);
  for (std::int64_t n : {0, 1, 3, 1000, 20011}) {
    check_reductions(*comm, n, on);
    check_moves(*comm, n, on);
  }
  comm->barrier("middle");
  const int r = comm->rank(), size = comm->size();
  require(comm->all_reduce(std::int64_t{r + 1}, ReduceOp::sum, "ranks") == size * (size + 1) / 2, "host sum",
          "is wrong");
  require(comm->all_reduce(r * 0.5, ReduceOp::max, "half ranks") == (size - 1) * 0.5, "host max", "is wrong");
  const std::string text(5000, static_cast<char>('a' + r));
  require(comm->broadcast(text, size - 1, "text") == std::string(5000, static_cast<char>('a' + size - 1)), "text",
          "is wrong");
  StepSummary mine;
  mine.tokens = 10;
  mine.flags.stop = r == size - 1;
  const StepSummary summary = reduce_step_summary(*comm, mine);
  require(summary.flags.stop && summary.tokens == 10 * size, "summary", "is wrong");
  if (r == 0) std::printf("collectives correct on %d ranks\n", size);
}

std::uint64_t fnv1a(std::uint64_t h, const void* data, std::size_t bytes) {
  const auto* p = static_cast<const unsigned char*>(data);
  for (std::size_t i = 0; i < bytes; ++i) h = (h ^ p[i]) * 0x100000001b3ull;
  return h;
}

const std::vector<GradientSlot>& model() {
  static const std::vector<GradientSlot> slots = {
      {"embedding", {500, 64}}, {"norm", {64}}, {"weight", {192, 64}}, {"bias", {3}}};
  return slots;
}

void hash(Communicator& comm, const Arguments& args) {
  const std::int64_t micro_batches = std::stoll(args.at(0));
  require(micro_batches % comm.size() == 0, "hash", micro_batches, " micro-batches on ", comm.size(), " ranks");
  const std::int64_t mine = micro_batches / comm.size();
  const Stream on = place_of(comm, args);
  const ReducerOptions options{
      .bucket_bytes = 50000, .deterministic = !has(args, "--fast"), .overlap = !has(args, "--late")};
  GradientReducer reducer(comm, model(), options, on);
  TreeSum loss(mine);
  reducer.begin_step(mine);
  for (std::int64_t j = comm.rank() * mine; j < (comm.rank() + 1) * mine; ++j) {
    for (std::int64_t p = reducer.parameters() - 1; p >= 0; --p)
      reducer.ready(p, random_normal(model()[static_cast<std::size_t>(p)].shape, 0, 1, 11, stream_of(p, j)).to(on));
    loss.add(Philox{11, 99}.normal(static_cast<std::uint64_t>(j)));
    reducer.end_micro_batch();
  }
  reducer.finish();
  StepSummary summary;
  summary.loss_sum = loss.result();
  // Between devices only the gradient has the same bits: the norm's tree is another one on a GPU.
  if (!has(args, "--no-norm")) summary.squared_norm = reducer.squared_norm().item();
  summary = reduce_step_summary(comm, summary);
  std::uint64_t h = 0xcbf29ce484222325ull;
  for (std::int64_t p = 0; p < reducer.parameters(); ++p) {
    const Tensor g = reducer.gradient(p).to(Stream{});
    h = fnv1a(h, g.raw(), g.nbytes());
  }
  h = fnv1a(h, &summary.loss_sum, sizeof summary.loss_sum);
  h = fnv1a(h, &summary.squared_norm, sizeof summary.squared_norm);
  const auto hashes = comm.all_gather(static_cast<std::int64_t>(h), "hash");
  for (std::int64_t other : hashes) require(other == hashes[0], "hash", "ranks disagree");
  if (comm.rank() == 0) std::printf("%016llx\n", static_cast<unsigned long long>(h));
}

// DIR/pid<r> holds the process id of rank r; DIR/running<r> appears once training is under way.
Exit train(Communicator& comm, const Arguments& args) {
  const std::string dir = args.at(0);
  const Watchdog watchdog(comm.progress(), comm.rank(), std::stod(args.at(1)));
  const auto rank_of = [&](const char* flag) { return std::stoi(option(args, flag, "-1")); };
  const int hangs = rank_of("--hang"), freezes = rank_of("--freeze"), breaks = rank_of("--data-error");
  const Stream on = place_of(comm, args);
  GradientReducer reducer(comm, model(), {.bucket_bytes = 50000}, on);
  std::ofstream(dir + "/pid" + std::to_string(comm.rank())) << getpid() << "\n";
  const Progress::Scope scope(comm.progress(), "train");
  for (std::int64_t step = 0; step < 10000; ++step) {
    comm.progress().set_step(step);
    if (step == 20) std::ofstream(dir + "/running" + std::to_string(comm.rank())) << "\n";
    if (step == 40 && comm.rank() == breaks) fail(Exit::data, "shard", "rank ", breaks, " found a truncated shard");
    if (step == 40 && comm.rank() == hangs) {
      const Progress::Scope forever(comm.progress(), "a loop that never ends");
      for (;;) std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    if (step == 40 && comm.rank() == freezes) raise(SIGSTOP);
    reducer.begin_step(1);
    for (std::int64_t p = reducer.parameters() - 1; p >= 0; --p) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      reducer.ready(p, full(model()[static_cast<std::size_t>(p)].shape, 1, DType::f32, on));
    }
    reducer.end_micro_batch();
    reducer.finish();
    StepSummary mine;
    mine.squared_norm = reducer.squared_norm().item();
    mine.flags.stop = stop_requested() == StopReason::preempted;
    mine.flags.interrupt = stop_requested() == StopReason::interrupted;
    const StepSummary all = reduce_step_summary(comm, mine);
    if (all.flags.interrupt) return Exit::interrupted;
    if (all.flags.stop) {
      log_info("rank ", comm.rank(), ": saved after step ", step);
      return Exit::preempted;
    }
  }
  fail(Exit::internal, "worker", "nothing ended the training");
}

}  // namespace

int main(int argc, char** argv) {
  Arguments args(argv + 1, argv + argc);
  const std::string command = args.empty() ? "" : args[0];
  if (!args.empty()) args.erase(args.begin());
  std::unique_ptr<Communicator> comm;
  try {
    const Launch launch = detect_launch();
    install_signal_handlers(launch.launcher);
    log_init(launch.rank, LogLevel::info);
    if (has(args, "--gpu") && cuda_device_count() < (has(args, "--own-gpu") ? 1 : launch.size)) {
      if (launch.rank == 0) std::printf("skipped: no CUDA device for every one of %d ranks\n", launch.size);
      return 0;
    }
    if (command == "collectives") {
      collectives(args);
      return 0;
    }
    comm = make_communicator();
    if (command == "hash") return hash(*comm, args), 0;
    if (command == "train") return static_cast<int>(train(*comm, args));
    if (command == "world")
      return std::printf("rank %d of %d, %s\n", comm->rank(), comm->size(), comm->backend().data()), 0;
    fail(Exit::config, "worker", "unknown command \"", command, "\"");
  } catch (const Error& e) { die(e.code(), e.what()); }
}
