// Reads JSON (RFC 8259) of untrusted files, strictly, value by value.
//
// The caller walks the text in its order and says what it expects; no tree is
// built, so that memory is the text's own. As strict as serde_json, which
// safetensors' reference reads with: no byte order mark, no comments, no
// trailing commas, no lone surrogates, no raw control characters. Names that
// repeat in an object are the caller's to find (see NameIndex). Not
// thread-safe.
//
// Errors are Corrupt, `<path>: found <what>, expected <what> in <part> [byte
// N]`, with N absolute in the file.
#pragma once

#include <bitset>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>

namespace ckpt_streamer::format {

enum class JsonKind : uint8_t {
  kObject,
  kArray,
  kString,
  kNumber,
  kBool,
  kNull,
};

// Where the text comes from, for messages.
struct JsonOrigin {
  std::string path;
  std::string part;          // "the header"
  uint64_t file_offset = 0;  // of the text's first byte
};

class JsonReader {
 public:
  // As serde_json's: deeper nesting is an error.
  static constexpr size_t kLargestDepth = 128;

  // REQUIRES: `text` outlives the reader.
  // THROWS: CheckpointError when `text` is not UTF-8.
  JsonReader(std::string_view text, JsonOrigin origin);

  // Each function below reads what comes next, and THROWS when it is something
  // else, or not JSON. `what` names it in the message: "the dtype".

  // The kind of the next value; reads only the white space before it.
  [[nodiscard]] JsonKind peek(const char* what);

  // An object: enter it, then next_name() and the value in turns, until there
  // is no name. Names and strings live as long as the reader and the text.
  void enter_object(const char* what);
  [[nodiscard]] std::optional<std::string_view> next_name();

  // An array: enter it, then a value after each next_element() that is true.
  void enter_array(const char* what);
  [[nodiscard]] bool next_element();

  [[nodiscard]] std::string_view read_string(const char* what);

  // An integer of [0, 2^64), written without fraction or exponent.
  [[nodiscard]] uint64_t read_count(const char* what);

  // Any value; its text as it stands in the file. Checked like the others.
  std::string_view skip_value(const char* what);

  // Nothing but white space is left.
  void expect_end();

  // Says whose values are read, in messages ("... of tensor 'a' in the
  // header"), until it is set again; empty for nobody's.
  void set_subject(std::string_view kind, std::string_view name) noexcept {
    subject_kind_ = kind;
    subject_name_ = name;
  }

  // Absolute in the file: of the next byte that is not white space.
  [[nodiscard]] uint64_t file_offset() noexcept;

  // Throws `found <found>, expected <expected> in <part> [byte N]`.
  [[noreturn]] void fail(
      const std::string& found,
      const std::string& expected,
      uint64_t file_offset) const;

 private:
  void skip_white_space() noexcept;
  // What stands at the position: a quoted character, or "the end".
  [[nodiscard]] std::string found_text() const;
  [[noreturn]] void fail_here(const std::string& expected) const;
  [[nodiscard]] std::string of_subject(const char* what) const;
  void expect_kind(JsonKind kind, const char* expected, const char* what);
  void push(bool is_object);
  void pop() noexcept;
  // Consumes the separator before an element, or the closing bracket.
  bool next_in(char close);
  std::string_view string_token();
  std::string_view decode(size_t begin, size_t end);
  uint32_t code_unit(size_t at) const;
  std::string_view number_token();
  void literal_token();
  void digits();

  const std::string_view text_;
  const JsonOrigin origin_;
  std::string_view subject_kind_;
  std::string_view subject_name_;
  size_t position_ = 0;
  size_t depth_ = 0;
  std::bitset<kLargestDepth> is_object_;   // by depth
  bool is_first_ = false;                  // in the innermost container
  std::deque<std::string> decoded_texts_;  // strings with escapes
};

}  // namespace ckpt_streamer::format
