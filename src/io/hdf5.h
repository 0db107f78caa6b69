// RAII over HDF5's C API for what sieve stores in it: contiguous one-dimensional integer datasets and small attributes.
// Every error is an Error(Exit::data) with file and dataset. Calls are serialised by one lock (the library is not
// thread-safe as packaged); readers that need speed take byte_offset() and read the bytes themselves (io/file.h,
// ReadFile).
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"

namespace sieve {

enum class H5Type : std::uint8_t { u16, u32, u64, i64 };  // little-endian in the file
constexpr std::size_t size_of(H5Type t) { return t == H5Type::u16 ? 2 : t == H5Type::u32 ? 4 : 8; }
constexpr std::string_view name_of(H5Type t) {
  return t == H5Type::u16 ? "u16" : t == H5Type::u32 ? "u32" : t == H5Type::u64 ? "u64" : "i64";
}
template <class T>
struct H5TypeOf;
template <>
struct H5TypeOf<std::uint16_t> {
  static constexpr H5Type value = H5Type::u16;
};
template <>
struct H5TypeOf<std::uint32_t> {
  static constexpr H5Type value = H5Type::u32;
};
template <>
struct H5TypeOf<std::uint64_t> {
  static constexpr H5Type value = H5Type::u64;
};
template <>
struct H5TypeOf<std::int64_t> {
  static constexpr H5Type value = H5Type::i64;
};

class Hdf5Dataset {
 public:
  H5Type type() const { return type_; }
  std::uint64_t size() const { return size_; }  // elements
  const std::string& name() const { return name_; }
  // First byte in the file. Contiguous datasets only, and those of this class always are; the bytes up to
  // byte_offset() + size() * size_of(type()) were checked to lie inside the file when it was opened. 0 if size() is 0.
  std::uint64_t byte_offset() const { return byte_offset_; }

  // Elements [begin, begin + values.size()). The element type must be the dataset's.
  template <class T>
  void write(std::uint64_t begin, std::span<const T> values) const {
    write_raw(begin, values.data(), values.size(), H5TypeOf<T>::value);
  }
  template <class T>
  void read(std::uint64_t begin, std::span<T> values) const {
    read_raw(begin, values.data(), values.size(), H5TypeOf<T>::value);
  }
  template <class T>
  std::vector<T> read_all() const {
    check_type(H5TypeOf<T>::value);  // before the memory is asked for
    std::vector<T> values(size_);
    read(0, std::span<T>(values));
    return values;
  }

 private:
  friend class Hdf5File;
  struct Handle;
  void write_raw(std::uint64_t begin, const void* values, std::uint64_t count, H5Type type) const;
  void read_raw(std::uint64_t begin, void* values, std::uint64_t count, H5Type type) const;
  void check_type(H5Type type) const;
  void check_range(std::uint64_t begin, std::uint64_t count) const;

  std::shared_ptr<Handle> handle_;
  std::string name_;
  H5Type type_ = H5Type::u16;
  std::uint64_t size_ = 0, byte_offset_ = 0;
};

class Hdf5File {
 public:
  static Hdf5File create(const std::filesystem::path& path);  // truncates an old one
  static Hdf5File open(const std::filesystem::path& path);    // read-only, no file lock (finished files do not change)
  ~Hdf5File();
  Hdf5File(Hdf5File&&) noexcept;
  Hdf5File& operator=(Hdf5File&&) noexcept;

  const std::filesystem::path& path() const;
  // A contiguous dataset of `size` elements, space allocated at once, no fill: write every element. Names are plain
  // ("tokens").
  Hdf5Dataset create_dataset(const std::string& name, H5Type type, std::uint64_t size);
  Hdf5Dataset dataset(
      const std::string& name) const;  // throws if absent, not 1-D, not contiguous, of another type, truncated
  bool has_dataset(const std::string& name) const;

  // Attributes of the file (its root group).
  void set_attribute(const std::string& name, const std::string& value);
  void set_attribute(const std::string& name, std::int64_t value);
  std::string text_attribute(const std::string& name) const;  // throw if absent or of another type
  std::int64_t integer_attribute(const std::string& name) const;
  bool has_attribute(const std::string& name) const;

  // Writes everything out and closes; errors of the end are reported here, a destructor could not. Datasets must not be
  // used after.
  void close();

 private:
  struct Impl;
  explicit Hdf5File(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

std::string hdf5_library_version();  // "1.10.8"

}  // namespace sieve
