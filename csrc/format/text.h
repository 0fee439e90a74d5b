// Text for messages and slot names. Everything returned is valid UTF-8, also
// when the file's bytes are not: Python decodes every message. Pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace ckpt_streamer::format {

// As Python's strict decoder sees it: no surrogates, no overlong forms.
[[nodiscard]] bool is_valid_utf8(std::string_view text) noexcept;

// The length of the longest prefix that is valid UTF-8.
[[nodiscard]] size_t valid_utf8_bytes(std::string_view text) noexcept;

// Appends a code point. REQUIRES: code_point <= 0x10FFFF.
void append_utf8(std::string& out, uint32_t code_point);

// The bytes that Python's text.encode('latin1') gives; nullopt for text that is
// not UTF-8 or goes beyond U+00FF.
[[nodiscard]] std::optional<std::string> latin1_bytes(std::string_view text);

// 'text' in single quotes; control bytes and bytes that are not UTF-8 become
// \xNN, and what is longer than 160 bytes ends in "...".
[[nodiscard]] std::string quoted(std::string_view text);

// "50 4b 03 04"
[[nodiscard]] std::string hex_bytes(std::span<const std::byte> bytes);

// As Python's repr: the shortest digits that read back as the same value.
[[nodiscard]] std::string float_text(double value);

}  // namespace ckpt_streamer::format
