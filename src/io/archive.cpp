#include "io/archive.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <set>
#include <utility>

#include "core/error.h"
#include "io/file.h"
#include "io/json.h"

namespace sieve {
namespace {

namespace fs = std::filesystem;
constexpr std::string_view kManifest = "manifest.json";
constexpr std::string_view kTemporary = ".tmp-";
constexpr std::int64_t kFormat = 1;
constexpr std::uint64_t kManifestLimit = 64 << 20;
constexpr std::size_t kNamedDamages = 5;

ArchiveFaultHook fault_hook;

void stage(ArchiveStage at, const fs::path& path) {
  if (fault_hook) fault_hook(at, path);
}

[[noreturn]] void fail_errno(std::string_view what, const fs::path& path) {
  fail(Exit::data, "archive", "cannot ", what, " ", path.string(), ": ", std::strerror(errno));
}

bool is_plain_name(std::string_view name) {
  return !name.empty() && name[0] != '.' && name.size() <= 200 && name.find('/') == std::string_view::npos &&
         name.find('\0') == std::string_view::npos && name != kManifest;
}

// Hash of the whole (what `xxhsum -H3` prints) and of every block, reading the file once.
ArchiveFile hash_file(const fs::path& path, const std::string& name) {
  ArchiveFile out;
  out.name = name;
  const ReadFile file(path);
  out.bytes = file.size();
  Xxh3 whole;
  std::vector<std::byte> piece(static_cast<std::size_t>(std::min<std::uint64_t>(out.bytes, 1 << 20)));
  for (std::uint64_t block = 0; block < out.bytes; block += kArchiveBlock) {
    Xxh3 part;
    const std::uint64_t end = std::min(out.bytes, block + kArchiveBlock);
    for (std::uint64_t at = block; at < end; at += piece.size()) {
      const auto bytes =
          std::span(piece).first(static_cast<std::size_t>(std::min<std::uint64_t>(piece.size(), end - at)));
      file.read_at(at, bytes);
      part.update(bytes);
      whole.update(bytes);
    }
    out.blocks.push_back(part.digest());
  }
  out.hash = whole.digest();
  return out;
}

std::string manifest_text(const std::string& name, const std::vector<ArchiveFile>& files) {
  Json list = Json::array();
  for (const ArchiveFile& file : files) {
    Json blocks = Json::array();
    for (std::uint64_t hash : file.blocks) blocks.push_back(hex64(hash));
    list.push_back({{"name", file.name}, {"bytes", file.bytes}, {"xxh3", hex64(file.hash)}, {"blocks", blocks}});
  }
  const Json manifest = {{"format", kFormat}, {"name", name}, {"block_bytes", kArchiveBlock}, {"files", list}};
  return json_text(manifest) + "\n";
}

std::uint64_t parse_hex64(const std::string& text, const std::string& subject) {
  std::uint64_t value = 0;
  bool good = text.size() == 16;
  for (char c : text) {
    const bool digit = c >= '0' && c <= '9', letter = c >= 'a' && c <= 'f';
    good = good && (digit || letter);
    value = value << 4 | static_cast<std::uint64_t>(digit ? c - '0' : c - 'a' + 10);
  }
  if (!good) fail(Exit::data, "archive", subject, ": \"", text.substr(0, 40), "\" is not a hash of 16 hex digits");
  return value;
}

std::vector<ArchiveFile> read_manifest(const fs::path& directory, std::uint64_t& manifest_bytes) {
  const fs::path path = directory / kManifest;
  const std::string text = read_file(path, kManifestLimit);
  const std::string subject = path.string();
  manifest_bytes = text.size();
  const Json manifest = parse_json(text, subject);
  if (const auto format = get_json<std::int64_t>(manifest, "format", subject); format != kFormat) {
    fail(Exit::data, "archive", subject, ": format ", format, ", this program reads ", kFormat);
  }
  if (get_json<std::uint64_t>(manifest, "block_bytes", subject) != kArchiveBlock) {
    fail(Exit::data, "archive", subject, ": blocks are not of ", kArchiveBlock, " bytes");
  }
  const Json& list = json_member(manifest, "files", subject);
  if (!list.is_array()) fail(Exit::data, "archive", subject, ": \"files\" is not a list");
  std::vector<ArchiveFile> files;
  std::set<std::string> names;
  for (const Json& entry : list) {
    ArchiveFile file;
    file.name = get_json<std::string>(entry, "name", subject);
    if (!is_plain_name(file.name) || !names.insert(file.name).second) {
      fail(Exit::data, "archive", subject, ": \"", file.name.substr(0, 80),
           "\" is no plain file name, or is listed twice");
    }
    file.bytes = get_json<std::uint64_t>(entry, "bytes", subject);
    file.hash = parse_hex64(get_json<std::string>(entry, "xxh3", subject), subject);
    const Json& blocks = json_member(entry, "blocks", subject);
    const std::uint64_t wanted = file.bytes / kArchiveBlock + (file.bytes % kArchiveBlock != 0 ? 1 : 0);
    if (!blocks.is_array() || blocks.size() != wanted) {
      fail(Exit::data, "archive", subject, ": ", file.name, " of ", file.bytes, " bytes must have ", wanted,
           " block hashes");
    }
    for (const Json& hash : blocks)
      file.blocks.push_back(parse_hex64(hash.is_string() ? hash.get<std::string>() : "", subject));
    files.push_back(std::move(file));
  }
  return files;
}

void check_file(const fs::path& directory, const ArchiveFile& wanted, ArchiveCheck check,
                std::vector<ArchiveDamage>& out) {
  const fs::path path = directory / wanted.name;
  std::error_code error;
  const std::uint64_t size = fs::file_size(path, error);
  if (error) {
    out.push_back({wanted.name, -1, cat(path.string(), ": ", error.message())});
    return;
  }
  if (size != wanted.bytes) {
    out.push_back({wanted.name, -1, cat(path.string(), ": ", size, " bytes instead of ", wanted.bytes)});
    return;
  }
  if (check == ArchiveCheck::sizes) return;
  const ArchiveFile found = hash_file(path, wanted.name);
  for (std::size_t i = 0; i < found.blocks.size() && i < wanted.blocks.size(); ++i) {
    if (found.blocks[i] == wanted.blocks[i]) continue;
    const std::uint64_t begin = i * kArchiveBlock, end = std::min(wanted.bytes, begin + kArchiveBlock);
    out.push_back({wanted.name, static_cast<std::int64_t>(i),
                   cat(path.string(), ": block ", i, " (bytes ", begin, "-", end - 1, ") is damaged: hash ",
                       hex64(found.blocks[i]), " instead of ", hex64(wanted.blocks[i]))});
  }
  // Blocks in order but the whole not: the manifest itself was changed.
  if (out.empty() && found.hash != wanted.hash) {
    out.push_back(
        {wanted.name, -1, cat(path.string(), ": hash ", hex64(found.hash), " instead of ", hex64(wanted.hash))});
  }
}

void remove_tree(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) fail(Exit::data, "archive", "cannot remove ", path.string(), ": ", error.message());
}

void rename_path(const fs::path& from, const fs::path& to) {
  if (std::rename(from.c_str(), to.c_str()) != 0) fail_errno(cat("rename ", from.string(), " to"), to);
}

// Puts `from` in the place of the directory `to` and returns where the old one is now. The exchange is one step on
// Linux file systems that have it; elsewhere a kill between the two renames leaves neither under the name (other
// checkpoints stay whole).
fs::path replace_directory(const fs::path& from, const fs::path& to) {
  constexpr unsigned kExchange = 1u << 1;  // RENAME_EXCHANGE of linux/fs.h
  if (::syscall(SYS_renameat2, AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), kExchange) == 0) return from;
  if (errno != EINVAL && errno != ENOSYS && errno != ENOTSUP) fail_errno("replace", to);
  const fs::path old = temporary_sibling(to.parent_path() / cat("del-", to.filename().string()));
  rename_path(to, old);
  rename_path(from, to);
  return old;
}

}  // namespace

void set_archive_fault_hook(ArchiveFaultHook hook) { fault_hook = std::move(hook); }

ArchiveWriter::ArchiveWriter(const fs::path& parent, const std::string& name, std::uint64_t expected_bytes)
    : parent_(parent), name_(name) {
  require(is_plain_name(name), "archive", "\"", name, "\" cannot name a directory");
  make_directories(parent);
  if (const std::uint64_t free = free_bytes(parent); expected_bytes > free) {
    fail(Exit::data, "archive", "not enough space for ", (parent / name).string(), ": ", expected_bytes,
         " bytes needed, ", free, " bytes free; older checkpoints are untouched");
  }
  temporary_ = temporary_sibling(parent / name);
  if (::mkdir(temporary_.c_str(), 0777) != 0) fail_errno("create folder", temporary_);
  stage(ArchiveStage::begin, temporary_);
}

ArchiveWriter::~ArchiveWriter() {
  if (done_) return;
  std::error_code ignored;  // what cannot be removed now is cleaned at the next start
  fs::remove_all(temporary_, ignored);
}

fs::path ArchiveWriter::add_file(const std::string& name) {
  require(!done_, "archive", "add_file after commit");
  require(is_plain_name(name), "archive", "\"", name, "\" is no plain file name");
  require(std::find(files_.begin(), files_.end(), name) == files_.end(), "archive", name, " was added before");
  files_.push_back(name);
  return temporary_ / name;
}

void ArchiveWriter::write(const std::string& name, std::string_view bytes) {
  const fs::path path = add_file(name);
  WriteFile file(path, bytes.size());
  file.write(bytes);
  file.close();
  stage(ArchiveStage::file_written, path);
}

void ArchiveWriter::write(const std::string& name, std::span<const std::byte> bytes) {
  write(name, std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

ArchiveReport ArchiveWriter::commit() {
  require(!done_, "archive", "a second commit of ", name_);
  ArchiveReport report;
  report.path = parent_ / name_;
  for (const std::string& name : files_) {
    const fs::path path = temporary_ / name;
    report.files.push_back(hash_file(path, name));
    report.bytes += report.files.back().bytes;
    sync_file(path);
    stage(ArchiveStage::file_synced, path);
  }
  const fs::path manifest = temporary_ / kManifest;
  const std::string text = manifest_text(name_, report.files);
  report.bytes += text.size();
  WriteFile file(manifest, text.size());
  file.write(text);
  stage(ArchiveStage::manifest_written, manifest);
  file.close(true);
  stage(ArchiveStage::manifest_synced, manifest);
  sync_directory(temporary_);
  stage(ArchiveStage::folder_synced, temporary_);

  fs::path old;
  std::error_code absent;
  if (fs::symlink_status(report.path, absent).type() == fs::file_type::not_found) {
    rename_path(temporary_, report.path);
  } else {
    old = replace_directory(temporary_, report.path);
  }
  done_ = true;
  stage(ArchiveStage::renamed, report.path);
  sync_directory(parent_);
  stage(ArchiveStage::parent_synced, parent_);
  if (!old.empty()) remove_tree(old);
  return report;
}

std::vector<ArchiveDamage> verify_archive(const fs::path& directory, ArchiveCheck check) {
  std::vector<ArchiveDamage> out;
  std::uint64_t manifest_bytes = 0;
  try {
    std::error_code error;
    if (!fs::is_directory(directory, error)) return {{"", -1, directory.string() + ": there is no such folder"}};
    for (const ArchiveFile& file : read_manifest(directory, manifest_bytes)) {
      std::vector<ArchiveDamage> of_file;
      check_file(directory, file, check, of_file);
      out.insert(out.end(), of_file.begin(), of_file.end());
    }
  } catch (const Error& e) { out.push_back({std::string(kManifest), -1, e.what()}); }
  return out;
}

ArchiveReader::ArchiveReader(const fs::path& directory, ArchiveCheck check) {
  const std::vector<ArchiveDamage> damages = verify_archive(directory, check);
  if (!damages.empty()) {
    std::string text;
    for (std::size_t i = 0; i < std::min(damages.size(), kNamedDamages); ++i) text += "\n  " + damages[i].message;
    if (damages.size() > kNamedDamages) text += cat("\n  ... and ", damages.size() - kNamedDamages, " more");
    fail(Exit::data, "archive", directory.string(), " is damaged:", text);
  }
  std::error_code error;
  report_.path = fs::canonical(directory, error);
  if (error) fail(Exit::data, "archive", directory.string(), ": ", error.message());
  report_.files = read_manifest(directory, report_.bytes);
  for (const ArchiveFile& file : report_.files) report_.bytes += file.bytes;
}

bool ArchiveReader::has(std::string_view name) const {
  return std::any_of(report_.files.begin(), report_.files.end(), [&](const ArchiveFile& f) { return f.name == name; });
}

fs::path ArchiveReader::file(std::string_view name) const {
  if (!has(name)) fail(Exit::data, "archive", report_.path.string(), ": the manifest lists no ", name);
  return report_.path / name;
}

std::vector<std::string> list_archives(const fs::path& parent) {
  std::vector<std::string> out;
  std::error_code error;
  for (fs::directory_iterator it(parent, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    std::error_code ignored;
    const bool is_folder = it->symlink_status(ignored).type() == fs::file_type::directory;
    if (is_folder && is_plain_name(name) && fs::exists(it->path() / kManifest, ignored)) out.push_back(name);
  }
  if (error && error != std::errc::no_such_file_or_directory) {
    fail(Exit::data, "archive", "cannot list ", parent.string(), ": ", error.message());
  }
  std::sort(out.begin(), out.end());
  return out;
}

fs::path last_good_archive(const fs::path& parent, ArchiveCheck check, std::vector<std::string>* damaged) {
  const std::vector<std::string> names = list_archives(parent);
  for (std::size_t i = names.size(); i-- > 0;) {
    if (verify_archive(parent / names[i], check).empty()) return parent / names[i];
    if (damaged != nullptr) damaged->push_back(names[i]);
  }
  return {};
}

void remove_archive(const fs::path& parent, const std::string& name) {
  require(is_plain_name(name), "archive", "\"", name, "\" cannot name a directory");
  const fs::path doomed = temporary_sibling(parent / cat("del-", name));  // .tmp-del-NAME-...
  rename_path(parent / name, doomed);
  stage(ArchiveStage::remove_renamed, doomed);
  sync_directory(parent);
  remove_tree(doomed);
}

std::vector<std::string> prune_archives(const fs::path& parent, std::size_t keep_last,
                                        const std::function<bool(const std::string&)>& keep) {
  std::vector<std::string> removed;
  const std::vector<std::string> names = list_archives(parent);
  for (std::size_t i = 0; i + keep_last < names.size(); ++i) {
    if (keep && keep(names[i])) continue;
    remove_archive(parent, names[i]);
    removed.push_back(names[i]);
  }
  return removed;
}

int clean_stale_archives(const fs::path& parent) {
  std::vector<fs::path> stale;  // collected first: removing while listing may skip entries
  std::error_code error;
  for (fs::directory_iterator it(parent, error), end; !error && it != end; it.increment(error)) {
    if (it->path().filename().string().starts_with(kTemporary)) stale.push_back(it->path());
  }
  if (error && error != std::errc::no_such_file_or_directory) {
    fail(Exit::data, "archive", "cannot list ", parent.string(), ": ", error.message());
  }
  for (const fs::path& path : stale) remove_tree(path);
  return static_cast<int>(stale.size());
}

void set_archive_link(const fs::path& parent, const std::string& link, const std::string& name) {
  require(is_plain_name(link) && is_plain_name(name), "archive", "link ", link, " -> ", name);
  const fs::path temporary = temporary_sibling(parent / link);
  if (::symlink(name.c_str(), temporary.c_str()) != 0) fail_errno("create link", temporary);
  stage(ArchiveStage::link_created, temporary);
  if (std::rename(temporary.c_str(), (parent / link).c_str()) != 0) {
    const int error = errno;
    ::unlink(temporary.c_str());
    errno = error;
    fail_errno("replace link", parent / link);
  }
  stage(ArchiveStage::link_renamed, parent / link);
  sync_directory(parent);
}

std::string read_archive_link(const fs::path& parent, const std::string& link) {
  std::error_code error;
  const fs::path target = fs::read_symlink(parent / link, error);
  if (error || !fs::is_directory(parent / link, error)) return "";
  return target.string();
}

}  // namespace sieve
