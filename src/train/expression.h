// Comparisons such as "token_ppl > 30" or "sk.wiki.token_ppl > 1.05 * full.wiki.token_ppl", for --fail-if.
//   comparison: sum (> | >= | < | <= | == | !=) sum      sum: product ((+ | -) product)*      product: factor ((* | /)
//   factor)* factor: number | name | ( sum ) | - factor           name: letters, digits, _ . / and a - or + between
//   them without spaces
#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace sieve {

// `value` gives the value of a name. Error(Exit::config) that shows the expression where it is malformed.
bool evaluate_comparison(std::string_view expression, const std::function<double(const std::string&)>& value);

}  // namespace sieve
