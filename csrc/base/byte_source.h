// Random-access bytes with a known length: what the format readers read from.
//
// os::File implements it with pread, tests with memory, fuzzers with their
// input. Implementations are safe for concurrent reads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace ckpt_streamer {

class ByteSource {
 public:
  ByteSource() = default;
  ByteSource(const ByteSource&) = delete;
  ByteSource& operator=(const ByteSource&) = delete;
  virtual ~ByteSource() = default;

  // The name that errors carry.
  [[nodiscard]] virtual const std::string& path() const noexcept = 0;

  [[nodiscard]] virtual uint64_t size_bytes() const noexcept = 0;

  // Fills the whole of `out` from [file_offset, file_offset + out.size()).
  // THROWS: CheckpointError Corrupt when that range is not inside the source
  // (also when the file has shrunk meanwhile), Io when the system refuses.
  virtual void read(uint64_t file_offset, std::span<std::byte> out) const = 0;
};

}  // namespace ckpt_streamer
