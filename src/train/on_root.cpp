#include "train/on_root.h"

#include <exception>
#include <new>

#include "core/error.h"

namespace sieve {
namespace {

// First byte of the message that travels: the exit code, 0 for success.
std::string outcome_of(const std::function<std::string()>& f) {
  try {
    return std::string(1, '\0') + f();
  } catch (const Error& e) {
    return std::string(1, static_cast<char>(e.code())) + e.what();
  } catch (const std::bad_alloc&) {
    return std::string(1, static_cast<char>(Exit::memory)) + "out of memory";
  } catch (const std::exception& e) { return std::string(1, static_cast<char>(Exit::internal)) + e.what(); }
}

std::string unwrap(const std::string& outcome) {
  const auto code = static_cast<Exit>(static_cast<unsigned char>(outcome.front()));
  if (code != Exit::ok) throw Error(code, outcome.substr(1));
  return outcome.substr(1);
}

}  // namespace

std::string on_root(Communicator& comm, std::string_view what, const std::function<std::string()>& f) {
  return unwrap(comm.broadcast(comm.rank() == 0 ? outcome_of(f) : std::string(), 0, what));
}

void on_every_rank(Communicator& comm, std::string_view what, const std::function<void()>& f) {
  const std::string mine = outcome_of([&f] {
    f();
    return std::string();
  });
  const auto failed = comm.all_gather(static_cast<std::int64_t>(mine.front() != '\0'), what);
  for (int rank = 0; rank < comm.size(); ++rank) {
    if (failed[static_cast<std::size_t>(rank)] != 0) unwrap(comm.broadcast(mine, rank, what));
  }
}

}  // namespace sieve
