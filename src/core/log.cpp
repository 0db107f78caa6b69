#include "core/log.h"

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/dist_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <memory>
#include <vector>

namespace sieve {
namespace {

spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::debug: return spdlog::level::debug;
    case LogLevel::info: return spdlog::level::info;
    case LogLevel::warn: return spdlog::level::warn;
    case LogLevel::error: return spdlog::level::err;
    case LogLevel::off: return spdlog::level::off;
  }
  return spdlog::level::info;
}

spdlog::color_mode to_spdlog(LogColor color) {
  if (color == LogColor::automatic) return spdlog::color_mode::automatic;
  return color == LogColor::always ? spdlog::color_mode::always : spdlog::color_mode::never;
}

std::shared_ptr<spdlog::sinks::sink> make_console(int rank, LogLevel level, LogColor color) {
  auto sink = std::make_shared<spdlog::sinks::stderr_color_sink_mt>(to_spdlog(color));
  const bool speaks = rank == 0;
  sink->set_level(to_spdlog(speaks ? level : std::max(level, LogLevel::warn)));
  sink->set_pattern(speaks ? "%^%v%$" : "%^[rank " + std::to_string(rank) + "] %v%$");
  return sink;
}

// All sinks of the process behind one lock: a file may be opened while other threads write lines.
const std::shared_ptr<spdlog::sinks::dist_sink_mt>& sinks() {
  static const auto all = std::make_shared<spdlog::sinks::dist_sink_mt>(
      std::vector<std::shared_ptr<spdlog::sinks::sink>>{make_console(0, LogLevel::info, LogColor::automatic)});
  return all;
}

spdlog::logger& logger() {
  static spdlog::logger instance = [] {
    spdlog::logger l("sieve", sinks());
    l.set_level(spdlog::level::trace);
    l.flush_on(spdlog::level::info);
    return l;
  }();
  return instance;
}

}  // namespace

void log_init(int rank, LogLevel level, LogColor color) { sinks()->set_sinks({make_console(rank, level, color)}); }

void open_log_file(const std::string& path) {
  auto sink = std::make_shared<spdlog::sinks::basic_file_sink_mt>(path, false);
  sink->set_pattern("%Y-%m-%dT%H:%M:%S.%e%z %l %v");
  sinks()->add_sink(std::move(sink));
}

void log_line(LogLevel level, std::string_view text) {
  logger().log(to_spdlog(level), spdlog::string_view_t(text.data(), text.size()));
}

void log_flush() { logger().flush(); }

LogLevel parse_log_level(std::string_view name) {
  if (name == "debug") return LogLevel::debug;
  if (name == "info") return LogLevel::info;
  if (name == "warn") return LogLevel::warn;
  if (name == "error") return LogLevel::error;
  if (name == "off") return LogLevel::off;
  fail(Exit::config, "log", "unknown level \"", name, "\" (debug, info, warn, error, off)");
}

}  // namespace sieve
