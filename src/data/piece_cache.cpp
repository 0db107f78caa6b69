#include "data/piece_cache.h"

#include "io/file.h"

namespace sieve {

std::size_t PieceCache::find(std::string_view piece, std::uint64_t hash) const {
  std::size_t i = hash & (slots_.size() - 1);
  for (;; i = (i + 1) & (slots_.size() - 1)) {
    const Slot& s = slots_[i];
    if (s.text_size == 0) return i;
    if (s.hash == hash && std::string_view(texts_).substr(s.text, s.text_size) == piece) return i;
  }
}

bool PieceCache::get(std::string_view piece, std::vector<std::int32_t>& out) const {
  if (piece.size() > kMaxPiece || slots_.empty()) return false;
  const Slot& s = slots_[find(piece, xxh3(piece))];
  if (s.text_size == 0) return false;
  out.insert(out.end(), ids_.begin() + s.ids, ids_.begin() + s.ids + s.ids_size);
  return true;
}

void PieceCache::put(std::string_view piece, std::span<const std::int32_t> ids) {
  if (piece.empty() || piece.size() > kMaxPiece) return;
  if (entries_ == kMaxEntries) {
    slots_.assign(slots_.size(), Slot{});
    texts_.clear();
    ids_.clear();
    entries_ = 0;
  }
  if (2 * (entries_ + 1) > slots_.size()) grow();
  const std::uint64_t hash = xxh3(piece);
  slots_[find(piece, hash)] = {hash, static_cast<std::uint32_t>(texts_.size()), static_cast<std::uint32_t>(ids_.size()),
                               static_cast<std::uint16_t>(piece.size()), static_cast<std::uint16_t>(ids.size())};
  texts_ += piece;
  ids_.insert(ids_.end(), ids.begin(), ids.end());
  ++entries_;
}

void PieceCache::grow() {
  std::vector<Slot> old(slots_.empty() ? 256 : 2 * slots_.size());
  old.swap(slots_);
  for (const Slot& s : old) {
    if (s.text_size > 0) slots_[find(std::string_view(texts_).substr(s.text, s.text_size), s.hash)] = s;
  }
}

}  // namespace sieve
