#include "format/text.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace ckpt_streamer::format {
namespace {

constexpr size_t kLongestQuotedBytes = 160;

// The length of the well-formed UTF-8 sequence that `text` starts with, 0 when
// there is none (Unicode 15, table 3-7).
size_t utf8_sequence_bytes(std::string_view text) noexcept {
  const auto at = [&](size_t i) {
    return static_cast<unsigned>(static_cast<unsigned char>(text[i]));
  };
  const auto continues = [&](size_t i, unsigned low, unsigned high) {
    return i < text.size() && at(i) >= low && at(i) <= high;
  };
  const unsigned lead = at(0);
  if (lead < 0x80) {
    return 1;
  }
  if (lead >= 0xC2 && lead <= 0xDF) {
    return continues(1, 0x80, 0xBF) ? 2 : 0;
  }
  if (lead >= 0xE0 && lead <= 0xEF) {
    const unsigned low = lead == 0xE0 ? 0xA0 : 0x80;
    const unsigned high = lead == 0xED ? 0x9F : 0xBF;
    return continues(1, low, high) && continues(2, 0x80, 0xBF) ? 3 : 0;
  }
  if (lead >= 0xF0 && lead <= 0xF4) {
    const unsigned low = lead == 0xF0 ? 0x90 : 0x80;
    const unsigned high = lead == 0xF4 ? 0x8F : 0xBF;
    return continues(1, low, high) && continues(2, 0x80, 0xBF) &&
                   continues(3, 0x80, 0xBF)
               ? 4
               : 0;
  }
  return 0;
}

std::string hex_byte(unsigned value) {
  constexpr const char* kDigits = "0123456789abcdef";
  return {kDigits[value >> 4], kDigits[value & 0xF]};
}

}  // namespace

bool is_valid_utf8(std::string_view text) noexcept {
  return valid_utf8_bytes(text) == text.size();
}

size_t valid_utf8_bytes(std::string_view text) noexcept {
  constexpr uint64_t kHighBits = 0x8080808080808080;
  size_t at = 0;
  while (at < text.size()) {
    // Eight bytes of ASCII at once: names and headers are little else.
    // The last eight again where fewer are left.
    if (text.size() >= sizeof(uint64_t)) {
      const size_t begin = std::min(at, text.size() - sizeof(uint64_t));
      uint64_t word = 0;
      std::memcpy(&word, text.data() + begin, sizeof(word));
      if ((word & kHighBits) == 0) {
        at = begin + sizeof(word);
        continue;
      }
    }
    const size_t sequence_bytes = utf8_sequence_bytes(text.substr(at));
    if (sequence_bytes == 0) {
      break;
    }
    at += sequence_bytes;
  }
  return at;
}

void append_utf8(std::string& out, uint32_t code_point) {
  const auto put = [&](uint32_t byte) {
    out += static_cast<char>(static_cast<unsigned char>(byte));
  };
  if (code_point < 0x80) {
    put(code_point);
  } else if (code_point < 0x800) {
    put(0xC0 | code_point >> 6);
    put(0x80 | (code_point & 0x3F));
  } else if (code_point < 0x10000) {
    put(0xE0 | code_point >> 12);
    put(0x80 | (code_point >> 6 & 0x3F));
    put(0x80 | (code_point & 0x3F));
  } else {
    put(0xF0 | code_point >> 18);
    put(0x80 | (code_point >> 12 & 0x3F));
    put(0x80 | (code_point >> 6 & 0x3F));
    put(0x80 | (code_point & 0x3F));
  }
}

std::optional<std::string> latin1_bytes(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte < 0x80) {
      result += text[i];
      continue;
    }
    // U+0080 to U+00FF: 110000ab 10cdefgh.
    const auto next =
        static_cast<unsigned char>(i + 1 < text.size() ? text[i + 1] : '\0');
    if ((byte != 0xC2 && byte != 0xC3) || (next & 0xC0) != 0x80) {
      return std::nullopt;
    }
    result += static_cast<char>((byte & 0x03) << 6 | (next & 0x3F));
    ++i;
  }
  return result;
}

std::string quoted(std::string_view text) {
  std::string result = "'";
  while (!text.empty()) {
    if (result.size() > kLongestQuotedBytes) {
      result += "...";
      break;
    }
    const unsigned first = static_cast<unsigned char>(text.front());
    const size_t sequence_bytes = utf8_sequence_bytes(text);
    if (sequence_bytes == 0 || first < 0x20 || first == 0x7F) {
      result += "\\x" + hex_byte(first);
      text.remove_prefix(1);
    } else {
      result += text.substr(0, sequence_bytes);
      text.remove_prefix(sequence_bytes);
    }
  }
  return result + "'";
}

std::string hex_bytes(std::span<const std::byte> bytes) {
  std::string result;
  for (const std::byte value : bytes) {
    if (!result.empty()) {
      result += ' ';
    }
    result += hex_byte(std::to_integer<unsigned>(value));
  }
  return result;
}

std::string float_text(double value) {
  if (std::isnan(value)) {
    return "nan";
  }
  if (std::isinf(value)) {
    return value < 0 ? "-inf" : "inf";
  }
  // Not std::to_chars: Apple's libc++ has it for doubles on new systems only.
  std::array<char, 32> buffer{};
  const auto reads_back = [&] {
    return std::strtod(buffer.data(), nullptr) == value;
  };
  for (int digits = 0; digits < 17; ++digits) {
    std::snprintf(buffer.data(), buffer.size(), "%.*e", digits, value);
    if (reads_back()) {
      break;
    }
    // Below a power of two the doubles are closer to each other than above it:
    // there the digits next to the nearest may read back when those do not.
    char& last = *(std::strchr(buffer.data(), 'e') - 1);
    if (last != '9') {
      ++last;
      if (reads_back()) {
        break;
      }
    }
  }
  const std::string_view scientific = buffer.data();
  const size_t exponent_at = scientific.find('e');
  const int exponent = std::atoi(buffer.data() + exponent_at + 1);
  std::string digits;
  for (const char c : scientific.substr(0, exponent_at)) {
    if (c >= '0' && c <= '9') {
      digits += c;
    }
  }
  // CPython's float_repr_style 'r': exponents in [-4, 16) are written out.
  std::string result = std::signbit(value) ? "-" : "";
  if (exponent < -4 || exponent >= 16) {
    result += digits.substr(0, 1);
    if (digits.size() > 1) {
      result += "." + digits.substr(1);
    }
    const std::string magnitude = std::to_string(std::abs(exponent));
    return result + (exponent < 0 ? "e-" : "e+") +
           (magnitude.size() < 2 ? "0" : "") + magnitude;
  }
  if (exponent < 0) {
    return result + "0." +
           std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  }
  const size_t whole_digits = static_cast<size_t>(exponent) + 1;
  if (digits.size() <= whole_digits) {
    return result + digits + std::string(whole_digits - digits.size(), '0') +
           ".0";
  }
  return result + digits.substr(0, whole_digits) + "." +
         digits.substr(whole_digits);
}

}  // namespace ckpt_streamer::format
