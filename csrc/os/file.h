// A regular file opened for reading, and what a path names. Safe for
// concurrent use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/byte_source.h"
#include "base/source_opener.h"

namespace ckpt_streamer::os {

// What a path names, symbolic links followed.
[[nodiscard]] PathKind path_kind(const std::string& path) noexcept;

class File final : public ByteSource {
 public:
  // Opens without blocking (a FIFO is refused, not waited for).
  // THROWS: CheckpointError Io when the system refuses (missing file, no
  // permission), InvalidArgument when the path names a directory or anything
  // else that is not a regular file.
  explicit File(std::string path);
  ~File() override;

  [[nodiscard]] const std::string& path() const noexcept override {
    return path_;
  }
  // The size when it was opened.
  [[nodiscard]] uint64_t size_bytes() const noexcept override {
    return size_bytes_;
  }
  void read(uint64_t file_offset, std::span<std::byte> out) const override;
  // Maps the pages of the range, read-only, until the view goes. Read from the
  // disk in blocks of 2 MiB where the file system can, so that the page cache
  // holds them as the stream likes them.
  [[nodiscard]] ByteView view(const ByteRange& range) const override;

  // Whoever writes to the file meanwhile changes what is mapped of it, too.
  // A file that another one replaced, by rename(), is still itself.
  // Cost: a system call.
  // THROWS: CheckpointError Corrupt once the file is smaller than size_bytes(),
  // or was written to since it was opened: as its time of modification says.
  void check_unchanged() const;

  [[nodiscard]] int descriptor() const noexcept {
    return descriptor_;
  }

 private:
  // THROWS: Corrupt when [file_offset, file_offset + byte_count) is not inside
  // the file as it was opened.
  void check_inside(uint64_t file_offset, uint64_t byte_count) const;
  // THROWS: Corrupt when the range is no longer inside the file.
  void check_unshrunk(const ByteRange& range) const;
  [[noreturn]] void fail_shrunk(uint64_t file_offset, uint64_t missing_bytes)
      const;

  std::string path_;
  uint64_t size_bytes_ = 0;
  int64_t modified_ns_ = 0;
  int descriptor_ = -1;
};

}  // namespace ckpt_streamer::os
