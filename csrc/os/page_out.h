// Unmapping clean file pages without ever losing a write, whatever other
// threads do meanwhile.
//
// The kernel's own reclaim (MADV_PAGEOUT) unmaps each page atomically with
// respect to faults: a write comes either before, and has made a private copy
// that stays, or after, and faults the file's page in anew. It would empty the
// page cache as well; so a pipe is made to hold a reference to each page
// meanwhile (vmsplice), and what is referenced stays cached.
//
// As whenever the kernel reclaims memory, processors forget the pages some
// microseconds after the page tables do. In between, a thread can see the
// file's byte once more where it or another has just written for the first
// time; the write is there, and seen a moment later.
//
// Linux 5.4 and later; macOS: ENOTSUP.
#pragma once

#include <array>
#include <cstdint>

#include "base/byte_range.h"

namespace ckpt_streamer::os {

// Five descriptors from the first call on, opened anew after a fork: both
// processes would let go of each other's pages. Not thread-safe.
class PageOut {
 public:
  PageOut() noexcept = default;
  ~PageOut();
  PageOut(const PageOut&) = delete;
  PageOut& operator=(const PageOut&) = delete;

  // Unmaps the run's clean pages; those that are cached stay so. No error, and
  // the pages stay mapped, where somebody else maps them as well, where the
  // file is neither the user's own nor theirs to write, where a large folio is
  // mapped in part only (see split()), and where a page is just being written
  // to disk: look again. Returns 0 or an errno: EINVAL for locked memory and on
  // kernels that have no such call, EMFILE and the like without descriptors.
  //
  // `is_huge`: each block is mapped as one, which makes it cheaper; if it is
  // not so any more, blocks may go from the page cache.
  // Cost: some 10 microseconds for 2 MiB mapped as one, 100 page by page.
  // REQUIRES: whole pages of a private file mapping.
  int unmap(const ByteRange& run, bool is_huge) noexcept;

  // The same, but takes the pages from the page cache as well: some 30
  // microseconds for 2 MiB. No descriptors are needed.
  static int evict(const ByteRange& run) noexcept;

  // Unmaps the large folios that are mapped in part only, as beside a written
  // page: they become single pages in the page cache, which takes them all out
  // of the page tables. Nothing else changes. Returns 0 or an errno.
  static int split(const ByteRange& run) noexcept;

 private:
  struct Pipe {
    int read_end = -1;
    int write_end = -1;
    uint64_t capacity_pages = 0;
  };

  int ensure_open() noexcept;
  int open_all() noexcept;
  void close_all() noexcept;
  // Each returns 0 or an errno.
  int unmap_pages(const ByteRange& run) noexcept;
  int unmap_blocks(const ByteRange& run) noexcept;
  void let_go(const Pipe& pipe) const noexcept;

  // Together they hold the pages of a block.
  std::array<Pipe, 2> pipes_;
  int null_device_ = -1;
  int64_t owner_process_ = 0;
};

}  // namespace ckpt_streamer::os
