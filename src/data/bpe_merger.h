// Applies the merges of a byte-level BPE to one piece: always the applicable merge of lowest rank, leftmost first.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/bpe_model.h"

namespace sieve {

class BpeMerger {
 public:
  struct Symbol {
    std::int32_t id, previous, next;  // a list by index; -1: none
  };
  struct Candidate {
    std::int32_t rank, left;  // merge number, index of the left symbol
  };
  // Memory reused between pieces.
  struct Scratch {
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
  };

  BpeMerger(const BpeModel& model, std::string subject);

  // Appends the ids of `piece`: O(n log n) in its bytes. Exit::data where the vocabulary has no token for a byte.
  void merge(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& out) const;
  // The ids of the bytes themselves.
  void bytes(std::string_view text, std::vector<std::int32_t>& out) const;

 private:
  std::int32_t id_of_byte(char byte) const;
  std::int32_t rank_of(std::int32_t left, std::int32_t right) const;  // -1: no such merge
  void push(Scratch& scratch, std::int32_t left) const;

  struct Slot {
    std::uint64_t pair = ~std::uint64_t{0};
    std::int32_t rank = -1;
  };
  std::string subject_;
  std::array<std::int32_t, 256> byte_ids_;
  std::vector<BpeModel::Merge> merges_;
  std::vector<Slot> table_;  // open addressing, a power of two, at most half full
};

}  // namespace sieve
