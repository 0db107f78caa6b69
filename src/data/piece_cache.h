// Remembers the ids of short pieces. Text repeats its words, so most pieces are found here instead of being merged
// anew.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sieve {

class PieceCache {
 public:
  static constexpr std::size_t kMaxPiece = 64;         // bytes; longer pieces are rarely seen twice
  static constexpr std::size_t kMaxEntries = 1 << 17;  // then it is emptied: memory stays below about 16 MiB

  bool get(std::string_view piece, std::vector<std::int32_t>& out) const;  // appends and says true if known
  void put(std::string_view piece, std::span<const std::int32_t> ids);     // a piece that get() did not know

 private:
  struct Slot {
    std::uint64_t hash = 0;
    std::uint32_t text = 0, ids = 0;            // begins in texts_ and ids_
    std::uint16_t text_size = 0, ids_size = 0;  // text_size 0: free
  };
  std::size_t find(std::string_view piece, std::uint64_t hash) const;  // its slot or the free one where it belongs
  void grow();

  std::vector<Slot> slots_;
  std::size_t entries_ = 0;
  std::string texts_;
  std::vector<std::int32_t> ids_;
};

}  // namespace sieve
