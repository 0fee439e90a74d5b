// A whole file in memory, private and writable: what is written through it is
// copied first (copy-on-write) and never reaches the file, as with
// torch.load(mmap=True).
//
// Every tensor cut from it holds a share; the mapping goes when the last does.
// The bytes are those of the file as it is when a page is first touched. If
// somebody truncates the file, touching a page past its new end raises SIGBUS.
// Immutable, hence thread-safe.
#pragma once

#include <cstdint>
#include <string>

#include "base/byte_range.h"
#include "os/file.h"

namespace ckpt_streamer::os {

class MappedFile {
 public:
  // Maps the `file.size_bytes()` bytes that it had when it was opened. Address
  // space is not charged against the system's commit limit, so that a file
  // larger than the machine's memory maps too. The descriptor is not kept.
  // THROWS: CheckpointError Io when the system refuses, Corrupt for an empty
  // file.
  explicit MappedFile(const File& file);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  // The addresses [begin, end) of the file's bytes.
  [[nodiscard]] const ByteRange& addresses() const noexcept {
    return addresses_;
  }
  // REQUIRES: file_offset <= the file's size.
  [[nodiscard]] void* at(uint64_t file_offset) const noexcept {
    // NOLINTNEXTLINE(performance-no-int-to-ptr): addresses are kept as numbers
    return reinterpret_cast<void*>(addresses_.begin + file_offset);
  }

 private:
  ByteRange addresses_;
};

}  // namespace ckpt_streamer::os
