#include "format/json.h"

#include <algorithm>
#include <charconv>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "format/text.h"

namespace ckpt_streamer::format {
namespace {

constexpr bool is_digit(char c) noexcept {
  return c >= '0' && c <= '9';
}

constexpr bool is_white_space(char c) noexcept {
  return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

constexpr bool is_high_surrogate(uint32_t unit) noexcept {
  return unit >= 0xD800 && unit < 0xDC00;
}

constexpr bool is_low_surrogate(uint32_t unit) noexcept {
  return unit >= 0xDC00 && unit < 0xE000;
}

const char* kind_text(JsonKind kind) {
  switch (kind) {
    case JsonKind::kObject:
      return "an object";
    case JsonKind::kArray:
      return "an array";
    case JsonKind::kString:
      return "a string";
    case JsonKind::kNumber:
      return "a number";
    case JsonKind::kBool:
      return "a bool";
    case JsonKind::kNull:
      return "null";
  }
  return "";
}

}  // namespace

JsonReader::JsonReader(std::string_view text, JsonOrigin origin)
    : text_(text), origin_(std::move(origin)) {
  const size_t valid_bytes = valid_utf8_bytes(text_);
  if (valid_bytes < text_.size()) {
    const auto* const bad =
        reinterpret_cast<const std::byte*>(text_.data() + valid_bytes);
    fail(
        "the byte " + hex_bytes({bad, 1}),
        "UTF-8",
        origin_.file_offset + valid_bytes);
  }
}

uint64_t JsonReader::file_offset() noexcept {
  skip_white_space();
  return origin_.file_offset + position_;
}

void JsonReader::skip_white_space() noexcept {
  while (position_ < text_.size() && is_white_space(text_[position_])) {
    ++position_;
  }
}

std::string JsonReader::found_text() const {
  if (position_ >= text_.size()) {
    return "the end";
  }
  size_t length = 1;
  while (position_ + length < text_.size() &&
         (static_cast<unsigned char>(text_[position_ + length]) & 0xC0) ==
             0x80) {
    ++length;
  }
  return quoted(text_.substr(position_, length));
}

void JsonReader::fail(
    const std::string& found,
    const std::string& expected,
    uint64_t file_offset) const {
  throw CheckpointError(
      ErrorKind::kCorrupt,
      origin_.path,
      "found " + found + ", expected " + expected + " in " + origin_.part,
      file_offset);
}

void JsonReader::fail_here(const std::string& expected) const {
  fail(found_text(), expected, origin_.file_offset + position_);
}

std::string JsonReader::of_subject(const char* what) const {
  return std::string(" as ") + what +
         (subject_kind_.empty() ? ""
                                : " of " + std::string(subject_kind_) + " " +
                                      quoted(subject_name_));
}

JsonKind JsonReader::peek(const char* what) {
  skip_white_space();
  if (position_ < text_.size()) {
    switch (const char c = text_[position_]) {
      case '{':
        return JsonKind::kObject;
      case '[':
        return JsonKind::kArray;
      case '"':
        return JsonKind::kString;
      case 't':
      case 'f':
        return JsonKind::kBool;
      case 'n':
        return JsonKind::kNull;
      default:
        if (c == '-' || is_digit(c)) {
          return JsonKind::kNumber;
        }
    }
  }
  fail_here("a value" + of_subject(what));
}

void JsonReader::expect_kind(
    JsonKind kind,
    const char* expected,
    const char* what) {
  const JsonKind found = peek(what);
  if (found != kind) {
    fail(
        kind_text(found),
        expected + of_subject(what),
        origin_.file_offset + position_);
  }
}

void JsonReader::push(bool is_object) {
  if (depth_ == kLargestDepth) {
    fail(
        "nesting deeper than " + std::to_string(kLargestDepth),
        "at most that",
        origin_.file_offset + position_);
  }
  is_object_[depth_++] = is_object;
  is_first_ = true;
  ++position_;
}

void JsonReader::pop() noexcept {
  ++position_;
  --depth_;
  is_first_ = false;
}

bool JsonReader::next_in(char close) {
  skip_white_space();
  const bool is_first = std::exchange(is_first_, false);
  if (position_ < text_.size()) {
    if (text_[position_] == close) {
      pop();
      return false;
    }
    if (is_first) {
      return true;
    }
    if (text_[position_] == ',') {
      ++position_;
      return true;
    }
  }
  fail_here(
      (is_first ? "a value or " : "',' or ") + quoted(std::string(1, close)));
}

void JsonReader::enter_object(const char* what) {
  expect_kind(JsonKind::kObject, "an object", what);
  push(true);
}

std::optional<std::string_view> JsonReader::next_name() {
  if (!next_in('}')) {
    return std::nullopt;
  }
  skip_white_space();
  if (position_ >= text_.size() || text_[position_] != '"') {
    fail_here("a name in double quotes");
  }
  const std::string_view name = string_token();
  skip_white_space();
  if (position_ >= text_.size() || text_[position_] != ':') {
    fail_here("':' behind the name " + quoted(name));
  }
  ++position_;
  return name;
}

void JsonReader::enter_array(const char* what) {
  expect_kind(JsonKind::kArray, "an array", what);
  push(false);
}

bool JsonReader::next_element() {
  return next_in(']');
}

std::string_view JsonReader::read_string(const char* what) {
  expect_kind(JsonKind::kString, "a string", what);
  return string_token();
}

uint64_t JsonReader::read_count(const char* what) {
  constexpr const char* kExpected = "an integer from 0 to 2^64 - 1";
  expect_kind(JsonKind::kNumber, kExpected, what);
  const size_t begin = position_;
  const std::string_view token = number_token();
  uint64_t value = 0;
  const auto [end, error] =
      std::from_chars(token.data(), token.data() + token.size(), value);
  if (error != std::errc() || end != token.data() + token.size()) {
    fail(
        quoted(token),
        kExpected + of_subject(what),
        origin_.file_offset + begin);
  }
  return value;
}

// Iterative, so that no file decides how deep the stack is.
std::string_view JsonReader::skip_value(const char* what) {
  const size_t outer_depth = depth_;
  skip_white_space();
  const size_t begin = position_;
  do {
    if (depth_ > outer_depth) {
      const bool has_next =
          is_object_[depth_ - 1] ? next_name().has_value() : next_element();
      if (!has_next) {
        continue;
      }
    }
    switch (peek(what)) {
      case JsonKind::kObject:
        push(true);
        break;
      case JsonKind::kArray:
        push(false);
        break;
      case JsonKind::kString:
        (void)string_token();
        break;
      case JsonKind::kNumber:
        (void)number_token();
        break;
      case JsonKind::kBool:
      case JsonKind::kNull:
        literal_token();
        break;
    }
  } while (depth_ > outer_depth);
  return text_.substr(begin, position_ - begin);
}

void JsonReader::expect_end() {
  skip_white_space();
  if (position_ < text_.size()) {
    fail_here("the end");
  }
}

std::string_view JsonReader::string_token() {
  const size_t begin = ++position_;
  bool has_escapes = false;
  while (true) {
    if (position_ >= text_.size()) {
      fail_here("a closing '\"'");
    }
    const char c = text_[position_];
    if (c == '"') {
      const size_t end = position_++;
      return has_escapes ? decode(begin, end)
                         : text_.substr(begin, end - begin);
    }
    if (static_cast<unsigned char>(c) < 0x20) {
      fail_here("a control character to be escaped");
    }
    // The character behind a backslash is judged by decode().
    if (c == '\\') {
      has_escapes = true;
      ++position_;
    }
    ++position_;
  }
}

std::string_view JsonReader::decode(size_t begin, size_t end) {
  constexpr std::string_view kFrom = "\"\\/bfnrt";
  constexpr std::string_view kTo = "\"\\/\b\f\n\r\t";
  const auto fail_escape = [&](size_t at, const char* expected) {
    fail(
        quoted(text_.substr(at, std::min<size_t>(6, end - at))),
        expected,
        origin_.file_offset + at);
  };
  std::string& decoded = decoded_texts_.emplace_back();
  for (size_t at = begin; at < end;) {
    const size_t next = std::min(text_.find('\\', at), end);
    decoded += text_.substr(at, next - at);
    at = next;
    if (at == end) {
      break;
    }
    const char escape = text_[at + 1];
    if (const size_t i = kFrom.find(escape); i != std::string_view::npos) {
      decoded += kTo[i];
      at += 2;
      continue;
    }
    if (escape != 'u') {
      fail_escape(
          at,
          "one of the escapes \\\" \\\\ \\/ \\b \\f \\n \\r \\t \\u");
    }
    uint32_t code_point = code_unit(at);
    const size_t escape_at = at;
    at += 6;
    if (is_high_surrogate(code_point) && text_.substr(at, 2) == "\\u" &&
        is_low_surrogate(code_unit(at))) {
      code_point =
          0x10000 + ((code_point - 0xD800) << 10) + (code_unit(at) - 0xDC00);
      at += 6;
    }
    if (is_high_surrogate(code_point) || is_low_surrogate(code_point)) {
      fail_escape(escape_at, "a pair of surrogates");
    }
    append_utf8(decoded, code_point);
  }
  return decoded;
}

// The four digits of the \u escape at that position.
uint32_t JsonReader::code_unit(size_t at) const {
  const std::string_view token = text_.substr(at, 6);
  uint32_t unit = 0;
  const auto [end, error] =
      std::from_chars(token.data() + 2, token.data() + token.size(), unit, 16);
  if (token.size() != 6 || error != std::errc() ||
      end != token.data() + token.size()) {
    fail(
        quoted(token),
        "\\u and four hexadecimal digits",
        origin_.file_offset + at);
  }
  return unit;
}

void JsonReader::digits() {
  if (position_ >= text_.size() || !is_digit(text_[position_])) {
    fail_here("a digit");
  }
  while (position_ < text_.size() && is_digit(text_[position_])) {
    ++position_;
  }
}

std::string_view JsonReader::number_token() {
  const auto next_is = [&](char c) {
    return position_ < text_.size() && text_[position_] == c;
  };
  const size_t begin = position_;
  if (next_is('-')) {
    ++position_;
  }
  if (next_is('0')) {
    ++position_;
    if (position_ < text_.size() && is_digit(text_[position_])) {
      fail_here("no digit behind a leading 0");
    }
  } else {
    digits();
  }
  if (next_is('.')) {
    ++position_;
    digits();
  }
  if (next_is('e') || next_is('E')) {
    ++position_;
    if (next_is('+') || next_is('-')) {
      ++position_;
    }
    digits();
  }
  return text_.substr(begin, position_ - begin);
}

void JsonReader::literal_token() {
  for (const std::string_view literal : {"true", "false", "null"}) {
    if (text_.substr(position_, literal.size()) == literal) {
      position_ += literal.size();
      return;
    }
  }
  fail_here("true, false or null");
}

}  // namespace ckpt_streamer::format
