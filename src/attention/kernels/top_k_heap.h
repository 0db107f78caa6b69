// The hard top-k of a stream under the fixed total order: larger u wins, then the larger key index. O(log k) a
// candidate that enters, O(1) for one that does not. A member keeps its slot until it is evicted; the newcomer takes
// that slot over.
#pragma once

#include <cstdint>
#include <vector>

namespace sieve {

class TopKHeap {
 public:
  explicit TopKHeap(std::int64_t k) : k_(k) {}

  struct Entry {
    double u;
    std::int64_t key;
    std::int32_t slot;
  };
  struct Offer {
    std::int64_t slot;     // -1: does not enter
    std::int64_t evicted;  // key, -1: the slot was free
  };

  // Keys are offered in ascending order, so a tie with the least member is won by the newcomer.
  Offer offer(double u, std::int64_t key) {
    if (size() < k_) {
      const auto slot = static_cast<std::int32_t>(size());
      heap_.push_back({u, key, slot});
      position_.push_back(slot);
      sift_up(slot);
      return {slot, -1};
    }
    Entry& least = heap_.front();
    if (u < least.u) return {-1, -1};
    const Offer result{least.slot, least.key};
    least.u = u;
    least.key = key;
    sift_down();
    return result;
  }

  void clear() {
    heap_.clear();
    position_.clear();
  }

  std::int64_t capacity() const { return k_; }
  std::int64_t size() const { return static_cast<std::int64_t>(heap_.size()); }
  const Entry& at_slot(std::int64_t slot) const {
    return heap_[static_cast<std::size_t>(position_[static_cast<std::size_t>(slot)])];
  }

 private:
  static bool less(const Entry& a, const Entry& b) { return a.u < b.u || (a.u == b.u && a.key < b.key); }
  void put(std::size_t at, const Entry& e) {
    heap_[at] = e;
    position_[static_cast<std::size_t>(e.slot)] = static_cast<std::int32_t>(at);
  }
  void sift_up(std::int32_t start) {
    auto at = static_cast<std::size_t>(start);
    const Entry moving = heap_[at];
    while (at > 0) {
      const std::size_t parent = (at - 1) / 2;
      if (!less(moving, heap_[parent])) break;
      put(at, heap_[parent]);
      at = parent;
    }
    put(at, moving);
  }
  void sift_down() {
    std::size_t at = 0;
    const Entry moving = heap_.front();
    for (;;) {
      std::size_t child = 2 * at + 1;
      if (child >= heap_.size()) break;
      if (child + 1 < heap_.size() && less(heap_[child + 1], heap_[child])) ++child;
      if (!less(heap_[child], moving)) break;
      put(at, heap_[child]);
      at = child;
    }
    put(at, moving);
  }

  std::int64_t k_;
  std::vector<Entry> heap_;             // min-heap
  std::vector<std::int32_t> position_;  // slot -> place in the heap
};

}  // namespace sieve
