#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>

#include "os/advise.h"
#include "os/page_cache.h"
#include "os/residency.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

namespace ckpt_streamer::os {
namespace {

// Waits of this thread for a disk. mm/memory.c, mm_account_fault().
int64_t major_faults() noexcept {
  struct rusage usage = {};
  ::getrusage(RUSAGE_THREAD, &usage);
  return usage.ru_majflt;
}

// mm/readahead.c, force_page_cache_ra(): no more at a time than the device's
// readahead, which is seldom smaller than this.
void advise_in_steps(int descriptor, uint64_t begin, uint64_t end) noexcept {
  constexpr uint64_t kStep = 128 * 1024;
  for (uint64_t at = begin; at < end; at += kStep) {
    ::posix_fadvise(
        descriptor,
        static_cast<off_t>(at),
        static_cast<off_t>(std::min(kStep, end - at)),
        POSIX_FADV_WILLNEED);
  }
}

}  // namespace

bool is_cached(uint64_t address) noexcept {
  unsigned char state = 1;
  const uint64_t page = round_down(address, page_size_bytes());
  return ::mincore(pointer_to(page), page_size_bytes(), &state) != 0 ||
         (state & 1) != 0;
}

uint64_t prefetch_block_bytes() noexcept {
  return std::max(fault_extent_bytes(), uint64_t{2} << 20);
}

// What a fault reads of a mapping that prefers huge pages is this block in one
// folio, if it can be, and the next one behind it (mm/filemap.c,
// do_sync_mmap_readahead()). posix_fadvise() would fill the cache page by page,
// which is dear to map and to drop later. The mapping is of one page, so that
// no more is ever resident here.
bool prefetch(const BackingFile& file, uint64_t file_offset) noexcept {
  const uint64_t page_size = page_size_bytes();
  void* const page = ::mmap(
      nullptr,
      page_size,
      PROT_READ,
      MAP_PRIVATE,
      file.descriptor(),
      static_cast<off_t>(file_offset));
  if (page == MAP_FAILED) {
    return false;
  }
  const int64_t faults_before = major_faults();
  // Reads nothing beyond the end of a file that was truncated.
  const bool is_read = ::madvise(page, page_size, MADV_HUGEPAGE) == 0 &&
                       ::madvise(page, page_size, MADV_POPULATE_READ) == 0;
  const bool waited = is_read ? major_faults() != faults_before
                              : !is_cached(reinterpret_cast<uint64_t>(page));
  ::munmap(page, page_size);
  if (!is_read && waited) {
    advise_in_steps(
        file.descriptor(),
        file_offset,
        file_offset + prefetch_block_bytes());
  }
  return waited;
}

int drop_cached(const BackingFile& file, const ByteRange& file_range) noexcept {
  return ::posix_fadvise(
      file.descriptor(),
      static_cast<off_t>(file_range.begin),
      static_cast<off_t>(file_range.size_bytes()),
      POSIX_FADV_DONTNEED);
}

}  // namespace ckpt_streamer::os
