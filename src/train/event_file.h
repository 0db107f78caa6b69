// TensorBoard's event files, written without TensorFlow: TFRecord framing (u64 length, masked crc32c of it, data,
// masked crc32c of the data; little-endian) around protocol buffers of type Event, whose few fields used here are
// encoded by hand.
#pragma once

#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace sieve {

// CRC-32C (Castagnoli), reflected polynomial 0x82f63b78, and the rotation TFRecord applies to it.
std::uint32_t crc32c(std::string_view bytes);
std::uint32_t masked_crc32c(std::string_view bytes);

// One framed record.
std::string event_record(std::string_view data);
// Event{wall_time, file_version = "brain.Event:2"}: the first record of every file.
std::string encode_file_version(double wall_time);
// Event{wall_time, step, summary{value{tag, simple_value}...}}
std::string encode_scalars(double wall_time, std::int64_t step,
                           std::span<const std::pair<std::string, double>> scalars);

class EventFile {
 public:
  // Creates `folder`/events.out.tfevents.TIME.HOST.PID (PID and a counter make the name unique).
  explicit EventFile(const std::string& folder);
  ~EventFile();
  EventFile(const EventFile&) = delete;
  EventFile& operator=(const EventFile&) = delete;

  void write(double wall_time, std::int64_t step,
             std::span<const std::pair<std::string, double>> scalars);  // and flush
  const std::string& path() const { return path_; }

 private:
  void append(std::string_view record);
  std::string path_;
  std::FILE* file_ = nullptr;
};

// Cuts every event file of `folder` before its first event with a step above `last_step` or its first damaged record.
void truncate_events(const std::string& folder, std::int64_t last_step);

}  // namespace sieve
