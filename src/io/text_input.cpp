#include "io/text_input.h"

#include <fcntl.h>
#include <glob.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "core/error.h"
#include "io/file.h"

namespace sieve {
namespace {

namespace fs = std::filesystem;
constexpr std::size_t kPacked = std::size_t{1} << 18;    // bytes of the file read at once
constexpr std::size_t kUnpacked = std::size_t{1} << 18;  // unpacked bytes that read_line looks through at once
constexpr int kMaxWindowLog = 31;

struct Magic {
  std::string_view bytes;
  std::string_view name;
};
// Refused by name, so that nobody trains on packed bytes.
constexpr Magic kUnsupported[] = {
    {"BZh", "bzip2"}, {std::string_view("\xfd\x37\x7a\x58\x5a\x00", 6), "xz"}, {"PK\x03\x04", "zip"}};

}  // namespace

struct TextReader::Impl {
  fs::path path;
  FileHandle file;
  std::uint64_t file_bytes = 0, consumed = 0, produced = 0, line_number = 0;
  Compression compression = Compression::none;

  std::vector<char> packed = std::vector<char>(kPacked);
  std::size_t packed_at = 0, packed_end = 0;  // bytes read from the file but not unpacked yet
  bool at_end = false;                        // of the file

  std::vector<char> line_buffer;
  std::size_t line_at = 0, line_end = 0;  // unpacked bytes not handed out yet

  z_stream gzip{};
  bool gzip_open = false,
       member_open = false;  // member: between the header and the trailer of a gzip member or zstd frame
  ZSTD_DStream* zstd = nullptr;

  ~Impl() {
    if (gzip_open) inflateEnd(&gzip);
    ZSTD_freeDStream(zstd);
  }

  [[noreturn]] void damaged(std::string_view what) const {
    fail(Exit::data, "text", path.string(), ": ", what, " at byte ", consumed - (packed_end - packed_at), " of ",
         file_bytes);
  }

  // More packed bytes behind those that are left; false at the end of the file.
  bool refill() {
    if (packed_at < packed_end) return true;
    ssize_t n;
    do n = ::read(file.get(), packed.data(), packed.size());
    while (n < 0 && errno == EINTR);
    if (n < 0) fail(Exit::data, "text", "cannot read ", path.string(), ": ", std::strerror(errno));
    packed_at = 0;
    packed_end = static_cast<std::size_t>(n);
    consumed += packed_end;
    at_end = n == 0;
    return n > 0;
  }

  void open(const fs::path& p) {
    path = p;
    file = FileHandle(::open(p.c_str(), O_RDONLY | O_CLOEXEC));
    if (!file.is_open()) fail(Exit::data, "text", "cannot open ", p.string(), ": ", std::strerror(errno));
    struct stat info;
    if (::fstat(file.get(), &info) != 0)
      fail(Exit::data, "text", "cannot inspect ", p.string(), ": ", std::strerror(errno));
    if (S_ISDIR(info.st_mode)) fail(Exit::data, "text", p.string(), " is a folder");
    file_bytes = static_cast<std::uint64_t>(info.st_size);
    refill();
    const std::string_view head(packed.data(), packed_end);
    for (const Magic& magic : kUnsupported) {
      if (head.starts_with(magic.bytes)) {
        fail(Exit::data, "text", p.string(), " is packed by ", magic.name,
             ", which is not read: unpack it, or pack it as .gz or .zst");
      }
    }
    if (head.starts_with("\x1f\x8b")) {
      compression = Compression::gzip;
      if (inflateInit2(&gzip, 15 + 16) != Z_OK) fail(Exit::memory, "text", "no memory to unpack ", p.string());
      gzip_open = true;
    } else if (head.size() >= 4 &&
               (head.starts_with("\x28\xb5\x2f\xfd") ||
                (head.substr(1, 3) == "\x2a\x4d\x18" && (static_cast<unsigned char>(head[0]) & 0xf0) == 0x50))) {
      compression = Compression::zstd;  // a frame, or a skippable frame (pzstd and seekable files begin with one)
      zstd = ZSTD_createDStream();
      if (zstd == nullptr) fail(Exit::memory, "text", "no memory to unpack ", p.string());
      ZSTD_DCtx_setParameter(zstd, ZSTD_d_windowLogMax, kMaxWindowLog);
    }
  }

  std::size_t unpack(std::span<char> out) {
    const std::size_t n = compression == Compression::none   ? copy(out)
                          : compression == Compression::gzip ? inflate_some(out)
                                                             : zstd_some(out);
    produced += n;
    return n;
  }

  std::size_t copy(std::span<char> out) {
    if (!refill()) return 0;
    const std::size_t n = std::min(out.size(), packed_end - packed_at);
    std::memcpy(out.data(), packed.data() + packed_at, n);
    packed_at += n;
    return n;
  }

  std::size_t inflate_some(std::span<char> out) {
    for (;;) {
      if (!refill()) {
        if (member_open) damaged("the gzip stream ends early");
        return 0;
      }
      member_open = true;
      gzip.next_in = reinterpret_cast<Bytef*>(packed.data() + packed_at);
      gzip.avail_in = static_cast<uInt>(packed_end - packed_at);
      gzip.next_out = reinterpret_cast<Bytef*>(out.data());
      gzip.avail_out = static_cast<uInt>(std::min(out.size(), std::size_t{1} << 30));
      const uInt room = gzip.avail_out;
      const int status = ::inflate(&gzip, Z_NO_FLUSH);
      packed_at = packed_end - gzip.avail_in;
      if (status == Z_STREAM_END) {
        member_open = false;  // another member may follow: cat a.gz b.gz
        inflateReset(&gzip);
      } else if (status == Z_MEM_ERROR) {
        fail(Exit::memory, "text", "no memory to unpack ", path.string());
      } else if (status != Z_OK && status != Z_BUF_ERROR) {
        damaged(cat("the gzip stream is damaged (", gzip.msg != nullptr ? gzip.msg : "no detail", ")"));
      }
      if (gzip.avail_out != room) return room - gzip.avail_out;
    }
  }

  std::size_t zstd_some(std::span<char> out) {
    for (;;) {
      // An empty input still lets the decoder hand out what it holds; only then does the end of the file count.
      const bool more = refill();
      ZSTD_inBuffer in{packed.data() + packed_at, packed_end - packed_at, 0};
      ZSTD_outBuffer to{out.data(), out.size(), 0};
      if (!more && !member_open) return 0;
      const std::size_t status = ZSTD_decompressStream(zstd, &to, &in);
      packed_at += in.pos;
      if (ZSTD_isError(status)) damaged(cat("the zstd stream is damaged (", ZSTD_getErrorName(status), ")"));
      member_open = status != 0;
      if (to.pos > 0) return to.pos;
      if (!more && member_open) damaged("the zstd stream ends early");
    }
  }
};

TextReader::TextReader(const fs::path& path) : impl_(std::make_unique<Impl>()) { impl_->open(path); }
TextReader::~TextReader() = default;
TextReader::TextReader(TextReader&&) noexcept = default;
TextReader& TextReader::operator=(TextReader&&) noexcept = default;

std::size_t TextReader::read(std::span<char> out) {
  if (out.empty()) return 0;
  Impl& s = *impl_;
  if (s.line_at == s.line_end) return s.unpack(out);
  const std::size_t n = std::min(out.size(), s.line_end - s.line_at);  // what read_line had looked at
  std::memcpy(out.data(), s.line_buffer.data() + s.line_at, n);
  s.line_at += n;
  return n;
}

bool TextReader::read_line(std::string& line, std::size_t limit) {
  Impl& s = *impl_;
  line.clear();
  bool any = false;
  for (;;) {
    if (s.line_at == s.line_end) {
      s.line_buffer.resize(kUnpacked);
      s.line_at = 0;
      s.line_end = s.unpack(s.line_buffer);
      if (s.line_end == 0) break;
    }
    any = true;
    const char* begin = s.line_buffer.data() + s.line_at;
    const std::size_t left = s.line_end - s.line_at;
    const void* newline = std::memchr(begin, '\n', left);
    const std::size_t n =
        newline == nullptr ? left : static_cast<std::size_t>(static_cast<const char*>(newline) - begin);
    if (n > limit - line.size()) {
      fail(Exit::data, "text", s.path.string(), ": line ", s.line_number + 1, " is longer than ", limit, " bytes");
    }
    line.append(begin, n);
    s.line_at += n + (newline == nullptr ? 0 : 1);
    if (newline != nullptr) break;
  }
  if (any) ++s.line_number;
  return any;
}

Compression TextReader::compression() const { return impl_->compression; }
std::uint64_t TextReader::file_bytes() const { return impl_->file_bytes; }
std::uint64_t TextReader::consumed_bytes() const { return impl_->consumed - (impl_->packed_end - impl_->packed_at); }
std::uint64_t TextReader::produced_bytes() const { return impl_->produced - (impl_->line_end - impl_->line_at); }
std::uint64_t TextReader::line_number() const { return impl_->line_number; }

std::vector<fs::path> list_text_files(const fs::path& root, std::span<const std::string> extensions) {
  std::error_code error;
  if (fs::is_regular_file(root, error)) return {root};
  if (!fs::is_directory(root, error)) fail(Exit::data, "text", "there is no file or folder ", root.string());
  std::vector<fs::path> out;
  fs::recursive_directory_iterator it(root, error), end;
  if (error) fail(Exit::data, "text", "cannot list ", root.string(), ": ", error.message());
  fs::path last = root;  // where the iteration stands, or ended with an error
  for (; it != end; it.increment(error)) {
    last = it->path();
    const std::string name = last.filename().string();
    if (name.starts_with(".")) {
      it.disable_recursion_pending();
      continue;
    }
    const bool wanted = extensions.empty() ||
                        std::any_of(extensions.begin(), extensions.end(),
                                    [&](const std::string& e) { return name.size() > e.size() && name.ends_with(e); });
    std::error_code ignored;  // a dangling symlink is no file
    if (wanted && it->is_regular_file(ignored)) out.push_back(last);
  }
  if (error) fail(Exit::data, "text", "cannot list ", last.string(), ": ", error.message());
  std::sort(out.begin(), out.end(), [](const fs::path& a, const fs::path& b) { return a.native() < b.native(); });
  return out;
}

std::vector<fs::path> glob_files(const std::string& pattern) {
  glob_t found{};
  const int status = ::glob(pattern.c_str(), GLOB_ERR | GLOB_NOSORT, nullptr, &found);
  std::vector<fs::path> out;
  if (status == 0) {
    for (std::size_t i = 0; i < found.gl_pathc; ++i) {
      std::error_code ignored;
      if (fs::is_regular_file(found.gl_pathv[i], ignored)) out.emplace_back(found.gl_pathv[i]);
    }
  }
  ::globfree(&found);
  if (status != 0 && status != GLOB_NOMATCH) fail(Exit::data, "text", "cannot look for ", pattern);
  std::sort(out.begin(), out.end(), [](const fs::path& a, const fs::path& b) { return a.native() < b.native(); });
  return out;
}

}  // namespace sieve
