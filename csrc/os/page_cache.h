// The kernel's cached copy of a file: what of it there is, having it read ahead
// of a reader, and giving it back. None of it is this process's memory, though
// a container is charged for what it caused to be cached.
//
//                    Linux                               macOS
//   is cached        mincore, for files of one's own     nothing
//   prefetch         a fault in a page of its own, with  nothing
//                    MADV_HUGEPAGE, MADV_POPULATE_READ
//                    (5.14); else posix_fadvise(WILLNEED)
//   drop cached      posix_fadvise(DONTNEED): exact for  nothing
//                    clean pages nobody maps
//   count cached     cachestat (6.5), or mincore         nothing
#pragma once

#include <cstdint>

#include "base/byte_range.h"
#include "os/backing_file.h"

namespace ckpt_streamer::os {

// Whether the kernel has the page behind an address of a file mapping, or does
// not tell (see BackingFile::shows_cached_pages()).
[[nodiscard]] bool is_cached(uint64_t address) noexcept;

// What prefetch() reads at once, a power of two.
[[nodiscard]] uint64_t prefetch_block_bytes() noexcept;

// Has the kernel read the block of prefetch_block_bytes() that begins at the
// offset, in folios as large as the file system has; comes back when the first
// of them is there, with the next block under way. A page of the file is mapped
// meanwhile. Returns whether it had to wait for the disk. Failures are ignored.
// REQUIRES: a multiple of prefetch_block_bytes().
bool prefetch(const BackingFile& file, uint64_t file_offset) noexcept;

// Gives back the kernel's cached copy of [range) of the file; pages that are
// dirty or mapped by any process stay. Only pages fully inside are dropped, and
// large folios only as a whole. Returns 0 or an errno.
int drop_cached(const BackingFile& file, const ByteRange& file_range) noexcept;

// What the kernel has of [range) of the file, in whole pages. 0 where the
// system does not tell (see BackingFile::shows_cached_pages()). Cost: a few
// microseconds for what is not cached; before Linux 6.5, 50 nanoseconds a page.
[[nodiscard]] uint64_t cached_bytes(
    const BackingFile& file,
    const ByteRange& file_range) noexcept;

}  // namespace ckpt_streamer::os
