#include "format/pickle_context.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "format/name_index.h"
#include "format/pickle_text.h"
#include "format/text.h"

namespace ckpt_streamer::format {
namespace {

// Real names stay below one name byte for a pickle byte.
constexpr uint64_t kNameBytesForPickleByte = 64;
constexpr uint64_t kFreeNameBytes = 1 << 20;

// Up to here, comparing keys pair by pair beats building a table.
constexpr size_t kFewKeys = 8;

}  // namespace

PickleContext::PickleContext(
    const TensorPickle& pickle,
    std::string_view root_name)
    : tree_(pickle.tree),
      origin_(pickle.origin),
      path_(root_name),
      name_budget_bytes_(
          kFreeNameBytes + kNameBytesForPickleByte * pickle.size_bytes) {
  globals_.reserve(tree_.global_count());
  for (uint32_t i = 0; i < tree_.global_count(); ++i) {
    globals_.push_back(meaning_of(tree_.global(i)));
  }
}

void PickleContext::append_part(std::string_view part, bool is_first) {
  charge_name(part.size());
  if (!is_first) {
    path_ += '.';
  }
  path_ += part;
}

void PickleContext::check_key(ValueId key) const {
  if (tree_.kind(key) != ValueKind::kString || is_valid_utf8(tree_.text(key))) {
    return;
  }
  fail(
      ErrorKind::kCorrupt,
      "the key " + quoted(tree_.text(key)) + " in " + quoted(path_) +
          " is not UTF-8, expected a string",
      origin_.file_offset);
}

void PickleContext::charge_name(uint64_t byte_count) {
  name_bytes_ += byte_count;
  if (name_bytes_ > name_budget_bytes_) {
    throw CheckpointError(
        ErrorKind::kUnsupported,
        origin_.path,
        "the slot names add up to more than " +
            std::to_string(name_budget_bytes_) + " bytes, expected at most " +
            std::to_string(kNameBytesForPickleByte) + " for each byte of " +
            quoted(origin_.record_name),
        origin_.file_offset);
  }
}

void PickleContext::check_distinct_keys(std::span<const ValueId> entries) {
  const auto fail_duplicate = [&](const std::string& key) {
    fail(
        ErrorKind::kCorrupt,
        "the dict " + quoted(path_) + " has the key " + quoted(key) +
            " twice, expected distinct keys",
        origin_.file_offset);
  };
  strings_.clear();
  big_ints_.clear();
  ints_.clear();
  floats_.clear();
  nones_.clear();
  strings_.reserve(entries.size() / 2);
  for (size_t i = 0; i < entries.size(); i += 2) {
    const ValueId key = entries[i];
    switch (tree_.kind(key)) {
      case ValueKind::kString:
        strings_.push_back(tree_.text(key));
        break;
      case ValueKind::kBigInt:
        big_ints_.push_back(tree_.text(key));
        break;
      case ValueKind::kInt:
        ints_.push_back(tree_.int_value(key));
        break;
      case ValueKind::kBool:
        ints_.push_back(tree_.bool_value(key) ? 1 : 0);
        break;
      case ValueKind::kFloat: {
        // 1.0 == 1; a double of 2^63 or more equals no int64.
        const double value = tree_.float_value(key);
        if (value == std::trunc(value) && std::fabs(value) < 0x1p63) {
          ints_.push_back(static_cast<int64_t>(value));
        } else if (!std::isnan(value)) {
          floats_.push_back(value);
        }
        break;
      }
      case ValueKind::kNone:
        nones_.push_back(0);
        break;
      default:
        break;
    }
  }
  const auto check_numbers = [&](auto& numbers, const auto& text) {
    std::sort(numbers.begin(), numbers.end());
    const auto twin = std::adjacent_find(numbers.begin(), numbers.end());
    if (twin != numbers.end()) {
      fail_duplicate(text(*twin));
    }
  };
  check_numbers(ints_, [](int64_t value) { return std::to_string(value); });
  check_numbers(floats_, [](double value) { return float_text(value); });
  check_numbers(nones_, [](int64_t) { return std::string("None"); });
  for (std::vector<std::string_view>* const list : {&strings_, &big_ints_}) {
    const std::vector<std::string_view>& texts = *list;
    if (texts.size() <= kFewKeys) {
      for (auto text = texts.begin(); text != texts.end(); ++text) {
        if (std::find(texts.begin(), text, *text) != text) {
          fail_duplicate(std::string(*text));
        }
      }
    } else if (
        const NameIndex names(std::move(*list));
        names.duplicate().has_value()) {
      fail_duplicate(std::string(names.name(names.duplicate()->first)));
    }
  }
}

uint64_t PickleContext::read_count(
    ValueId id,
    const char* what,
    uint64_t file_offset) const {
  if (tree_.kind(id) != ValueKind::kInt || tree_.int_value(id) < 0) {
    fail_tensor(
        ErrorKind::kCorrupt,
        std::string("has the ") + what + " " + element_text(tree_, id) +
            ", expected an int of 0 or more",
        file_offset);
  }
  return static_cast<uint64_t>(tree_.int_value(id));
}

void PickleContext::fail_tensor(
    ErrorKind kind,
    const std::string& what,
    uint64_t file_offset) const {
  fail(kind, "tensor " + quoted(path_) + " " + what, file_offset);
}

void PickleContext::fail(
    ErrorKind kind,
    const std::string& what,
    uint64_t file_offset) const {
  throw CheckpointError(
      kind,
      origin_.path,
      what + " in " + quoted(origin_.record_name),
      file_offset);
}

}  // namespace ckpt_streamer::format
