// Bytes with a name that can be written at any place: what the format writers
// write to. os::OutputFile implements it with pwrite, tests with memory. Not
// thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace ckpt_streamer {

class ByteSink {
 public:
  ByteSink() = default;
  ByteSink(const ByteSink&) = delete;
  ByteSink& operator=(const ByteSink&) = delete;
  virtual ~ByteSink() = default;

  // The name that errors carry.
  [[nodiscard]] virtual const std::string& path() const noexcept = 0;

  // Makes [file_offset, file_offset + bytes.size()) of the file these bytes.
  // THROWS: CheckpointError Io when the system refuses.
  virtual void write(
      uint64_t file_offset,
      std::span<const std::byte> bytes) = 0;
};

}  // namespace ckpt_streamer
