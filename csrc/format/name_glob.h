// Shell patterns for names of tensors, as Python's fnmatch.fnmatchcase reads
// them: '*' any text, dots included, '?' any one character, "[abc]", "[a-z]"
// and
// "[!abc]" one of or outside a set; a '[' without its ']' is itself. There is
// no escape: "[*]" is a star.
//
// Immutable, hence thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "format/checkpoint_index.h"

namespace ckpt_streamer::format {

class NameGlob {
 public:
  // Bytes that are not UTF-8 are characters of their own.
  explicit NameGlob(std::string_view pattern);

  // Cost: O(pattern * name) at worst.
  [[nodiscard]] bool matches(std::string_view name) const;

 private:
  struct Token {
    enum class Kind : uint8_t { kCharacter, kAny, kAnyText, kOneOf, kNoneOf };
    Kind kind;
    // What may stand here, from first to last, both included.
    std::vector<std::pair<char32_t, char32_t>> ranges;
  };

  static size_t read_set(
      std::span<const char32_t> pattern,
      size_t begin,
      Token& token);
  static bool matches_one(const Token& token, char32_t character);

  std::vector<Token> tokens_;
};

// Those of the slots whose names match a pattern, in the same order.
// THROWS: CheckpointError InvalidArgument, naming the first file, for patterns
// that match none of the slots, or no patterns.
[[nodiscard]] std::vector<uint32_t> matching_slots(
    const CheckpointIndex& index,
    std::span<const uint32_t> slots,
    std::span<const std::string> patterns);

}  // namespace ckpt_streamer::format
