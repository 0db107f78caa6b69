// The folder of a run (interface: docs/configuration.md, "Run folder"). Only rank 0 writes here, apart from
// logs/rankNNNN.log.
//   config.yaml  config.input/  manifest.json  status.json  metrics.jsonl  metrics.csv  tb/  logs/  samples/  eval/
//   checkpoints/
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "core/error.h"
#include "io/json.h"
#include "io/yaml.h"

namespace sieve {

class RunFolder {
 public:
  explicit RunFolder(std::filesystem::path root) : root_(std::move(root)) {}

  const std::filesystem::path& root() const { return root_; }
  std::filesystem::path checkpoints() const { return root_ / "checkpoints"; }
  std::filesystem::path status_file() const { return root_ / "status.json"; }
  std::filesystem::path log_file(int rank) const;
  std::filesystem::path sample_file(std::int64_t step) const;

  // Which checkpoint the run starts from, by --resume (never | auto | must | PATH); empty: from scratch. A folder that
  // is not empty (a lock does not count) with `never` is Error(Exit::config); no checkpoint with `must` or at PATH is
  // Error(Exit::data).
  std::filesystem::path choose_checkpoint(const std::string& resume) const;
  // Creates the folders; keeps the configuration as given: every file read and the command line. `start_step`: of the
  // restored checkpoint.
  void create(const ConfigTree& tree, const std::vector<std::string>& argv, std::int64_t start_step) const;
  // Checkpoints of later steps than the one a run goes on from belong to an abandoned continuation: renamed to
  // superseded_step_*. Returns their names.
  std::vector<std::string> set_aside_after(std::int64_t step) const;
  void write_config(const std::string& yaml) const;
  void write_manifest(const Json& manifest) const;
  void write_sample(std::int64_t step, const std::string& text) const;

 private:
  std::filesystem::path root_;
};

// status.json: rewritten atomically, at most every `interval` seconds while running.
struct RunStatus {
  std::string status = "running";  // running | finished | preempted | failed
  std::int64_t step = 0, total_steps = 0, tokens = 0;
  double loss = 0;
  int exit_code = -1;   // -1: still running
  std::string message;  // of a failure
};

class StatusFile {
 public:
  StatusFile(std::filesystem::path path, double interval) : path_(std::move(path)), interval_(interval) {}
  void beat(const RunStatus& status);   // writes if the interval has passed
  void write(const RunStatus& status);  // now

 private:
  std::filesystem::path path_;
  double interval_, last_ = -1e300;
};

// The last word of a process that dies elsewhere than in its training loop: status.json becomes "failed" if this
// process wrote it and it says "running". Never throws, and takes at most `seconds`: the disk may be what hangs.
void leave_status_failed(const std::filesystem::path& status_file, Exit code, const std::string& message,
                         double seconds = 0.5);

}  // namespace sieve
