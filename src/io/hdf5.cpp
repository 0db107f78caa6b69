// The one place that knows HDF5.
#include "io/hdf5.h"

#include <hdf5.h>

#include <mutex>
#include <utility>

#include "io/file.h"

namespace sieve {
namespace {

namespace fs = std::filesystem;

// The library may be built without locks of its own, so every call of ours is made under this one.
std::recursive_mutex& library_mutex() {
  static std::recursive_mutex mutex;
  return mutex;
}
class Lock {
 public:
  Lock() : guard_(library_mutex()) {
    // No clean-up of its own at exit: after a write that failed (full disk) it would crash there. We close what we
    // open.
    static const bool stays = H5dont_atexit() >= 0;  // must be the first call of the library
    static_cast<void>(stays);
    // Its printing to stderr goes off: we throw instead. Builds with locks keep that setting per thread.
    thread_local const bool quiet = H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr) >= 0;
    static_cast<void>(quiet);
  }

 private:
  std::lock_guard<std::recursive_mutex> guard_;
};

// An identifier of HDF5 with the function that gives it back.
class Id {
 public:
  using Close = herr_t (*)(hid_t);
  Id() = default;
  Id(hid_t id, Close close) : id_(id), close_(close) {}
  ~Id() { reset(); }
  Id(Id&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Id& operator=(Id&& other) noexcept {
    if (this != &other) {
      reset();
      id_ = std::exchange(other.id_, -1);
      close_ = other.close_;
    }
    return *this;
  }
  hid_t get() const { return id_; }
  bool valid() const { return id_ >= 0; }
  herr_t reset() {
    const Lock lock;
    const herr_t status = id_ >= 0 ? close_(id_) : 0;
    id_ = -1;
    return status;
  }

 private:
  hid_t id_ = -1;
  Close close_ = nullptr;
};

// The innermost entry of HDF5's error stack says most: "truncated file: eof = 1000, ..., stored_eof = 4096".
herr_t keep_description(unsigned, const H5E_error2_t* error, void* out) {
  if (error->desc != nullptr && *error->desc != '\0') *static_cast<std::string*>(out) = error->desc;
  return 0;
}
std::string library_error() {
  std::string text;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_DOWNWARD, keep_description, &text);
  H5Eclear2(H5E_DEFAULT);
  return text.empty() ? text : " (" + text + ")";
}

template <class... Parts>
[[noreturn]] void fail_here(const fs::path& path, std::string_view dataset, const Parts&... parts) {
  fail(Exit::data, "hdf5", path.string(), dataset.empty() ? "" : ": ", dataset, ": ", parts...);
}

hid_t file_type(H5Type t) {
  switch (t) {
    case H5Type::u16: return H5T_STD_U16LE;
    case H5Type::u32: return H5T_STD_U32LE;
    case H5Type::u64: return H5T_STD_U64LE;
    case H5Type::i64: return H5T_STD_I64LE;
  }
  return -1;
}

void check_name(const fs::path& path, const std::string& name) {
  if (name.empty() || name.find('/') != std::string::npos || name == ".") {
    fail(Exit::internal, "hdf5", path.string(), ": \"", name, "\" is not a plain name");
  }
}

}  // namespace

struct Hdf5Dataset::Handle {
  fs::path path;
  Id id;
};

struct Hdf5File::Impl {
  fs::path path;
  Id id;
  std::vector<std::weak_ptr<Hdf5Dataset::Handle>> datasets;  // open ones would keep the file open behind close()

  void require_open() const { require(id.valid(), "hdf5", path.string(), " is closed"); }
};

Hdf5File::Hdf5File(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Hdf5File::~Hdf5File() = default;
Hdf5File::Hdf5File(Hdf5File&&) noexcept = default;
Hdf5File& Hdf5File::operator=(Hdf5File&&) noexcept = default;
const fs::path& Hdf5File::path() const { return impl_->path; }

Hdf5File Hdf5File::create(const fs::path& path) {
  const Lock lock;
  auto impl = std::make_unique<Impl>();
  impl->path = path;
  // The format of HDF5 1.8 has checksums in its metadata: a damaged byte there is refused, not interpreted. No times in
  // it: equal content makes equal files.
  const Id access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose), creation(H5Pcreate(H5P_FILE_CREATE), H5Pclose);
  if (!access.valid() || H5Pset_libver_bounds(access.get(), H5F_LIBVER_V18, H5F_LIBVER_LATEST) < 0 ||
      !creation.valid() || H5Pset_obj_track_times(creation.get(), false) < 0) {
    fail_here(path, "", "no file properties", library_error());
  }
  impl->id = Id(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, creation.get(), access.get()), H5Fclose);
  if (!impl->id.valid()) fail_here(path, "", "cannot be created", library_error());
  return Hdf5File(std::move(impl));
}

Hdf5File Hdf5File::open(const fs::path& path) {
  ReadFile probe(path);  // the plain errors (missing, a folder, no permission) in plain words
  const Lock lock;
  auto impl = std::make_unique<Impl>();
  impl->path = path;
  const Id access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  // Finished files do not change, and some network file systems have no locks.
  if (!access.valid() || H5Pset_file_locking(access.get(), false, true) < 0) {
    fail_here(path, "", "no access properties", library_error());
  }
  impl->id = Id(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get()), H5Fclose);
  if (!impl->id.valid()) fail_here(path, "", "is not a whole HDF5 file", library_error());
  return Hdf5File(std::move(impl));
}

Hdf5Dataset Hdf5File::create_dataset(const std::string& name, H5Type type, std::uint64_t size) {
  impl_->require_open();
  const Lock lock;
  const fs::path& path = impl_->path;
  check_name(path, name);
  std::uint64_t bytes;
  if (__builtin_mul_overflow(size, size_of(type), &bytes) || bytes > INT64_MAX) {
    fail_here(path, name, size, " elements are too many");
  }
  const hsize_t extent = size;
  const Id space(H5Screate_simple(1, &extent, nullptr), H5Sclose);
  const Id properties(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  // Space at once and unfilled: every element will be written. No times: equal content makes equal files.
  const bool set = space.valid() && properties.valid() && H5Pset_layout(properties.get(), H5D_CONTIGUOUS) >= 0 &&
                   H5Pset_alloc_time(properties.get(), H5D_ALLOC_TIME_EARLY) >= 0 &&
                   H5Pset_fill_time(properties.get(), H5D_FILL_TIME_NEVER) >= 0 &&
                   H5Pset_obj_track_times(properties.get(), false) >= 0;
  if (!set) fail_here(path, name, "no creation properties", library_error());
  Id id(H5Dcreate2(impl_->id.get(), name.c_str(), file_type(type), space.get(), H5P_DEFAULT, properties.get(),
                   H5P_DEFAULT),
        H5Dclose);
  if (!id.valid()) fail_here(path, name, "cannot be created", library_error());
  Hdf5Dataset out;
  out.name_ = name;
  out.type_ = type;
  out.size_ = size;
  if (size > 0) {
    const haddr_t offset = H5Dget_offset(id.get());
    if (offset == HADDR_UNDEF) fail_here(path, name, "has no place in the file", library_error());
    out.byte_offset_ = offset;
  }
  out.handle_ = std::make_shared<Hdf5Dataset::Handle>();
  out.handle_->path = path;
  out.handle_->id = std::move(id);
  impl_->datasets.push_back(out.handle_);
  return out;
}

bool Hdf5File::has_dataset(const std::string& name) const {
  impl_->require_open();
  const Lock lock;
  check_name(impl_->path, name);
  const htri_t there = H5Lexists(impl_->id.get(), name.c_str(), H5P_DEFAULT);
  if (there < 0) fail_here(impl_->path, name, "cannot be looked up", library_error());
  return there > 0;
}

Hdf5Dataset Hdf5File::dataset(const std::string& name) const {
  if (!has_dataset(name)) fail_here(impl_->path, name, "there is no such dataset");
  const Lock lock;
  const fs::path& path = impl_->path;
  Id id(H5Dopen2(impl_->id.get(), name.c_str(), H5P_DEFAULT), H5Dclose);
  if (!id.valid()) fail_here(path, name, "cannot be opened", library_error());
  const Id space(H5Dget_space(id.get()), H5Sclose);
  const Id properties(H5Dget_create_plist(id.get()), H5Pclose);
  const Id type(H5Dget_type(id.get()), H5Tclose);
  if (!space.valid() || !properties.valid() || !type.valid())
    fail_here(path, name, "cannot be described", library_error());
  hsize_t extent = 0;
  if (H5Sget_simple_extent_type(space.get()) != H5S_SIMPLE || H5Sget_simple_extent_ndims(space.get()) != 1 ||
      H5Sget_simple_extent_dims(space.get(), &extent, nullptr) != 1) {
    fail_here(path, name, "is not one-dimensional");
  }
  if (H5Pget_layout(properties.get()) != H5D_CONTIGUOUS || H5Pget_external_count(properties.get()) != 0) {
    fail_here(path, name, "is not stored contiguously in this file");
  }
  Hdf5Dataset out;
  out.name_ = name;
  bool known = false;
  for (H5Type t : {H5Type::u16, H5Type::u32, H5Type::u64, H5Type::i64}) {
    if (H5Tequal(type.get(), file_type(t)) > 0) out.type_ = t, known = true;
  }
  if (!known) fail_here(path, name, "is not of type u16, u32, u64 or i64 (little-endian)");
  out.size_ = extent;
  std::uint64_t bytes = 0, end = 0;
  if (extent > 0) {
    const haddr_t offset = H5Dget_offset(id.get());
    if (offset == HADDR_UNDEF) fail_here(path, name, "was created but never written");
    const std::uint64_t file_bytes = ReadFile(path).size();
    if (__builtin_mul_overflow(extent, size_of(out.type_), &bytes) || __builtin_add_overflow(bytes, offset, &end) ||
        end > file_bytes) {
      fail_here(path, name, "is truncated: ", extent, " elements from byte ", offset, " on, but the file has ",
                file_bytes, " bytes");
    }
    out.byte_offset_ = offset;
  }
  out.handle_ = std::make_shared<Hdf5Dataset::Handle>();
  out.handle_->path = path;
  out.handle_->id = std::move(id);
  impl_->datasets.push_back(out.handle_);
  return out;
}

void Hdf5Dataset::check_type(H5Type type) const {
  require(handle_ != nullptr && handle_->id.valid(), "hdf5", "dataset \"", name_, "\" is not open");
  if (type != type_) fail_here(handle_->path, name_, "holds ", name_of(type_), ", not ", name_of(type));
}

void Hdf5Dataset::check_range(std::uint64_t begin, std::uint64_t count) const {
  if (begin > size_ || count > size_ - begin) {
    fail_here(handle_->path, name_, "elements ", begin, " to ", begin, " + ", count, " are not within its ", size_);
  }
}

namespace {

// The part [begin, begin + count) of the file's dataset and a memory space of that many.
std::pair<Id, Id> select(const fs::path& path, const std::string& name, hid_t dataset, std::uint64_t begin,
                         std::uint64_t count) {
  const hsize_t start = begin, extent = count;
  Id file_space(H5Dget_space(dataset), H5Sclose);
  Id memory_space(H5Screate_simple(1, &extent, nullptr), H5Sclose);
  if (!file_space.valid() || !memory_space.valid() ||
      H5Sselect_hyperslab(file_space.get(), H5S_SELECT_SET, &start, nullptr, &extent, nullptr) < 0) {
    fail_here(path, name, "cannot select elements", library_error());
  }
  return {std::move(file_space), std::move(memory_space)};
}

}  // namespace

void Hdf5Dataset::write_raw(std::uint64_t begin, const void* values, std::uint64_t count, H5Type type) const {
  check_type(type);
  check_range(begin, count);
  if (count == 0) return;
  const Lock lock;
  const auto [file_space, memory_space] = select(handle_->path, name_, handle_->id.get(), begin, count);
  if (H5Dwrite(handle_->id.get(), file_type(type), memory_space.get(), file_space.get(), H5P_DEFAULT, values) < 0) {
    fail_here(handle_->path, name_, "cannot be written, ", count * size_of(type), " bytes wanted, ",
              free_bytes(handle_->path), " bytes free", library_error());
  }
}

void Hdf5Dataset::read_raw(std::uint64_t begin, void* values, std::uint64_t count, H5Type type) const {
  check_type(type);
  check_range(begin, count);
  if (count == 0) return;
  const Lock lock;
  const auto [file_space, memory_space] = select(handle_->path, name_, handle_->id.get(), begin, count);
  if (H5Dread(handle_->id.get(), file_type(type), memory_space.get(), file_space.get(), H5P_DEFAULT, values) < 0) {
    fail_here(handle_->path, name_, "cannot be read", library_error());
  }
}

namespace {

Id open_attribute(const fs::path& path, hid_t file, const std::string& name) {
  Id attribute(H5Aopen(file, name.c_str(), H5P_DEFAULT), H5Aclose);
  if (!attribute.valid()) {
    H5Eclear2(H5E_DEFAULT);
    fail_here(path, "", "there is no attribute \"", name, "\"");
  }
  return attribute;
}

void write_attribute(const fs::path& path, hid_t file, const std::string& name, hid_t type, const void* value) {
  const htri_t there = H5Aexists(file, name.c_str());
  if (there < 0 || (there > 0 && H5Adelete(file, name.c_str()) < 0)) {
    fail_here(path, "", "attribute \"", name, "\" cannot be replaced", library_error());
  }
  const Id space(H5Screate(H5S_SCALAR), H5Sclose);
  const Id attribute(H5Acreate2(file, name.c_str(), type, space.get(), H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
  if (!space.valid() || !attribute.valid() || H5Awrite(attribute.get(), type, value) < 0) {
    fail_here(path, "", "attribute \"", name, "\" cannot be written", library_error());
  }
}

}  // namespace

void Hdf5File::set_attribute(const std::string& name, const std::string& value) {
  impl_->require_open();
  const Lock lock;
  // Old files keep attributes in the object header, which ends at 64 KiB.
  if (value.size() > 60000)
    fail_here(impl_->path, "", "attribute \"", name, "\" of ", value.size(), " bytes is too long");
  const Id type(H5Tcopy(H5T_C_S1), H5Tclose);
  // A fixed length must not be 0: the terminating NUL counts.
  if (!type.valid() || H5Tset_size(type.get(), value.size() + 1) < 0 || H5Tset_cset(type.get(), H5T_CSET_UTF8) < 0 ||
      H5Tset_strpad(type.get(), H5T_STR_NULLTERM) < 0) {
    fail_here(impl_->path, "", "no text type", library_error());
  }
  write_attribute(impl_->path, impl_->id.get(), name, type.get(), value.c_str());
}

void Hdf5File::set_attribute(const std::string& name, std::int64_t value) {
  impl_->require_open();
  const Lock lock;
  write_attribute(impl_->path, impl_->id.get(), name, H5T_STD_I64LE, &value);
}

bool Hdf5File::has_attribute(const std::string& name) const {
  impl_->require_open();
  const Lock lock;
  const htri_t there = H5Aexists(impl_->id.get(), name.c_str());
  if (there < 0) fail_here(impl_->path, "", "attribute \"", name, "\" cannot be looked up", library_error());
  return there > 0;
}

std::string Hdf5File::text_attribute(const std::string& name) const {
  impl_->require_open();
  const Lock lock;
  const Id attribute = open_attribute(impl_->path, impl_->id.get(), name);
  const Id type(H5Aget_type(attribute.get()), H5Tclose);
  const Id space(H5Aget_space(attribute.get()), H5Sclose);
  if (!type.valid() || !space.valid() || H5Tget_class(type.get()) != H5T_STRING ||
      H5Tis_variable_str(type.get()) != 0 || H5Sget_simple_extent_npoints(space.get()) != 1) {
    fail_here(impl_->path, "", "attribute \"", name, "\" is not a text of fixed length");
  }
  const std::size_t size = H5Tget_size(type.get());
  if (size > (1u << 20)) fail_here(impl_->path, "", "attribute \"", name, "\" claims ", size, " bytes");
  std::string value(size, '\0');
  if (H5Aread(attribute.get(), type.get(), value.data()) < 0) {
    fail_here(impl_->path, "", "attribute \"", name, "\" cannot be read", library_error());
  }
  return value.substr(0, value.find('\0'));
}

std::int64_t Hdf5File::integer_attribute(const std::string& name) const {
  impl_->require_open();
  const Lock lock;
  const Id attribute = open_attribute(impl_->path, impl_->id.get(), name);
  const Id type(H5Aget_type(attribute.get()), H5Tclose);
  const Id space(H5Aget_space(attribute.get()), H5Sclose);
  if (!type.valid() || !space.valid() || H5Tequal(type.get(), H5T_STD_I64LE) <= 0 ||
      H5Sget_simple_extent_npoints(space.get()) != 1) {
    fail_here(impl_->path, "", "attribute \"", name, "\" is not an i64");
  }
  std::int64_t value = 0;
  if (H5Aread(attribute.get(), H5T_STD_I64LE, &value) < 0) {
    fail_here(impl_->path, "", "attribute \"", name, "\" cannot be read", library_error());
  }
  return value;
}

void Hdf5File::close() {
  if (!impl_->id.valid()) return;
  const Lock lock;
  bool good = true;
  for (const auto& weak : impl_->datasets) {
    if (const auto handle = weak.lock()) good = handle->id.reset() >= 0 && good;
  }
  good = H5Fflush(impl_->id.get(), H5F_SCOPE_LOCAL) >= 0 && good;
  std::string why = good ? std::string() : library_error();
  if (impl_->id.reset() < 0 || !good) fail_here(impl_->path, "", "cannot be finished (disk full?)", why);
}

std::string hdf5_library_version() {
  const Lock lock;
  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
  return cat(major, ".", minor, ".", release);
}

}  // namespace sieve
