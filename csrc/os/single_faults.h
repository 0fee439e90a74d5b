// Faults that make resident nothing but the page that is touched, where others
// map all of the folio that the page cache has it in (up to 2 MiB): slow to
// read, but no more comes in than is read.
//
// Linux 6.7: a range that is registered with userfaultfd for write protection
// (WP_ASYNC) is faulted in page by page, and nothing of it is ever protected or
// waited for. mm/memory.c: do_read_fault(), finish_fault(). Huge pages have to
// be avoided besides (os/residency.h). macOS: not there.
#pragma once

#include <cstdint>

#include "base/byte_range.h"

namespace ckpt_streamer::os {

// Holds a descriptor once it is used. A child that is forked meanwhile has none
// of the ranges. Not thread-safe.
class SingleFaults {
 public:
  // Whether this kernel and its policies have them; asked once in a process, as
  // long as there were descriptors and memory to ask with.
  [[nodiscard]] static bool are_possible() noexcept;

  SingleFaults() = default;
  // Ends it for all ranges, unless a child that was forked meanwhile lives: for
  // them, end() does.
  ~SingleFaults();
  SingleFaults(const SingleFaults&) = delete;
  SingleFaults& operator=(const SingleFaults&) = delete;

  // Returns 0 or an errno, with which the range is as it was: EPERM or ENOSYS
  // where a policy forbids userfaultfd, EINVAL before 6.7, EBUSY if another
  // userfaultfd has the range. REQUIRES: whole pages, mapped.
  int begin(const ByteRange& range) noexcept;
  // As before. Of what was not begun, nothing.
  void end(const ByteRange& range) noexcept;

 private:
  int open() noexcept;
  void close() noexcept;

  int descriptor_ = -1;
  int64_t owner_process_ = 0;
};

}  // namespace ckpt_streamer::os
