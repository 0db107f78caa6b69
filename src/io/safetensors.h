// The safetensors format (https://github.com/huggingface/safetensors, "Format"): u64 little-endian length of a JSON
// header, the header, the data. Every number of a file is checked before it is used; errors are Error(Exit::data) that
// name file and tensor. Written files have their data area at a multiple of 64 and tensors by falling element size
// (then by name), so that every tensor is aligned; read tensors are copied out, because files of others need not be.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "io/file.h"
#include "tensor/tensor.h"

namespace sieve {

using TensorMap = std::map<std::string, Tensor>;
using TensorMetadata = std::map<std::string, std::string>;

// A new file with these tensors (any strides; CPU) and this metadata, to which "format": "pt" is added (Hugging Face
// wants it). Streams: no copy of the whole is made. Not atomic and not synced: archives (io/archive.h) do that.
void write_safetensors(const std::filesystem::path& path, const TensorMap& tensors,
                       const TensorMetadata& metadata = {});
// Bytes that write_safetensors will write.
std::uint64_t safetensors_bytes(const TensorMap& tensors, const TensorMetadata& metadata = {});

struct SafetensorsEntry {
  std::string name;
  std::string dtype;  // as in the file: "F32", "BF16", "F16", ...
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0, end = 0;  // bytes in the data area
};

// Reads the header at once and each tensor when asked. Reading is thread-safe.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::vector<SafetensorsEntry>& entries() const { return entries_; }  // by name
  const SafetensorsEntry* find(std::string_view name) const;                 // null: not there
  const TensorMetadata& metadata() const { return metadata_; }
  const std::filesystem::path& path() const { return file_.path(); }

  // A tensor of the file's own dtype. Element types that Tensor lacks (F16, I16, ...) are refused by name.
  Tensor read(std::string_view name) const;
  // Into a tensor of the same shape, any strides; another dtype is converted (Tensor::copy_from).
  void read_into(std::string_view name, Tensor& out) const;

 private:
  const SafetensorsEntry& entry(std::string_view name) const;

  ReadFile file_;
  std::uint64_t data_start_ = 0;
  std::vector<SafetensorsEntry> entries_;
  TensorMetadata metadata_;
};

TensorMap read_safetensors(const std::filesystem::path& path, TensorMetadata* metadata = nullptr);

}  // namespace sieve
