// Random-access bytes with a known length: what the format readers read from.
//
// os::File implements it with pread and mmap, tests with memory, fuzzers with
// their input. Implementations are safe for concurrent reads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/byte_range.h"

namespace ckpt_streamer {

// A stretch of a source's bytes, in memory for as long as a copy of this lives
// (and the source does).
struct ByteView {
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> keeper;  // none: the source itself keeps them
};

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

  // The bytes of the range without a copy: for many small things that lie close
  // together, where a read for each would cost more than all of them. All of
  // the range is brought into memory, so callers keep it small, and one at a
  // time: what is viewed counts against nobody's limit.
  // THROWS: as read(), also for what cannot be brought into memory. A file that
  // shrinks while it is viewed takes the bytes away (SIGBUS); hence views are
  // short-lived too.
  [[nodiscard]] virtual ByteView view(const ByteRange& range) const = 0;
};

}  // namespace ckpt_streamer
