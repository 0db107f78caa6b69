#include "data/bpe_merger.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "core/error.h"

namespace sieve {
namespace {

constexpr std::size_t kKeepScratch = 1 << 20;

std::uint64_t pair_of(std::int32_t left, std::int32_t right) {
  return (static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32) | static_cast<std::uint32_t>(right);
}
std::size_t slot_of(std::uint64_t pair, std::size_t mask) {
  return static_cast<std::size_t>((pair * 0x9E3779B97F4A7C15ull) >> 32) & mask;
}
// The heap's order: std::push_heap keeps the largest in front, we want the lowest rank, then the leftmost.
bool after(const BpeMerger::Candidate& a, const BpeMerger::Candidate& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.left > b.left;
}

}  // namespace

BpeMerger::BpeMerger(const BpeModel& model, std::string subject)
    : subject_(std::move(subject)), merges_(model.merges), table_(std::bit_ceil(2 * model.merges.size() + 2)) {
  byte_ids_.fill(-1);
  for (std::size_t id = 0; id < model.tokens.size(); ++id) {
    const BpeModel::Token& t = model.tokens[id];
    if (t.kind == BpeModel::Kind::ordinary && t.bytes.size() == 1) {
      byte_ids_[static_cast<unsigned char>(t.bytes[0])] = static_cast<std::int32_t>(id);
    }
  }
  for (std::size_t rank = 0; rank < merges_.size(); ++rank) {
    const std::uint64_t pair = pair_of(merges_[rank].left, merges_[rank].right);
    std::size_t i = slot_of(pair, table_.size() - 1);
    while (table_[i].rank >= 0 && table_[i].pair != pair) i = (i + 1) & (table_.size() - 1);
    // Of a pair that is listed twice the later rank holds, as in Hugging Face's map.
    table_[i] = {pair, static_cast<std::int32_t>(rank)};
  }
}

std::int32_t BpeMerger::rank_of(std::int32_t left, std::int32_t right) const {
  const std::uint64_t pair = pair_of(left, right);
  std::size_t i = slot_of(pair, table_.size() - 1);
  while (table_[i].rank >= 0 && table_[i].pair != pair) i = (i + 1) & (table_.size() - 1);
  return table_[i].rank;
}

void BpeMerger::push(Scratch& scratch, std::int32_t left) const {
  const Symbol& a = scratch.symbols[static_cast<std::size_t>(left)];
  if (a.next < 0) return;
  const std::int32_t rank = rank_of(a.id, scratch.symbols[static_cast<std::size_t>(a.next)].id);
  if (rank < 0) return;
  scratch.heap.push_back({rank, left});
  std::push_heap(scratch.heap.begin(), scratch.heap.end(), after);
}

std::int32_t BpeMerger::id_of_byte(char byte) const {
  const auto b = static_cast<unsigned char>(byte);
  if (byte_ids_[b] < 0) {
    fail(Exit::data, "tokenizer", subject_, ": the vocabulary has no token for byte ", static_cast<int>(b),
         " of the text; it was trained without the byte alphabet");
  }
  return byte_ids_[b];
}

void BpeMerger::bytes(std::string_view text, std::vector<std::int32_t>& out) const {
  for (const char c : text) out.push_back(id_of_byte(c));
}

void BpeMerger::merge(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& out) const {
  if (piece.size() > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max())) {
    fail(Exit::data, "tokenizer", subject_, ": a piece of ", piece.size(), " bytes without a split exceeds 2 GiB");
  }
  auto& symbols = scratch.symbols;
  const auto n = static_cast<std::int32_t>(piece.size());
  symbols.clear();
  scratch.heap.clear();
  for (std::int32_t i = 0; i < n; ++i) {
    symbols.push_back({id_of_byte(piece[static_cast<std::size_t>(i)]), i - 1, i + 1 < n ? i + 1 : -1});
  }
  for (std::int32_t i = 0; i + 1 < n; ++i) push(scratch, i);
  while (!scratch.heap.empty()) {
    std::pop_heap(scratch.heap.begin(), scratch.heap.end(), after);
    const Candidate top = scratch.heap.back();
    scratch.heap.pop_back();
    Symbol& left = symbols[static_cast<std::size_t>(top.left)];
    // Out of date where either side has been merged meanwhile: the pair that is there now has a candidate of its own.
    if (left.id < 0 || left.next < 0) continue;
    Symbol& right = symbols[static_cast<std::size_t>(left.next)];
    const BpeModel::Merge& m = merges_[static_cast<std::size_t>(top.rank)];
    if (left.id != m.left || right.id != m.right) continue;
    left.id = m.result;
    right.id = -1;
    left.next = right.next;
    if (left.next >= 0) symbols[static_cast<std::size_t>(left.next)].previous = top.left;
    if (left.previous >= 0) push(scratch, left.previous);
    push(scratch, top.left);
  }
  for (std::int32_t i = n > 0 ? 0 : -1; i >= 0; i = symbols[static_cast<std::size_t>(i)].next) {
    out.push_back(symbols[static_cast<std::size_t>(i)].id);
  }
  if (piece.size() > kKeepScratch) scratch = Scratch{};  // one huge piece must not hold its memory for good
}

}  // namespace sieve
