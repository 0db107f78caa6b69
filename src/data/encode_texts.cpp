#include "data/encode_texts.h"

#include <algorithm>
#include <string>
#include <vector>

#include "core/parallel_for.h"
#include "data/piecewise.h"
#include "data/xxh3_stream.h"
#include "io/file.h"

namespace sieve {
namespace {

using Ids = std::vector<std::int32_t>;

constexpr std::size_t kHashedBytes = 64 << 10;  // of a document, for the split
constexpr std::size_t kBatchBytes = 4 << 20;    // of whole documents encoded in parallel
constexpr std::size_t kBatchDocuments = 1 << 14;

// Whole documents are gathered and encoded in parallel, in their order; a document that comes in
// pieces is encoded as it comes.
class Encoding {
 public:
  Encoding(const Tokenizer& tokenizer, TokenSpool& spool, PrepareReport& report, PrepareProgress& state,
           const std::function<void(const PrepareProgress&)>& progress)
      : tokenizer_(tokenizer), spool_(spool), report_(report), state_(state), progress_(progress) {}

  void piece(const TextPiece& p) {
    note_source(p);
    report_.text_bytes += static_cast<std::int64_t>(p.text.size());
    const bool whole = long_bytes_ == 0 && p.last;
    if (whole) {
      add_whole(p.text);
    } else {
      flush();
      add_part(p.text, p.last);
    }
  }

  void finish() {
    flush();
    report_.source_hash = source_hash_.digest();
  }

 private:
  // Names, contents and document ends, each told apart from the others by a mark.
  void note_source(const TextPiece& p) {
    if (p.source != source_) {
      if (source_) ++state_.files_done;
      source_ = p.source;
      source_hash_.update(std::string_view("\0file", 5));
      source_hash_.update(p.source->name);
      source_hash_.update(std::string_view("\0", 1));
    }
    source_hash_.update(p.text);
    if (p.last) source_hash_.update(std::string_view("\0document", 9));
  }

  void add_whole(std::string_view text) {
    if (text.empty()) {
      ++report_.empty_documents;
      return;
    }
    batch_.emplace_back(text);
    batch_bytes_ += text.size();
    if (batch_bytes_ >= kBatchBytes || batch_.size() >= kBatchDocuments) flush();
  }

  void flush() {
    if (batch_.empty()) return;
    std::vector<Ids> ids(batch_.size());
    parallel_for(static_cast<std::int64_t>(batch_.size()), 1, [&](std::int64_t begin, std::int64_t end) {
      for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i) {
        tokenizer_.encode(batch_[i], ids[i], Special::as_text);
      }
    });
    for (std::size_t i = 0; i < batch_.size(); ++i) {
      spool_.append(ids[i]);
      end_document(xxh3(std::string_view(batch_[i]).substr(0, kHashedBytes)));
    }
    batch_.clear();
    batch_bytes_ = 0;
    report();
  }

  void add_part(std::string_view text, bool last) {
    head_ += text.substr(0, kHashedBytes - std::min(kHashedBytes, head_.size()));
    long_bytes_ += text.size();
    Ids ids;
    long_document_.add(text, last, [&](std::string_view all, bool whole) {
      if (!whole) return tokenizer_.encode_prefix(all, ids);
      tokenizer_.encode(all, ids, Special::as_text);
      return all.size();
    });
    spool_.append(ids);
    if (last) {
      if (long_bytes_ == 0) {
        ++report_.empty_documents;
      } else {
        end_document(xxh3(head_));
      }
      head_.clear();
      long_bytes_ = 0;
    }
    report();
  }

  void end_document(std::uint64_t hash) {
    const std::int32_t separator = *tokenizer_.separator();
    spool_.append({&separator, 1});
    spool_.end_document(hash);
  }

  void report() {
    state_.documents = spool_.documents();
    state_.tokens = spool_.tokens();
    state_.text_bytes = report_.text_bytes;
    if (progress_) progress_(state_);
  }

  const Tokenizer& tokenizer_;
  TokenSpool& spool_;
  PrepareReport& report_;
  PrepareProgress& state_;
  const std::function<void(const PrepareProgress&)>& progress_;
  const TextFile* source_ = nullptr;
  Xxh3Stream source_hash_;
  std::vector<std::string> batch_;
  std::size_t batch_bytes_ = 0;
  Piecewise long_document_;
  std::string head_;            // its first bytes
  std::size_t long_bytes_ = 0;  // of it so far
};

}  // namespace

void encode_texts(const Tokenizer& tokenizer, const std::vector<TextFile>& files, const PrepareOptions& options,
                  TokenSpool& spool, PrepareReport& report, PrepareProgress& state,
                  const std::function<void(const PrepareProgress&)>& progress) {
  Encoding encoding(tokenizer, spool, report, state, progress);
  read_texts(files, options.field, options.allow_invalid_utf8, [&](const TextPiece& p) { encoding.piece(p); });
  encoding.finish();
}

}  // namespace sieve
