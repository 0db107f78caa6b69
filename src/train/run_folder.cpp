#include "train/run_folder.h"

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <future>
#include <memory>
#include <thread>

#include "core/log.h"
#include "train/checkpoint.h"
#include "train/run_lock.h"

namespace sieve {
namespace {

std::string numbered(const char* format, std::int64_t number) {
  char text[48];
  std::snprintf(text, sizeof text, format, static_cast<long long>(number));
  return text;
}

std::string quoted_line(const std::vector<std::string>& argv) {
  std::string line;
  for (const auto& argument : argv) {
    std::string quoted = "'";
    for (const char c : argument) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
    line += (line.empty() ? "" : " ") + quoted + "'";
  }
  return line + "\n";
}

bool holds_something(const std::filesystem::path& folder) {
  if (!std::filesystem::exists(folder)) return false;
  if (!std::filesystem::is_directory(folder)) return true;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().filename() != RunLock::kFileName) return true;
  }
  return false;
}

double unix_time() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace

std::filesystem::path RunFolder::log_file(int rank) const { return root_ / "logs" / numbered("rank%04lld.log", rank); }
std::filesystem::path RunFolder::sample_file(std::int64_t step) const {
  return root_ / "samples" / numbered("step_%08lld.txt", step);
}

std::filesystem::path RunFolder::choose_checkpoint(const std::string& resume) const {
  if (resume == "never") {
    if (holds_something(root_))
      fail(Exit::config, "run.dir", root_.string(),
           " is not empty: continue it with --resume auto, or give another folder with -o");
    return {};
  }
  if (resume != "auto" && resume != "must") {
    if (!std::filesystem::exists(resume))
      fail(Exit::data, "resume", resume, " does not exist (auto, must, never, or the path of a checkpoint)");
    if (std::filesystem::exists(std::filesystem::path(resume) / "manifest.json") &&
        step_of_checkpoint(std::filesystem::canonical(resume).filename()))
      return std::filesystem::canonical(resume);
    fail(Exit::data, "resume", resume, " is no checkpoint: it has no manifest.json, or its name is not step_N");
  }
  const auto newest = newest_checkpoint(checkpoints());
  if (newest.empty() && resume == "must")
    fail(Exit::data, "resume", checkpoints().string(), " holds no checkpoint to continue from");
  return newest;
}

void RunFolder::create(const ConfigTree& tree, const std::vector<std::string>& argv, std::int64_t start_step) const {
  const auto input = root_ / "config.input" / numbered("start_%08lld", start_step);
  for (const auto& folder : {checkpoints(), root_ / "logs", root_ / "samples", input}) make_directories(folder);
  std::int64_t number = 0;
  for (const auto& file : tree.files())
    write_file_atomic(input / (numbered("%02lld-", number++) + file.filename().string()),
                      read_file(file, std::uint64_t{64} << 20));
  write_file_atomic(input / "argv", quoted_line(argv));
}

std::vector<std::string> RunFolder::set_aside_after(std::int64_t step) const {
  std::vector<std::string> moved;
  if (!std::filesystem::is_directory(checkpoints())) return moved;
  for (const auto& name : list_archives(checkpoints())) {
    const auto at = step_of_checkpoint(name);
    if (!at || *at <= step) continue;
    const auto aside = checkpoints() / "superseded" / name;
    make_directories(aside.parent_path());
    std::filesystem::remove_all(aside);
    std::filesystem::rename(checkpoints() / name, aside);
    moved.push_back(name);
  }
  if (!moved.empty()) sync_directory(checkpoints());
  return moved;
}

void RunFolder::write_config(const std::string& yaml) const { write_file_atomic(root_ / "config.yaml", yaml); }
void RunFolder::write_manifest(const Json& manifest) const { write_json(root_ / "manifest.json", manifest); }

void RunFolder::write_sample(std::int64_t step, const std::string& text) const {
  write_file_atomic(sample_file(step), text);
}

void StatusFile::beat(const RunStatus& status) {
  if (unix_time() - last_ >= interval_) write(status);
}

void StatusFile::write(const RunStatus& status) {
  last_ = unix_time();
  Json json{{"status", status.status},
            {"step", status.step},
            {"total_steps", status.total_steps},
            {"tokens", status.tokens},
            {"loss", status.loss},
            {"heartbeat", last_},
            {"pid", getpid()},
            {"exit_code", status.exit_code < 0 ? Json(nullptr) : Json(status.exit_code)}};
  if (!status.message.empty()) json["message"] = status.message;
  write_json(path_, json);
}

void leave_status_failed(const std::filesystem::path& status_file, Exit code, const std::string& message,
                         double seconds) {
  const auto done = std::make_shared<std::promise<void>>();
  std::future<void> end = done->get_future();
  std::thread([=] {
    try {
      if (std::filesystem::exists(status_file)) {
        Json json = read_json(status_file);
        if (json.value("status", "") == "running" && json.value("pid", 0) == getpid()) {
          json["status"] = "failed";
          json["exit_code"] = static_cast<int>(code);
          json["message"] = message;
          write_json(status_file, json);
        }
      }
    } catch (const std::exception& e) { log_debug("status.json: ", e.what()); }
    done->set_value();
  }).detach();
  end.wait_for(std::chrono::duration<double>(seconds));
}

}  // namespace sieve
