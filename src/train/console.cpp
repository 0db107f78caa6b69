#include "train/console.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
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

std::string selection_line(const std::vector<SelectionStats>& layers) {
  require(!layers.empty(), "selection_line", "no layer selects keys");
  std::string line = "selection";
  const auto range = [&](const char* name, double SelectionStats::*field, int decimals) {
    const auto [low, high] = std::minmax_element(layers.begin(), layers.end(),
                                                 [&](const auto& a, const auto& b) { return a.*field < b.*field; });
    line += std::string(" ") + name + " " + format_fixed((*low).*field, decimals);
    if (layers.size() > 1) line += ".." + format_fixed((*high).*field, decimals);
  };
  range("|F|/k", &SelectionStats::band_over_k, 2);
  range("saturated", &SelectionStats::saturated_over_k, 2);
  range("ever", &SelectionStats::ever_selected, 2);
  range("lifetime", &SelectionStats::mean_lifetime, 0);
  range("score std", &SelectionStats::score_std, 2);
  return line;
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
