// One logger for the process. Lines go to stderr (rank 0, or every rank's warnings) and, once open_log_file was called,
// to a file of the rank's own. Output meant for machines goes to stdout and never through here.
#pragma once

#include <string>
#include <string_view>

#include "core/error.h"

namespace sieve {

enum class LogLevel { debug, info, warn, error, off };
enum class LogColor { automatic, always, never };  // automatic: on a terminal that knows colours

// Ranks other than 0 print only warnings and errors.
void log_init(int rank, LogLevel level, LogColor color = LogColor::automatic);
void open_log_file(const std::string& path);  // appends; the folder must exist
void log_line(LogLevel level, std::string_view text);
void log_flush();
LogLevel parse_log_level(std::string_view name);  // Exit::config on an unknown name

template <class... Parts>
void log_debug(const Parts&... p) {
  log_line(LogLevel::debug, cat(p...));
}
template <class... Parts>
void log_info(const Parts&... p) {
  log_line(LogLevel::info, cat(p...));
}
template <class... Parts>
void log_warn(const Parts&... p) {
  log_line(LogLevel::warn, cat(p...));
}
template <class... Parts>
void log_error(const Parts&... p) {
  log_line(LogLevel::error, cat(p...));
}

}  // namespace sieve
