#include "train/expression.h"

#include <cctype>
#include <charconv>

#include "core/error.h"

namespace sieve {
namespace {

class Parser {
 public:
  Parser(std::string_view text, const std::function<double(const std::string&)>& value) : text_(text), value_(value) {}

  bool comparison() {
    const double left = sum();
    const std::string op = comparator();
    const double right = sum();
    skip_space();
    if (at_ != text_.size()) bad("unexpected text");
    if (op == ">") return left > right;
    if (op == ">=") return left >= right;
    if (op == "<") return left < right;
    if (op == "<=") return left <= right;
    return op == "==" ? left == right : left != right;
  }

 private:
  double sum() {
    double total = product();
    while (true) {
      if (take('+')) {
        total += product();
      } else if (take('-')) {
        total -= product();
      } else {
        return total;
      }
    }
  }
  double product() {
    double total = factor();
    while (true) {
      if (take('*')) {
        total *= factor();
      } else if (take('/')) {
        total /= factor();
      } else {
        return total;
      }
    }
  }
  double factor() {
    constexpr int kDepth = 64;
    if (++depth_ > kDepth) bad("nested too deeply");
    double result = 0;
    if (take('(')) {
      result = sum();
      if (!take(')')) bad("missing )");
    } else if (take('-')) {
      result = -factor();
    } else {
      result = operand();
    }
    --depth_;
    return result;
  }
  double operand() {
    skip_space();
    const std::size_t start = at_;
    double number = 0;
    const auto parsed = std::from_chars(text_.data() + at_, text_.data() + text_.size(), number);
    const auto after = static_cast<std::size_t>(parsed.ptr - text_.data());
    // "512k.token_ppl" is a name although it begins like a number.
    if (parsed.ec == std::errc{} && (after == text_.size() || !in_name(after))) {
      at_ = after;
      return number;
    }
    while (at_ < text_.size() && in_name(at_)) ++at_;
    if (at_ == start) bad("expected a number or a metric");
    return value_(std::string(text_.substr(start, at_ - start)));
  }
  bool in_name(std::size_t i) const {
    const auto c = static_cast<unsigned char>(text_[i]);
    if (std::isalnum(c) != 0 || c == '_' || c == '.') return true;
    // Names of runs and data sets hold dashes; an operator has space beside it.
    const auto solid = [&](std::size_t k) {
      return k < text_.size() && (std::isalnum(static_cast<unsigned char>(text_[k])) != 0 || text_[k] == '_');
    };
    return (c == '-' || c == '+' || c == '/') && i > 0 && solid(i - 1) && solid(i + 1);
  }
  std::string comparator() {
    skip_space();
    for (const std::string_view op : {">=", "<=", "==", "!=", ">", "<"}) {
      if (text_.substr(at_, op.size()) == op) {
        at_ += op.size();
        return std::string(op);
      }
    }
    bad("expected a comparison (> >= < <= == !=)");
  }
  bool take(char c) {
    skip_space();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void skip_space() {
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_])) != 0) ++at_;
  }
  [[noreturn]] void bad(std::string_view what) const {
    fail(Exit::config, "fail-if", "\"", text_, "\": ", what, " at character ", at_ + 1);
  }

  std::string_view text_;
  const std::function<double(const std::string&)>& value_;
  std::size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace

bool evaluate_comparison(std::string_view expression, const std::function<double(const std::string&)>& value) {
  return Parser(expression, value).comparison();
}

}  // namespace sieve
