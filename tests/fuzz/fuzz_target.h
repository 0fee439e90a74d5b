// What the fuzz targets share. Each is one program with libFuzzer (`make fuzz`)
// and one with replay_main.cpp, which runs it on the files of the corpus.
//
// An error in words is what hostile bytes should meet. Anything else that comes
// out of a target, a broken promise of a reader among them, ends the program.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "base/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace ckpt_streamer::fuzz {

inline std::string text_of(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

// Runs a reader; whether it took the bytes.
template <typename Body>
bool is_read(Body&& body) {
  try {
    body();
    return true;
  } catch (const CheckpointError&) {
    return false;
  }
}

inline void require(bool condition, const char* promise) {
  if (!condition) {
    std::fprintf(stderr, "broken promise: %s\n", promise);
    std::abort();
  }
}

}  // namespace ckpt_streamer::fuzz
