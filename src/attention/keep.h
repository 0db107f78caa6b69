// Tables that are computed once and kept, each for the stream that made it: what later work of that stream reads was
// written before, and the memory of a table that had to go follows the work that still reads it. Another stream of the
// device makes tables of its own, so that nothing has to wait for an event, and a table that is there may be asked for
// while work is recorded in a graph. That holds because
//   - streams are never destroyed (tensor/cuda/runtime.cpp keeps them): a handle means one stream for good, and the
//     memory of a table can follow the work of its stream at any time;
//   - who records a read of a table launches the graph on that same stream: on another one nothing orders the read
//     behind the write;
//   - make() puts its tensors on `stream` itself. Tensor::to(stream) moves a tensor of another device there; one that
//     is on the device already it returns as it is, on the stream that it was made on.
#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
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
  Keep(std::string_view subject, std::size_t most) : subject_(subject), most_(most) {
    require(most >= 1, subject, "keeps at least one table of a stream");
  }

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
    const auto goes =
        found != entries_.end() || !full ? found : std::find_if(entries_.begin(), entries_.end(), of_stream);
    const auto at = goes - entries_.begin(), old = std::ssize(entries_);
    entries_.push_back({key, stream, value});  // first: where there is no memory for it, none has gone
    if (at < old) entries_.erase(entries_.begin() + at);
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
