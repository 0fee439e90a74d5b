#include "format/name_glob.h"

#include <algorithm>
#include <optional>

#include "base/error.h"
#include "format/slot_names.h"
#include "format/text.h"

namespace ckpt_streamer::format {
namespace {

// The characters of a text, and how many bytes each of them takes.
struct Character {
  char32_t code;
  size_t size_bytes;
};

Character character_at(std::string_view text, size_t position) {
  const auto byte_at = [&](size_t i) {
    return static_cast<unsigned char>(text[position + i]);
  };
  const unsigned char lead = byte_at(0);
  const size_t size_bytes = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC0 || size_bytes > text.size() - position) {
    return {lead, 1};
  }
  char32_t code = lead & (0x7F >> size_bytes);
  for (size_t i = 1; i < size_bytes; ++i) {
    if ((byte_at(i) & 0xC0) != 0x80) {
      return {lead, 1};
    }
    code = (code << 6) | (byte_at(i) & 0x3F);
  }
  return {code, size_bytes};
}

std::u32string characters_of(std::string_view text) {
  std::u32string characters;
  for (size_t position = 0; position < text.size();) {
    const Character character = character_at(text, position);
    characters.push_back(character.code);
    position += character.size_bytes;
  }
  return characters;
}

}  // namespace

NameGlob::NameGlob(std::string_view pattern) {
  const std::u32string characters = characters_of(pattern);
  for (size_t i = 0; i < characters.size(); ++i) {
    Token token{Token::Kind::kCharacter, {{characters[i], characters[i]}}};
    if (characters[i] == U'*') {
      token = {Token::Kind::kAnyText, {}};
      if (!tokens_.empty() && tokens_.back().kind == token.kind) {
        continue;
      }
    } else if (characters[i] == U'?') {
      token = {Token::Kind::kAny, {}};
    } else if (characters[i] == U'[') {
      i += read_set(characters, i + 1, token);
    }
    tokens_.push_back(std::move(token));
  }
}

// Reads a set that begins behind its '[' and returns how many characters it
// takes, its ']' included; none, and leaves the token, if there is no ']'.
size_t NameGlob::read_set(
    std::span<const char32_t> pattern,
    size_t begin,
    Token& token) {
  size_t at = begin;
  const bool is_negated = at < pattern.size() && pattern[at] == U'!';
  at += is_negated ? 1 : 0;
  // A ']' that comes first is one of the set.
  size_t end = at < pattern.size() && pattern[at] == U']' ? at + 1 : at;
  while (end < pattern.size() && pattern[end] != U']') {
    ++end;
  }
  if (end >= pattern.size()) {
    return 0;
  }
  token = {is_negated ? Token::Kind::kNoneOf : Token::Kind::kOneOf, {}};
  while (at < end) {
    const bool is_range = at + 2 < end && pattern[at + 1] == U'-';
    token.ranges.emplace_back(pattern[at], pattern[is_range ? at + 2 : at]);
    at += is_range ? 3 : 1;
  }
  return end + 1 - begin;
}

bool NameGlob::matches_one(const Token& token, char32_t character) {
  const bool is_in = std::any_of(
      token.ranges.begin(),
      token.ranges.end(),
      [&](const std::pair<char32_t, char32_t>& range) {
        return range.first <= character && character <= range.second;
      });
  switch (token.kind) {
    case Token::Kind::kAny:
      return true;
    case Token::Kind::kNoneOf:
      return !is_in;
    default:
      return is_in;
  }
}

bool NameGlob::matches(std::string_view name) const {
  size_t token = 0;
  size_t position = 0;
  // Where the last '*' is, and how far its text reaches in this attempt.
  std::optional<size_t> star;
  size_t star_end = 0;
  while (position < name.size()) {
    const Character character = character_at(name, position);
    if (token < tokens_.size() &&
        tokens_[token].kind == Token::Kind::kAnyText) {
      star = token++;
      star_end = position;
    } else if (
        token < tokens_.size() && matches_one(tokens_[token], character.code)) {
      ++token;
      position += character.size_bytes;
    } else if (star.has_value()) {
      star_end += character_at(name, star_end).size_bytes;
      position = star_end;
      token = *star + 1;
    } else {
      return false;
    }
  }
  while (token < tokens_.size() &&
         tokens_[token].kind == Token::Kind::kAnyText) {
    ++token;
  }
  return token == tokens_.size();
}

std::vector<uint32_t> matching_slots(
    const CheckpointIndex& index,
    std::span<const uint32_t> slots,
    std::span<const std::string> patterns) {
  const auto fail = [&](const std::string& what) {
    throw CheckpointError(
        ErrorKind::kInvalidArgument,
        index.files.front().path,
        what);
  };
  if (patterns.empty()) {
    fail("is to be read by no patterns, expected at least one");
  }
  std::vector<NameGlob> globs(patterns.begin(), patterns.end());
  std::vector<bool> is_used(patterns.size(), false);
  std::vector<uint32_t> matching;
  SlotNames names(index);
  for (const uint32_t slot : slots) {
    const std::string& name = names.name(slot);
    bool is_match = false;
    for (size_t i = 0; i < globs.size(); ++i) {
      if ((!is_match || !is_used[i]) && globs[i].matches(name)) {
        is_match = true;
        is_used[i] = true;
      }
    }
    if (is_match) {
      matching.push_back(slot);
    }
  }
  std::string unused;
  for (size_t i = 0; i < patterns.size(); ++i) {
    if (!is_used[i]) {
      unused += (unused.empty() ? "" : ", ") + quoted(patterns[i]);
    }
  }
  if (!unused.empty()) {
    SlotNames shown(index);
    fail(
        "none of " + std::to_string(slots.size()) + " tensors is named as " +
        unused +
        (slots.empty() ? ""
                       : "; the first is " + quoted(shown.name(slots[0]))));
  }
  return matching;
}

}  // namespace ckpt_streamer::format
