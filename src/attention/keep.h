// Tables that are computed once and kept, each for the stream that made it: what later work of that stream reads was
// written before, and the memory of a table that had to go follows the work that still reads it. Another stream of the
// device makes tables of its own, so that nothing has to wait for an event, and a table that is there may be asked for
// while work is recorded in a graph.
#pragma once

#include <algorithm>
#include <cstddef>
#include <mutex>
#include <string_view>
#include <utility>
#include <vector>

#include "core/error.h"
#include "tensor/graph.h"

namespace sieve {

// Key: comparable. Value: tensors on the stream that they are asked for. Thread-safe. A keep lives as long as the
// process: its tensors must not outlive the allocator.
template <class Key, class Value>
class Keep {
 public:
  // The newest `most` tables of every stream stay. `subject` is that of its errors.
  Keep(std::string_view subject, std::size_t most) : subject_(subject), most_(most) {}

  // The kept value of `key` that fits(value); else that of make(), which queues its work on `stream` and takes the
  // place of one that does not fit. Error(Exit::internal) where it would have to be made while the stream's work is
  // recorded: it would be written at every launch of the graph and at no other time. Who records work that reads a
  // table holds it as long as the graph.
  template <class Fits, class Make>
  Value get(const Key& key, const Stream& stream, Fits fits, Make make) {
    const std::lock_guard lock(mutex_);
    const auto of_stream = [&](const Entry& e) {
      return e.stream.device == stream.device && e.stream.handle == stream.handle;
    };
    const auto found =
        std::find_if(entries_.begin(), entries_.end(), [&](const Entry& e) { return of_stream(e) && e.key == key; });
    if (found != entries_.end() && fits(found->value)) return found->value;
    require(!recording(stream), subject_, "a table is made at its first use, which must not be recorded in a graph: ",
            "run the work once on this stream, then record it");
    Value value = make();
    const bool full = std::count_if(entries_.begin(), entries_.end(), of_stream) >= static_cast<std::ptrdiff_t>(most_);
    if (found != entries_.end()) entries_.erase(found);
    else if (full) entries_.erase(std::find_if(entries_.begin(), entries_.end(), of_stream));
    entries_.push_back({key, stream, value});
    return value;
  }

 private:
  struct Entry {
    Key key;
    Stream stream;
    Value value;
  };
  std::string_view subject_;
  std::size_t most_;
  std::mutex mutex_;
  std::vector<Entry> entries_;  // newest last
};

}  // namespace sieve
