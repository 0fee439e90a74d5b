// The file behind a private mapping of this process, opened again: whoever made
// the mapping, as torch.load does, seldom keeps a descriptor of it. For what
// concerns the page cache alone: reading ahead, and dropping the kernel's copy.
//
// Immutable, hence thread-safe.
#pragma once

#include <cstdint>
#include <memory>

#include "base/byte_range.h"

namespace ckpt_streamer::os {

class BackingFile {
 public:
  // Null where the file cannot be had: it was deleted, another one has its name
  // now, the system refuses to open it, or says nothing about it (macOS).
  // Cost: some system calls; before Linux 6.11, a read of the process's mapping
  // table, a millisecond.
  [[nodiscard]] static std::shared_ptr<const BackingFile> behind(
      uint64_t address) noexcept;

  BackingFile(int descriptor, const ByteRange& addresses, uint64_t file_offset)
      : descriptor_(descriptor),
        addresses_(addresses),
        file_offset_(file_offset) {}
  ~BackingFile();
  BackingFile(const BackingFile&) = delete;
  BackingFile& operator=(const BackingFile&) = delete;

  // Where the mapping lay when the file was opened.
  [[nodiscard]] const ByteRange& addresses() const noexcept {
    return addresses_;
  }
  // REQUIRES: the addresses lie in addresses().
  [[nodiscard]] ByteRange file_range(
      const ByteRange& addresses) const noexcept {
    return {
        file_offset_ + (addresses.begin - addresses_.begin),
        file_offset_ + (addresses.end - addresses_.begin)};
  }
  [[nodiscard]] int descriptor() const noexcept {
    return descriptor_;
  }

  // Whether the system tells this user which pages of the file are cached: its
  // owner, and whoever may write to it (mm/mincore.c, can_do_mincore()). All
  // are said to be, otherwise.
  [[nodiscard]] bool shows_cached_pages() const noexcept;

 private:
  int descriptor_;
  ByteRange addresses_;
  uint64_t file_offset_;
};

}  // namespace ckpt_streamer::os
