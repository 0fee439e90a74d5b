// safetensors files put together from a header's text and data.
#pragma once

#include <string>

#include "memory_source.h"

namespace ckpt_streamer::testing {

inline std::string safetensors_file(
    const std::string& header,
    const std::string& data = "") {
  return little_endian(header.size(), 8) + header + data;
}

// "name":{...}, an entry of the header.
inline std::string safetensors_entry(
    const std::string& name,
    const std::string& dtype,
    const std::string& shape,
    const std::string& data_offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":[" + shape +
         "],\"data_offsets\":[" + data_offsets + "]}";
}

}  // namespace ckpt_streamer::testing
