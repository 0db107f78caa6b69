#include "train/event_file.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>

#include "core/error.h"

namespace sieve {
namespace {

constexpr std::array<std::uint32_t, 256> make_crc_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t c = i;
    for (int bit = 0; bit < 8; ++bit) c = (c & 1u) != 0 ? (c >> 1) ^ 0x82f63b78u : c >> 1;
    table[i] = c;
  }
  return table;
}
constexpr auto kCrcTable = make_crc_table();

static_assert(std::endian::native == std::endian::little, "event files are little-endian");

template <class T>
void put_raw(std::string& out, T value) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  out.append(bytes, sizeof(T));
}

template <class T>
T get_raw(const char* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(T));
  return value;
}

// Protocol buffers: a field is (number << 3 | wire type) as a varint, then its value.
enum Wire : std::uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

void put_varint(std::string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}
void put_key(std::string& out, std::uint32_t field, Wire wire) { put_varint(out, field << 3 | wire); }
void put_bytes(std::string& out, std::uint32_t field, std::string_view value) {
  put_key(out, field, kBytes);
  put_varint(out, value.size());
  out += value;
}

std::string event_head(double wall_time) {
  std::string out;
  put_key(out, 1, kFixed64);  // Event.wall_time
  put_raw(out, wall_time);
  return out;
}

std::optional<std::uint64_t> get_varint(std::string_view data, std::size_t& at) {
  std::uint64_t value = 0;
  for (unsigned shift = 0; shift < 64 && at < data.size(); shift += 7) {
    const auto byte = static_cast<unsigned char>(data[at++]);
    value |= static_cast<std::uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) return value;
  }
  return std::nullopt;
}

// Event.step, 0 where absent (as in the version record); nothing where the message is damaged.
std::optional<std::int64_t> step_of(std::string_view event) {
  std::int64_t step = 0;
  for (std::size_t at = 0; at < event.size();) {
    const auto key = get_varint(event, at);
    if (!key) return std::nullopt;
    std::optional<std::uint64_t> skip = 0;
    switch (*key & 7) {
      case kVarint: {
        const auto value = get_varint(event, at);
        if (!value) return std::nullopt;
        if (*key >> 3 == 2) step = static_cast<std::int64_t>(*value);
        break;
      }
      case kFixed64: skip = 8; break;
      case kFixed32: skip = 4; break;
      case kBytes: skip = get_varint(event, at); break;
      default: return std::nullopt;
    }
    if (!skip || *skip > event.size() - at) return std::nullopt;
    at += *skip;
  }
  return step;
}

// Bytes of `content` up to the first record that is torn, damaged or later than `last_step`.
std::size_t keep_until(std::string_view content, std::int64_t last_step) {
  std::size_t at = 0;
  while (content.size() - at >= 16) {
    const auto length = get_raw<std::uint64_t>(content.data() + at);
    if (masked_crc32c(content.substr(at, 8)) != get_raw<std::uint32_t>(content.data() + at + 8)) break;
    if (length > content.size() - at - 16) break;
    const std::string_view data = content.substr(at + 12, length);
    if (masked_crc32c(data) != get_raw<std::uint32_t>(data.data() + length)) break;
    const auto step = step_of(data);
    if (!step || *step > last_step) break;
    at += 16 + length;
  }
  return at;
}

}  // namespace

std::uint32_t crc32c(std::string_view bytes) {
  std::uint32_t c = 0xffffffffu;
  for (const char b : bytes) c = kCrcTable[(c ^ static_cast<unsigned char>(b)) & 0xff] ^ (c >> 8);
  return ~c;
}

std::uint32_t masked_crc32c(std::string_view bytes) { return std::rotr(crc32c(bytes), 15) + 0xa282ead8u; }

std::string event_record(std::string_view data) {
  std::string out;
  put_raw<std::uint64_t>(out, data.size());
  put_raw(out, masked_crc32c(out));
  out += data;
  put_raw(out, masked_crc32c(data));
  return out;
}

std::string encode_file_version(double wall_time) {
  std::string out = event_head(wall_time);
  put_bytes(out, 3, "brain.Event:2");  // Event.file_version
  return out;
}

std::string encode_scalars(double wall_time, std::int64_t step,
                           std::span<const std::pair<std::string, double>> scalars) {
  std::string summary;
  for (const auto& [tag, value] : scalars) {
    std::string entry;
    put_bytes(entry, 1, tag);     // Summary.Value.tag
    put_key(entry, 2, kFixed32);  // Summary.Value.simple_value
    put_raw(entry, static_cast<float>(value));
    put_bytes(summary, 1, entry);  // Summary.value
  }
  std::string out = event_head(wall_time);
  put_key(out, 2, kVarint);  // Event.step
  put_varint(out, static_cast<std::uint64_t>(step));
  put_bytes(out, 5, summary);  // Event.summary
  return out;
}

EventFile::EventFile(const std::string& folder) {
  static std::atomic<int> counter{0};
  std::filesystem::create_directories(folder);
  const double now = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  char host[256] = "host";
  gethostname(host, sizeof host - 1);
  path_ =
      cat(folder, "/events.out.tfevents.", static_cast<std::int64_t>(now), ".", host, ".", getpid(), ".", counter++);
  file_ = std::fopen(path_.c_str(), "wb");
  if (file_ == nullptr) fail(Exit::data, "tensorboard", "cannot create ", path_, ": ", std::strerror(errno));
  append(encode_file_version(now));
}

EventFile::~EventFile() { std::fclose(file_); }

void EventFile::write(double wall_time, std::int64_t step, std::span<const std::pair<std::string, double>> scalars) {
  append(encode_scalars(wall_time, step, scalars));
}

void EventFile::append(std::string_view data) {
  const std::string record = event_record(data);
  if (std::fwrite(record.data(), 1, record.size(), file_) != record.size() || std::fflush(file_) != 0)
    fail(Exit::data, "tensorboard", "cannot write ", path_, ": ", std::strerror(errno));
}

void truncate_events(const std::string& folder, std::int64_t last_step) {
  if (!std::filesystem::is_directory(folder)) return;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (!entry.is_regular_file() || entry.path().filename().string().find("tfevents") == std::string::npos) continue;
    std::ifstream in(entry.path(), std::ios::binary);
    const std::string content((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    const std::size_t keep = keep_until(content, last_step);
    if (keep < content.size()) std::filesystem::resize_file(entry.path(), keep);
  }
}

}  // namespace sieve
