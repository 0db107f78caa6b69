#include "io/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <optional>
#include <span>
#include <utility>

#include "core/error.h"
#include "io/json.h"

namespace sieve {
namespace {

static_assert(std::endian::native == std::endian::little, "files are little-endian and read without swapping");

constexpr std::uint64_t kMaxHeader = 100'000'000;
constexpr std::uint64_t kAlignment = 64;
constexpr int kHeaderDepth = 8;

struct DTypeName {
  std::string_view name;
  int bits;
  std::optional<DType> dtype;  // what Tensor can hold
};
constexpr DTypeName kDTypes[] = {
    {"F64", 64, DType::f64},   {"F32", 32, DType::f32},      {"BF16", 16, DType::bf16},    {"I64", 64, DType::i64},
    {"I32", 32, DType::i32},   {"U8", 8, DType::u8},         {"BOOL", 8, std::nullopt},    {"I8", 8, std::nullopt},
    {"I16", 16, std::nullopt}, {"U16", 16, std::nullopt},    {"U32", 32, std::nullopt},    {"U64", 64, std::nullopt},
    {"F16", 16, std::nullopt}, {"F8_E5M2", 8, std::nullopt}, {"F8_E4M3", 8, std::nullopt}, {"F8_E8M0", 8, std::nullopt},
    {"C64", 64, std::nullopt},
};

const DTypeName* find_dtype(std::string_view name) {
  for (const DTypeName& d : kDTypes) {
    if (d.name == name) return &d;
  }
  return nullptr;
}

std::string_view file_name_of(DType t) {
  for (const DTypeName& d : kDTypes) {
    if (d.dtype == t) return d.name;
  }
  fail(Exit::internal, "safetensors", "dtype ", name_of(t), " has no name");
}

std::vector<std::pair<std::string, Tensor>> in_file_order(const TensorMap& tensors) {
  std::vector<std::pair<std::string, Tensor>> out(tensors.begin(), tensors.end());
  std::stable_sort(out.begin(), out.end(), [](const auto& a, const auto& b) {
    return size_of(a.second.dtype()) > size_of(b.second.dtype());  // stable: names stay in order
  });
  return out;
}

// Length, header, padding: everything before the data.
std::string header_bytes(const std::vector<std::pair<std::string, Tensor>>& tensors, TensorMetadata metadata) {
  metadata.emplace("format", "pt");
  Json header = Json::object();
  header["__metadata__"] = metadata;
  std::uint64_t at = 0;
  for (const auto& [name, tensor] : tensors) {
    require(tensor.defined(), "safetensors", "tensor \"", name, "\" is undefined");
    require(name != "__metadata__" && !name.empty(), "safetensors", "\"", name, "\" cannot name a tensor");
    const std::uint64_t end = at + tensor.nbytes();
    header[name] = {{"dtype", file_name_of(tensor.dtype())},
                    {"shape", std::vector<std::int64_t>(tensor.shape().begin(), tensor.shape().end())},
                    {"data_offsets", {at, end}}};
    at = end;
  }
  std::string text = json_text(header, -1);
  text.append((kAlignment - (8 + text.size()) % kAlignment) % kAlignment, ' ');
  require(text.size() <= kMaxHeader, "safetensors", "header of ", text.size(), " bytes");
  std::string out(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) out[i] = static_cast<char>(text.size() >> (8 * i) & 0xff);
  return out + text;
}

// Checks the numbers of one tensor against each other; offsets against the file come later, for all of them at once.
SafetensorsEntry parse_entry(const std::string& name, const Json& value, const std::string& file) {
  const std::string subject = cat(file, ": tensor \"", name.substr(0, 200), "\"");
  if (!value.is_object()) fail(Exit::data, "safetensors", subject, " is not described by an object");
  for (const auto& [key, unused] : value.items()) {
    if (key != "dtype" && key != "shape" && key != "data_offsets") {
      fail(Exit::data, "safetensors", subject, ": unknown key \"", key.substr(0, 200), "\"");
    }
  }
  auto integers = [&](std::string_view key) {
    std::vector<std::uint64_t> out;
    const Json& list = json_member(value, key, subject);
    bool good = list.is_array();
    for (std::size_t i = 0; good && i < list.size(); ++i) {
      good = list[i].is_number_unsigned() && list[i].get<std::uint64_t>() <= INT64_MAX;
      if (good) out.push_back(list[i].get<std::uint64_t>());
    }
    if (!good) fail(Exit::data, "safetensors", subject, ": \"", key, "\" must be a list of integers of at least 0");
    return out;
  };
  SafetensorsEntry entry;
  entry.name = name;
  entry.dtype = get_json<std::string>(value, "dtype", subject);
  const DTypeName* dtype = find_dtype(entry.dtype);
  if (dtype == nullptr) fail(Exit::data, "safetensors", subject, ": unknown dtype \"", entry.dtype.substr(0, 80), "\"");
  const std::vector<std::uint64_t> offsets = integers("data_offsets");
  if (offsets.size() != 2 || offsets[0] > offsets[1]) {
    fail(Exit::data, "safetensors", subject, ": \"data_offsets\" must be [begin, end] with begin <= end");
  }
  entry.begin = offsets[0];
  entry.end = offsets[1];
  std::uint64_t bytes = static_cast<std::uint64_t>(dtype->bits) / 8;
  bool overflow = false, empty = false;
  for (std::uint64_t extent : integers("shape")) {
    entry.shape.push_back(static_cast<std::int64_t>(extent));
    empty = empty || extent == 0;
    overflow = overflow || __builtin_mul_overflow(bytes, extent, &bytes);
  }
  if (empty) bytes = 0;  // whatever the other extents are
  if (overflow && !empty) fail(Exit::data, "safetensors", subject, ": the size of its shape overflows 64 bits");
  if (entry.end - entry.begin != bytes) {
    fail(Exit::data, "safetensors", subject, ": shape and dtype make ", bytes, " bytes, data_offsets ",
         entry.end - entry.begin);
  }
  return entry;
}

// The data area must be covered exactly: no holes, no overlaps, nothing behind.
void check_cover(const std::vector<SafetensorsEntry>& entries, std::uint64_t data_bytes, const std::string& file) {
  std::vector<const SafetensorsEntry*> order;
  for (const SafetensorsEntry& e : entries) order.push_back(&e);
  std::sort(order.begin(), order.end(),
            [](const auto* a, const auto* b) { return std::pair(a->begin, a->end) < std::pair(b->begin, b->end); });
  std::uint64_t at = 0;
  for (const SafetensorsEntry* e : order) {
    if (e->begin != at) {
      fail(Exit::data, "safetensors", file, ": tensor \"", e->name, "\" begins at byte ", e->begin,
           " of the data, where ", at, e->begin < at ? " is already taken (overlap)" : " was expected (hole)");
    }
    at = e->end;
  }
  if (at != data_bytes) {
    fail(Exit::data, "safetensors", file, ": the tensors take ", at, " bytes, the file has ", data_bytes,
         at > data_bytes ? " (truncated)" : " (something behind the last tensor)");
  }
}

}  // namespace

void write_safetensors(const std::filesystem::path& path, const TensorMap& tensors, const TensorMetadata& metadata) {
  const auto ordered = in_file_order(tensors);
  const std::string header = header_bytes(ordered, metadata);
  std::uint64_t total = header.size();
  for (const auto& [name, tensor] : ordered) total += tensor.nbytes();
  WriteFile file(path, total);
  file.write(header);
  for (const auto& [name, tensor] : ordered) {
    require(tensor.device().is_cpu(), "safetensors", "tensor \"", name, "\" is on ", tensor.device().str());
    const Tensor packed = tensor.contiguous();
    file.write(packed.raw(), packed.nbytes());
  }
  file.close();
}

std::uint64_t safetensors_bytes(const TensorMap& tensors, const TensorMetadata& metadata) {
  std::uint64_t total = header_bytes(in_file_order(tensors), metadata).size();
  for (const auto& [name, tensor] : tensors) total += tensor.nbytes();
  return total;
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : file_(path) {
  const std::string name = path.string();
  if (file_.size() < 8)
    fail(Exit::data, "safetensors", name, ": ", file_.size(), " bytes, too short for a header length");
  std::array<std::byte, 8> length_bytes;
  file_.read_at(0, length_bytes);
  const auto length = std::bit_cast<std::uint64_t>(length_bytes);
  if (length > kMaxHeader) fail(Exit::data, "safetensors", name, ": header length ", length, " exceeds ", kMaxHeader);
  if (length > file_.size() - 8) {
    fail(Exit::data, "safetensors", name, ": header length ", length, " exceeds the ", file_.size() - 8,
         " bytes that follow (truncated?)");
  }
  std::string text(length, '\0');
  file_.read_at(8, std::as_writable_bytes(std::span(text)));
  if (text.empty() || text[0] != '{') fail(Exit::data, "safetensors", name, ": the header does not begin with \"{\"");
  data_start_ = 8 + length;
  const Json header = parse_json(text, name + " (header)", {.depth = kHeaderDepth, .bytes = kMaxHeader});
  for (const auto& [key, value] : header.items()) {  // by name: Json objects are sorted
    if (key != "__metadata__") {
      entries_.push_back(parse_entry(key, value, name));
      continue;
    }
    if (!value.is_object()) fail(Exit::data, "safetensors", name, ": \"__metadata__\" is not an object");
    for (const auto& [meta, text_value] : value.items()) {
      if (!text_value.is_string())
        fail(Exit::data, "safetensors", name, ": metadata \"", meta.substr(0, 200), "\" is not a text");
      metadata_[meta] = text_value.get<std::string>();
    }
  }
  check_cover(entries_, file_.size() - data_start_, name);
}

const SafetensorsEntry* SafetensorsFile::find(std::string_view name) const {
  const auto it = std::lower_bound(entries_.begin(), entries_.end(), name,
                                   [](const auto& e, std::string_view n) { return e.name < n; });
  return it != entries_.end() && it->name == name ? &*it : nullptr;
}

const SafetensorsEntry& SafetensorsFile::entry(std::string_view name) const {
  const SafetensorsEntry* e = find(name);
  if (e == nullptr) fail(Exit::data, "safetensors", path().string(), ": there is no tensor \"", name, "\"");
  return *e;
}

Tensor SafetensorsFile::read(std::string_view name) const {
  const SafetensorsEntry& e = entry(name);
  const std::optional<DType> dtype = find_dtype(e.dtype)->dtype;
  if (!dtype)
    fail(Exit::data, "safetensors", path().string(), ": tensor \"", name, "\" is ", e.dtype,
         ", which sieve does not read");
  if (e.shape.size() > static_cast<std::size_t>(kMaxRank)) {
    fail(Exit::data, "safetensors", path().string(), ": tensor \"", name, "\" has ", e.shape.size(), " axes, at most ",
         kMaxRank, " are read");
  }
  // (0, 2^62, 2^62) is a legal file, but its Shape could not be counted.
  if (e.begin == e.end &&
      std::any_of(e.shape.begin(), e.shape.end(), [](std::int64_t n) { return n > (std::int64_t{1} << 40); })) {
    fail(Exit::data, "safetensors", path().string(), ": tensor \"", name, "\" is empty with absurd extents");
  }
  Tensor out = empty(Shape(std::span(e.shape)), *dtype);
  file_.read_at(data_start_ + e.begin, {static_cast<std::byte*>(out.raw()), out.nbytes()});
  return out;
}

void SafetensorsFile::read_into(std::string_view name, Tensor& out) const {
  const SafetensorsEntry& e = entry(name);
  if (!std::equal(e.shape.begin(), e.shape.end(), out.shape().begin(), out.shape().end())) {
    std::string shape;
    for (std::int64_t n : e.shape) shape += cat(shape.empty() ? "" : ", ", n);
    fail(Exit::data, "safetensors", path().string(), ": tensor \"", name, "\" has shape (", shape, "), wanted ",
         out.shape());
  }
  if (find_dtype(e.dtype)->dtype == out.dtype() && out.is_contiguous() && out.device().is_cpu()) {
    file_.read_at(data_start_ + e.begin, {static_cast<std::byte*>(out.raw()), out.nbytes()});
  } else {
    out.copy_from(read(name));
  }
}

TensorMap read_safetensors(const std::filesystem::path& path, TensorMetadata* metadata) {
  const SafetensorsFile file(path);
  TensorMap out;
  for (const SafetensorsEntry& e : file.entries()) out.emplace(e.name, file.read(e.name));
  if (metadata != nullptr) *metadata = file.metadata();
  return out;
}

}  // namespace sieve
