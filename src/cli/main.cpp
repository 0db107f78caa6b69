// The program: chooses the subcommand, starts the ranks' session, and turns errors into exit codes.
#include <csignal>
#include <cstdlib>
#include <iostream>
#include <new>
#include <thread>

#include "cli/command_line.h"
#include "core/build.h"
#include "core/log.h"
#include "core/parallel_for.h"
#include "core/version.h"
#include "dist/communicator.h"
#include "dist/die.h"
#include "dist/launch.h"
#include "dist/signals.h"

namespace {

using namespace sieve;

std::string version_text() {
  std::string text = cat("sieve ", build::version, " (", git_revision(), ", ", build::build_type, ")\nfeatures:");
  if constexpr (build::with_cuda) text += " cuda";
  if constexpr (build::with_mpi) text += " mpi";
  if constexpr (build::with_openmp) text += " openmp";
  if constexpr (build::with_onednn) text += " onednn";
  return text;
}

void add_subcommands(CommandLine& line) {
  add_pretrain(line);
  add_finetune(line);
  add_eval(line);
  add_generate(line);
  add_probe(line);
  add_plan(line);
  add_data(line);
  add_tokenizer(line);
  add_ckpt(line);
  add_config(line);
  add_bench(line);
  add_doctor(line);
  add_help(line);
}

// mpirun's ranks share a machine's cores unless OMP_NUM_THREADS or --threads says otherwise.
void choose_threads(const CommandLine& line, const Launch& launch) {
  if (line.threads > 0) return set_num_threads(line.threads);
  if (std::getenv("OMP_NUM_THREADS")) return set_num_threads(num_threads());
  const int cores = available_cores();
  if (cores < static_cast<int>(std::thread::hardware_concurrency()))
    return set_num_threads(cores);  // this rank is bound to cores of its own
  const int local =
      std::getenv("OMPI_COMM_WORLD_LOCAL_SIZE") ? std::atoi(std::getenv("OMPI_COMM_WORLD_LOCAL_SIZE")) : launch.size;
  set_num_threads(std::max(1, cores / std::max(1, local)));
}

LogLevel chosen_level(const CommandLine& line) {
  if (line.verbose) return LogLevel::debug;
  if (line.quiet) return LogLevel::warn;
  return parse_log_level(line.log_level);
}

// https://no-color.org: the variable set to anything but nothing; the flag is nearer.
LogColor chosen_color(const CommandLine& line) {
  if (line.color == "always") return LogColor::always;
  const char* no_color = std::getenv("NO_COLOR");
  const bool never = line.color == "never" || (no_color != nullptr && *no_color != '\0');
  return never ? LogColor::never : LogColor::automatic;
}

Exit run(CommandLine& line) {
  const Launch launch = detect_launch();
  log_init(launch.rank, chosen_level(line), chosen_color(line));
  if (line.stops_on_request) install_signal_handlers(launch.launcher);
  choose_threads(line, launch);
  std::unique_ptr<Communicator> comm = make_communicator();
  try {
    return line.action(*comm);
  } catch (const Error& e) { die(e.code(), e.what()); } catch (const std::bad_alloc&) {
    die(Exit::memory, "out of memory");
  } catch (const std::exception& e) { die(Exit::internal, cat("internal error: ", e.what())); }
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // a closed pipe is an error of that write, not the end of a training run
  CommandLine line;
  line.argv.assign(argv, argv + argc);
  line.app.name("sieve");
  line.app.description(
      "Pretrains, fine-tunes and evaluates decoder-only transformers with SparseK attention and local windows.\n"
      "Start with: sieve pretrain configs/demo.yaml   Topics: sieve help");
  line.app.set_version_flag("--version", version_text());
  line.app.require_subcommand(1);
  try {
    add_subcommands(line);
    line.app.parse(argc, argv);
    return static_cast<int>(run(line));
  } catch (const CLI::Success& e) {
    return line.app.exit(e);  // --help, --version
  } catch (const CLI::ParseError& e) {
    if (const std::string hint = suggestion(line); !hint.empty()) {
      std::cerr << hint << "\nRun with --help for more information.\n";  // the parser's words would only blur it
    } else if (argc == 1) {
      std::cerr << line.app.help();
    } else {
      line.app.exit(e, std::cerr, std::cerr);
    }
    return static_cast<int>(Exit::config);
  } catch (const Error& e) {
    log_error(e.what());
    return static_cast<int>(e.code());
  } catch (const std::exception& e) {
    log_error("internal error: ", e.what());
    return static_cast<int>(Exit::internal);
  }
}
