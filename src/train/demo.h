// What `sieve pretrain` without a configuration trains: a small SparseK + window model on text that every machine with
// a C++ compiler has.
#pragma once

#include <string_view>

namespace sieve {

inline constexpr std::string_view kDemoName = "built-in demo";
std::string_view demo_config();  // YAML

bool demo_data_exists();

// Makes the token shards that demo_config() names, from the compiler's C++ headers, where they are not there yet.
// Exit::config where there are no headers.
void prepare_demo_data();

}  // namespace sieve
