#include "train/manifest.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <string>

#include "core/build.h"
#include "core/parallel_for.h"
#include "core/version.h"
#include "train/checkpoint.h"
#include "train/compute.h"

namespace sieve {
namespace {

std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    const auto colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

Json hosts_of(Communicator& comm) {
  constexpr std::int64_t kLength = 64;
  Tensor name = zeros({kLength}, DType::u8);
  gethostname(reinterpret_cast<char*>(name.data<std::uint8_t>()), kLength - 1);
  const Tensor all = comm.all_gather(name, "host names");
  Json hosts = Json::array();
  for (int rank = 0; rank < comm.size(); ++rank)
    hosts.push_back(reinterpret_cast<const char*>(all.data<std::uint8_t>() + rank * kLength));
  return hosts;
}

}  // namespace

Json run_manifest(const RunConfig& config, const RunData& data, const RunPlan& plan,
                  const std::filesystem::path& restored, Communicator& comm) {
  const auto now =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
  return Json{
      {"version", build::version},
      {"git", git_revision()},
      {"build",
       {{"type", build::build_type},
        {"march", build::march},
        {"sanitize", build::sanitize},
        {"compiler", build::compiler},
        {"cuda", build::with_cuda},
        {"mpi", build::with_mpi},
        {"openmp", build::with_openmp},
        {"onednn", build::with_onednn}}},
      {"hosts", hosts_of(comm)},
      {"backend", std::string(comm.backend())},
      {"ranks", comm.size()},
      {"threads_per_rank", num_threads()},
      {"cpu", cpu_name()},
      {"device", describe_device(compute_stream(config.device.type, comm.local_rank()))},
      {"started", now},
      {"restored_from", restored.string()},
      {"seed", config.run.seed},
      {"plan", plan_json(plan)},
      {"tokenizer",
       {{"name", data.tokenizer->name()}, {"hash", data.tokenizer_hash}, {"vocab_size", data.tokenizer->vocab_size()}}},
      {"data",
       {{"train_hash", data.train_hash},
        {"train_tokens", data.train->tokens()},
        {"val_hash", data.val_hash},
        {"val_tokens", data.val ? data.val->tokens() : 0}}},
      {"config_hash", resume_hash(config)}};
}

}  // namespace sieve
