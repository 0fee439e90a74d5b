// Bytes of formats put together: little-endian numbers and JSON strings.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace ckpt_streamer::write {

// REQUIRES: byte_count <= 8.
inline void append_little_endian(
    std::string& out,
    uint64_t value,
    size_t byte_count) {
  for (size_t i = 0; i < byte_count; ++i) {
    out += static_cast<char>(value >> (8 * i) & 0xFF);
  }
}

// In double quotes; what JSON does not take as it is is escaped.
// REQUIRES: UTF-8.
void append_json_string(std::string& out, std::string_view text);

}  // namespace ckpt_streamer::write
