#include "write/text_buffer.h"

namespace ckpt_streamer::write {

void append_json_string(std::string& out, std::string_view text) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  out += '"';
  for (const char character : text) {
    const auto code = static_cast<unsigned char>(character);
    if (character == '"' || character == '\\') {
      out += '\\';
      out += character;
    } else if (code < 0x20) {
      out += "\\u00";
      out += kDigits[code >> 4];
      out += kDigits[code & 0xF];
    } else {
      out += character;
    }
  }
  out += '"';
}

}  // namespace ckpt_streamer::write
