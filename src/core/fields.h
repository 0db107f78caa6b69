// A configuration struct lists its fields once, in `void fields(FieldVisitor&)`. Parsing (with unknown-key errors),
// dumps, generated documentation, schema, `config explain` and resume checks are visitors of that list.
//
//   struct ScheduleConfig {
//     Choice<ScheduleType> type = ScheduleType::cosine;
//     std::int64_t warmup = 0;
//     void fields(FieldVisitor& v) {
//       v.choice({"type", "shape of the learning rate after warm-up"}, kScheduleNames, type);
//       v.integer({.name = "warmup", .doc = "steps of linear warm-up from 0", .min = 0}, warmup);
//     }
//   };
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sieve {

struct Field {
  std::string_view name;
  std::string_view doc;                                   // one sentence, states the unit
  double min = -std::numeric_limits<double>::infinity();  // inclusive bounds of numbers
  double max = std::numeric_limits<double>::infinity();
  std::string_view none = "auto";   // how an absent optional is written: "auto" or "null"
  std::string_view shorthand = "";  // list elements (or a whole list of one) given as a scalar set this member
};

class FieldVisitor {
 public:
  virtual ~FieldVisitor() = default;

  virtual void boolean(const Field&, bool&) = 0;
  virtual void integer(const Field&, std::int64_t&) = 0;  // written with suffixes too: 512Ki, 10B, 4M, 25Mi
  virtual void real(const Field&, double&) = 0;
  virtual void duration(const Field&, double& seconds) = 0;  // written 90, 90s, 10m, 11h50m
  virtual void text(const Field&, std::string&) = 0;
  virtual void boolean(const Field&, std::optional<bool>&) = 0;
  virtual void integer(const Field&, std::optional<std::int64_t>&) = 0;
  virtual void real(const Field&, std::optional<double>&) = 0;
  virtual void duration(const Field&, std::optional<double>&) = 0;
  virtual void text(const Field&, std::optional<std::string>&) = 0;
  virtual void reals(const Field&, std::vector<double>&) = 0;
  virtual void integers(const Field&, std::vector<std::int64_t>&) = 0;
  virtual void texts(const Field&, std::vector<std::string>&) = 0;  // one text stands for a list of itself

  // An enum whose values are 0..names.size()-1.
  template <class E>
  void choice(const Field& field, std::span<const std::string_view> names, E& value) {
    int index = static_cast<int>(value);
    choice_index(field, names, index);
    value = static_cast<E>(index);
  }
  // A nested struct: its keys are visited between enter and leave.
  template <class S>
  void group(const Field& field, S& value) {
    group_of(field, [&value](FieldVisitor& v) { value.fields(v); });
  }
  // name -> struct. An entry given by a later file or on the command line merges into the earlier one of the same name.
  template <class S>
  void table(const Field& field, std::map<std::string, S>& values) {
    std::vector<std::string> names;
    for (auto& entry : values) names.push_back(entry.first);
    table_of(
        field, names, [&values](const std::string& name, FieldVisitor& v) { values[name].fields(v); },
        [](FieldVisitor& v) {
          S prototype{};
          prototype.fields(v);
        });
  }
  // A list of structs; a new list replaces the old one.
  template <class S>
  void list(const Field& field, std::vector<S>& values) {
    std::size_t size = values.size();
    list_of(
        field, size, [&values](std::size_t new_size) { values.assign(new_size, S{}); },
        [&values](std::size_t i, FieldVisitor& v) { values[i].fields(v); },
        [](FieldVisitor& v) {
          S prototype{};
          prototype.fields(v);
        });
  }

 protected:
  using Members = std::function<void(FieldVisitor&)>;
  virtual void choice_index(const Field&, std::span<const std::string_view> names, int& index) = 0;
  virtual void group_of(const Field&, const Members&) = 0;
  virtual void table_of(const Field&, const std::vector<std::string>& names,
                        const std::function<void(const std::string&, FieldVisitor&)>& entry,
                        const Members& prototype) = 0;
  virtual void list_of(const Field&, std::size_t size, const std::function<void(std::size_t)>& resize,
                       const std::function<void(std::size_t, FieldVisitor&)>& element, const Members& prototype) = 0;
};

}  // namespace sieve
