#include "train/checkpoint_writer.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "core/error.h"
#include "tensor/flat_layout.h"
#include "tensor/runtime.h"
#include "train/format.h"

namespace sieve {
namespace {

bool on_gpu(const TensorMap& tensors) {
  return std::any_of(tensors.begin(), tensors.end(), [](const auto& t) { return t.second.device().is_cuda(); });
}

// Room for copies on the host. What comes from a GPU gets one page-locked piece, so that all of it is copied by one
// device without a wait in between.
TensorMap host_places(const TensorMap& tensors) {
  TensorMap out;
  std::vector<Shape> shapes;
  for (const auto& [name, tensor] : tensors) shapes.push_back(tensor.shape());
  const bool pinned = on_gpu(tensors);
  const FlatLayout layout(shapes);
  const Tensor piece = pinned ? empty_pinned({layout.numel}, DType::f32) : Tensor();
  std::size_t i = 0;
  for (const auto& [name, tensor] : tensors) {
    require(!pinned || tensor.dtype() == DType::f32, "checkpoint", name, " is no master or moment in fp32");
    const std::int64_t begin = layout.begins[i], end = begin + layout.numels[i];
    out[name] = pinned ? piece.slice(0, begin, end).reshape(tensor.shape()) : empty_like(tensor);
    ++i;
  }
  return out;
}

// The copies of the previous checkpoint are written over: no allocation once the first one was made.
void copy_tensors(const TensorMap& from, TensorMap& to) {
  const bool fits = std::equal(from.begin(), from.end(), to.begin(), to.end(), [](const auto& a, const auto& b) {
    return a.first == b.first && a.second.shape() == b.second.shape();
  });
  if (!fits) to = host_places(from);
  for (const auto& [name, tensor] : from) to[name].copy_from(tensor);
}

void wait_for_copies(const TensorMap& from) {
  if (on_gpu(from)) synchronize(from.begin()->second.stream());
}

}  // namespace

CheckpointWriter::CheckpointWriter(std::filesystem::path folder, PruneRules rules, bool background)
    : folder_(std::move(folder)), rules_(rules), background_(background) {
  make_directories(folder_);
  clean_stale_archives(folder_);
  link_checkpoints(folder_, rules_);  // a writer may have been killed between a checkpoint and its links
  if (background_) thread_ = std::thread([this] { run(); });
}

CheckpointWriter::~CheckpointWriter() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void CheckpointWriter::save(const CheckpointContent& content) {
  wait();
  if (!background_) {
    snapshot_ = content;
    write();
    snapshot_ = {};
    return;
  }
  take_snapshot(content);
  {
    const std::lock_guard lock(mutex_);
    busy_ = true;
  }
  changed_.notify_all();
}

std::vector<std::string> CheckpointWriter::poll() {
  std::unique_lock lock(mutex_);
  rethrow_failure(lock);
  return std::exchange(messages_, {});
}

bool CheckpointWriter::busy() {
  const std::lock_guard lock(mutex_);
  return busy_;
}

bool CheckpointWriter::wait_for(double seconds) {
  std::unique_lock lock(mutex_);
  if (!changed_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return !busy_; })) return false;
  rethrow_failure(lock);
  return true;
}

void CheckpointWriter::wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !busy_; });
  rethrow_failure(lock);
}

void CheckpointWriter::rethrow_failure(std::unique_lock<std::mutex>&) {
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void CheckpointWriter::take_snapshot(const CheckpointContent& content) {
  snapshot_.state = content.state;
  snapshot_.config_yaml = content.config_yaml;
  snapshot_.config_json = content.config_json;
  snapshot_.tokenizer = content.tokenizer;
  copy_tensors(content.model, snapshot_.model);
  copy_tensors(content.scorers, snapshot_.scorers);
  copy_tensors(content.optimizer, snapshot_.optimizer);
  for (const TensorMap* part : {&content.model, &content.scorers, &content.optimizer}) wait_for_copies(*part);
}

void CheckpointWriter::write() {
  const auto start = std::chrono::steady_clock::now();
  const ArchiveReport report = write_checkpoint(folder_, snapshot_);
  prune_checkpoints(folder_, rules_);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  const std::lock_guard lock(mutex_);
  messages_.push_back(cat("saved ", report.path.string(), " (", format_bytes(static_cast<double>(report.bytes)), " in ",
                          format_fixed(took.count(), 1), " s)"));
}

void CheckpointWriter::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return busy_ || stop_; });
    if (!busy_) return;
    lock.unlock();
    std::exception_ptr error;
    try {
      write();
    } catch (...) { error = std::current_exception(); }
    lock.lock();
    busy_ = false;
    error_ = error;
    changed_.notify_all();
  }
}

}  // namespace sieve
