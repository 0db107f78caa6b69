// Work that only rank 0 does (looking at folders, writing files) whose outcome every rank must share: its result, or
// its failure with the same exit code and message, so that no rank goes on into a collective that rank 0 never reaches.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "dist/communicator.h"

namespace sieve {

// Runs f on rank 0 and returns its text on every rank. An Error of f is thrown on every rank.
std::string on_root(Communicator& comm, std::string_view what, const std::function<std::string()>& f);

// Runs f on every rank; if it throws on some, the failure of the lowest such rank is thrown on all.
void on_every_rank(Communicator& comm, std::string_view what, const std::function<void()>& f);

}  // namespace sieve
