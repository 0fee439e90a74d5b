#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>

#include "base/error.h"
#include "os/output_file.h"

namespace ckpt_streamer::os {

// Leaves descriptor_ negative where the file system, or the kernel's /proc, has
// no such thing.
void OutputFile::open_unnamed() {
  if (::access("/proc/self/fd", X_OK) == 0) {
    descriptor_ = ::open(folder_.c_str(), O_RDWR | O_TMPFILE | O_CLOEXEC, 0666);
  }
}

int OutputFile::link_unnamed(const std::string& name) noexcept {
  const std::string open_file = "/proc/self/fd/" + std::to_string(descriptor_);
  return ::linkat(
             AT_FDCWD,
             open_file.c_str(),
             AT_FDCWD,
             name.c_str(),
             AT_SYMLINK_FOLLOW) == 0
             ? 0
             : errno;
}

// A full disk is told before anything is read. What cannot be reserved, as on
// file systems that cannot, is asked for as it is written.
void OutputFile::reserve(uint64_t size_bytes) {
  if (size_bytes == 0) {
    return;
  }
  int error_number = 0;
  do {
    error_number = ::fallocate(
                       descriptor_,
                       FALLOC_FL_KEEP_SIZE,
                       0,
                       static_cast<off_t>(size_bytes)) == 0
                       ? 0
                       : errno;
  } while (error_number == EINTR);
  if (error_number == ENOSPC || error_number == EDQUOT ||
      error_number == EFBIG) {
    throw_errno(
        path_,
        "write " + std::to_string(size_bytes) + " bytes",
        error_number);
  }
}

void OutputFile::start_writing_back(const ByteRange& range) noexcept {
  if (!range.empty()) {
    (void)::sync_file_range(
        descriptor_,
        static_cast<off_t>(range.begin),
        static_cast<off_t>(range.size_bytes()),
        SYNC_FILE_RANGE_WRITE);
  }
}

// Dirty pages stay, so it waits until they are written. Folios that end in the
// range began in the one before.
void OutputFile::drop_written(const ByteRange& range) noexcept {
  if (range.empty()) {
    return;
  }
  const auto begin = static_cast<off_t>(range.begin);
  const auto size = static_cast<off_t>(range.size_bytes());
  (void)::sync_file_range(
      descriptor_,
      begin,
      size,
      SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
          SYNC_FILE_RANGE_WAIT_AFTER);
  constexpr off_t kLargestFolioBytes = off_t{2} << 20;
  const off_t before = std::min(begin, kLargestFolioBytes);
  (void)::posix_fadvise(
      descriptor_,
      begin - before,
      size + before,
      POSIX_FADV_DONTNEED);
}

}  // namespace ckpt_streamer::os
