#include "train/console.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>

#include "core/error.h"
#include "core/log.h"
#include "train/format.h"

namespace sieve {
namespace {

std::size_t terminal_width() {
  winsize size{};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 120;
}

}  // namespace

bool stderr_is_terminal() { return isatty(STDERR_FILENO) == 1; }

std::string progress_line(const ProgressRow& row) {
  const std::string total = std::to_string(row.total_steps), step = std::to_string(row.step);
  std::string line =
      "step " + std::string(total.size() > step.size() ? total.size() - step.size() : 0, ' ') + step + "/" + total;
  line += " loss " + format_fixed(row.loss, 3);
  if (row.val) line += " val " + format_fixed(*row.val, 3);
  line += " lr " + format_scientific(row.lr) + " gnorm " + format_fixed(row.grad_norm, 2);
  line += " " + format_count(row.tokens_per_second) + " tok/s";
  if (row.mfu) line += " mfu " + format_fixed(100 * *row.mfu, 1) + "%";
  line += " mem " + format_bytes(row.memory_bytes) + " data " + format_fixed(100 * row.data_wait, 1) + "%";
  return line + " eta " + format_seconds(row.eta_seconds);
}

void ConsoleLine::show(const std::string& line) {
  if (!redraw_) return;
  // A line wider than the terminal would wrap, and the next carriage return would leave its first half behind.
  std::fprintf(stderr, "\r\033[K%s", line.substr(0, terminal_width() - 1).c_str());
  std::fflush(stderr);
  shown_ = true;
}

void ConsoleLine::record(const std::string& line) {
  if (redraw_) {
    log_debug(line);  // the file of the rank takes every level, the console shows the redrawn line instead
  } else {
    log_info(line);
  }
}

void ConsoleLine::clear() {
  if (!shown_) return;
  std::fprintf(stderr, "\r\033[K");
  std::fflush(stderr);
  shown_ = false;
}

}  // namespace sieve
