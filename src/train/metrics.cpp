#include "train/metrics.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <string_view>

#include "core/error.h"
#include "io/file.h"
#include "train/event_file.h"
#include "train/format.h"

namespace sieve {
namespace {

// Whole lines of a file; what follows the last newline was torn by a crash and is dropped.
std::vector<std::string> read_lines(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  const std::string content((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  std::vector<std::string> lines;
  for (std::size_t at = 0, end; (end = content.find('\n', at)) != std::string::npos; at = end + 1)
    lines.push_back(content.substr(at, end - at));
  return lines;
}

void append_line(const std::string& path, const std::string& line) {
  std::ofstream out(path, std::ios::binary | std::ios::app);
  out << line << '\n';
  out.flush();
  if (!out) fail(Exit::data, "metrics", "cannot write ", path);
}

std::optional<std::int64_t> leading_integer(std::string_view text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end == text.data()) return std::nullopt;
  return value;
}

std::vector<std::string> split_cells(const std::string& line) {
  std::vector<std::string> cells;
  std::size_t at = 0;
  for (std::size_t end; (end = line.find(',', at)) != std::string::npos; at = end + 1)
    cells.push_back(line.substr(at, end - at));
  cells.push_back(line.substr(at));
  return cells;
}

std::string header_of(const std::vector<std::string>& columns) {
  std::string header = "step";
  for (const auto& c : columns) header += "," + c;
  return header;
}

constexpr std::string_view kRowStart = "{\"step\":";

}  // namespace

std::string jsonl_line(const MetricRow& row) {
  std::string line = cat(kRowStart, row.step);
  for (const auto& [key, value] : row.values) line += cat(",\"", key, "\":", json_number(value));
  return line + "}";
}

void truncate_jsonl(const std::string& path, std::int64_t last_step) {
  if (!std::filesystem::exists(path)) return;
  std::string kept;
  for (const auto& line : read_lines(path)) {
    if (line.compare(0, kRowStart.size(), kRowStart) != 0 || line.back() != '}') continue;
    const auto step = leading_integer(std::string_view(line).substr(kRowStart.size()));
    if (step && *step <= last_step) kept += line + '\n';
  }
  write_file_atomic(path, kept);
}

void truncate_csv(const std::string& path, const std::vector<std::string>& columns, std::int64_t last_step) {
  std::string kept = header_of(columns) + '\n';
  const auto lines = std::filesystem::exists(path) ? read_lines(path) : std::vector<std::string>{};
  const auto old_columns = lines.empty() ? std::vector<std::string>{} : split_cells(lines.front());
  for (std::size_t i = 1; i < lines.size(); ++i) {
    const auto cells = split_cells(lines[i]);
    const auto step = leading_integer(cells.front());
    if (!step || *step > last_step || cells.size() != old_columns.size()) continue;
    kept += cells.front();
    for (const auto& column : columns) {
      const auto found = std::find(old_columns.begin() + 1, old_columns.end(), column);
      kept += ',';
      if (found != old_columns.end()) kept += cells[static_cast<std::size_t>(found - old_columns.begin())];
    }
    kept += '\n';
  }
  write_file_atomic(path, kept);
}

MetricsWriter::MetricsWriter(const std::string& folder, MetricSinks sinks, std::vector<std::string> columns,
                             std::int64_t last_step)
    : folder_(folder), sinks_(sinks), columns_(std::move(columns)) {
  std::filesystem::create_directories(folder_);
  if (sinks_.jsonl) truncate_jsonl(folder_ + "/metrics.jsonl", last_step);
  if (sinks_.csv) truncate_csv(folder_ + "/metrics.csv", columns_, last_step);
  if (sinks_.tensorboard) {
    truncate_events(folder_ + "/tb", last_step);
    events_ = std::make_unique<EventFile>(folder_ + "/tb");
  }
}

MetricsWriter::~MetricsWriter() = default;

void MetricsWriter::write(const MetricRow& row) {
  if (sinks_.jsonl) append_line(folder_ + "/metrics.jsonl", jsonl_line(row));
  if (sinks_.csv) {
    std::string line = std::to_string(row.step);
    for (const auto& column : columns_) {
      const auto found =
          std::find_if(row.values.begin(), row.values.end(), [&](const auto& v) { return v.first == column; });
      line += ',';
      if (found != row.values.end() && std::isfinite(found->second)) line += json_number(found->second);
    }
    append_line(folder_ + "/metrics.csv", line);
  }
  if (events_) {
    const double now = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
    events_->write(now, row.step, row.values);
  }
}

}  // namespace sieve
