#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <thread>

#include "cli/command_line.h"
#include "core/build.h"
#include "core/parallel_for.h"
#include "core/version.h"
#include "dist/communicator.h"
#include "io/archive.h"
#include "io/file.h"
#include "tensor/allocator.h"
#include "tensor/runtime.h"
#include "train/format.h"
#include "train/run_lock.h"

namespace sieve {
namespace {

namespace fs = std::filesystem;

std::string cpu_name() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

std::string cpu_features() {
  std::ifstream in("/proc/cpuinfo");
  std::string flags, found;
  for (std::string line; std::getline(in, line);) {
    if (line.rfind("flags", 0) == 0) {
      flags = line + " ";
      break;
    }
  }
  for (const char* f : {"avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16"}) {
    if (flags.find(cat(" ", f, " ")) != std::string::npos) found += cat(found.empty() ? "" : " ", f);
  }
  return found;
}

// Does the file system of `folder` do what checkpoints need: fsync, atomic replacement of a link, locks?
std::string file_system_report(const fs::path& folder) {
  const fs::path parent = folder / cat(".sieve-doctor-", ::getpid());
  std::string report;
  try {
    ArchiveWriter archive(parent, "probe");
    archive.write("file", "text");
    archive.commit();
    set_archive_link(parent, "latest", "probe");
    report = verify_archive(parent / "latest").empty() ? "writes, fsyncs, renames and links"
                                                       : "what was written reads back differently";
  } catch (const std::exception& e) { report = e.what(); }
  std::error_code ignored;
  fs::remove_all(parent, ignored);
  return report;
}

// A second lock on a folder that is locked already must be refused, or two runs would write into one folder.
std::string lock_report(const fs::path& folder) {
  const fs::path probe = folder / cat(".sieve-doctor-lock-", ::getpid());
  std::string report;
  try {
    const RunLock first(probe);
    if (!first.held()) return "no locks: two runs in one folder would not notice each other";
    try {
      const RunLock second(probe);
      report = "a locked folder was locked again: two runs in one folder would not notice each other";
    } catch (const Error&) { report = "exclusive, released with the process"; }
  } catch (const Error& e) { report = e.what(); }
  return report;
}

Exit run(Communicator& comm, const std::string& folder) {
  const auto say = [](const std::string& what, const std::string& value) {
    std::cout << what << std::string(what.size() < 14 ? 14 - what.size() : 1, ' ') << value << '\n';
  };
  const auto yes = [](bool on) { return std::string(on ? "yes" : "no"); };
  say("sieve", cat(build::version, " (", git_revision(), ", ", build::build_type, ", -march=", build::march, ", ",
                   build::compiler, ")"));
  say("built with",
      cat("cuda ", yes(build::with_cuda), ", cudnn ", yes(build::with_cudnn), ", nccl ", yes(build::with_nccl),
          ", mpi ", yes(build::with_mpi), ", openmp ", yes(build::with_openmp), ", onednn ", yes(build::with_onednn)));
  say("libraries", library_versions());
  say("cpu", cat(cpu_name(), ", ", std::thread::hardware_concurrency(), " cores, ", cpu_features()));
  say("threads", std::to_string(num_threads()));
  say("memory", format_bytes(static_cast<double>(physical_memory_bytes())));
  for (int i = 0; i < cuda_device_count(); ++i) {
    const DeviceInfo gpu = device_info({Device::Kind::cuda, i});
    say(cat("gpu ", i), cat(gpu.name, ", sm_", gpu.major, gpu.minor, ", ", gpu.multiprocessors, " multiprocessors, ",
                            format_bytes(static_cast<double>(free_memory_bytes({Device::Kind::cuda, i}))), " of ",
                            format_bytes(static_cast<double>(gpu.memory_bytes)), " free, driver for ", gpu.driver));
  }
  if (build::with_cuda && cuda_device_count() == 0)
    say("gpu", no_cuda_reason().empty() ? "none seen (nvidia-smi; CUDA_VISIBLE_DEVICES)" : no_cuda_reason());
  say("ranks", cat(comm.size(), " by ", comm.backend()));
  say("file system", cat(fs::absolute(folder).string(), ": ", file_system_report(folder)));
  say("locks", lock_report(folder));
  std::error_code error;
  const fs::space_info space = fs::space(folder, error);
  if (!error) say("free space", format_bytes(static_cast<double>(space.available)));
  return Exit::ok;
}

}  // namespace

void add_doctor(CommandLine& line) {
  auto folder = std::make_shared<std::string>(".");
  CLI::App* command = add_command(line, line.app, "doctor", "what this build and this machine can do");
  command->add_option("FOLDER", *folder, "where runs would be written (default: here)");
  command->callback([&line, folder] { line.action = [folder](Communicator& comm) { return run(comm, *folder); }; });
}

}  // namespace sieve
