#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "os/advise.h"
#include "os/page_cache.h"
#include "os/residency.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef SYS_cachestat
#define SYS_cachestat 451
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

// cachestat(2) of the kernel's linux/mman.h, for older headers.
struct CacheStatRange {
  uint64_t offset;
  uint64_t length;
};
struct CacheStat {
  uint64_t cached_pages;
  uint64_t dirty_pages;
  uint64_t writeback_pages;
  uint64_t evicted_pages;
  uint64_t recently_evicted_pages;
};

uint64_t cached_pages_by_mincore(
    int descriptor,
    const ByteRange& file_range) noexcept {
  const uint64_t page_size = page_size_bytes();
  constexpr uint64_t kMostPages = 4096;
  std::array<unsigned char, kMostPages> states;
  uint64_t count = 0;
  for (uint64_t at = file_range.begin; at < file_range.end;) {
    const uint64_t bytes =
        std::min(kMostPages * page_size, file_range.end - at);
    void* const pages = ::mmap(
        nullptr,
        bytes,
        PROT_READ,
        MAP_PRIVATE,
        descriptor,
        static_cast<off_t>(at));
    if (pages == MAP_FAILED) {
      return count;
    }
    if (::mincore(pages, bytes, states.data()) == 0) {
      count += static_cast<uint64_t>(std::count_if(
          states.begin(),
          states.begin() + static_cast<ptrdiff_t>(bytes / page_size),
          [](unsigned char state) { return (state & 1) != 0; }));
    }
    ::munmap(pages, bytes);
    at += bytes;
  }
  return count;
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

uint64_t cached_bytes(
    const BackingFile& file,
    const ByteRange& file_range) noexcept {
  const ByteRange pages = round_outward(file_range, page_size_bytes());
  if (file_range.empty() || !file.shows_cached_pages()) {
    return 0;
  }
  CacheStatRange range = {pages.begin, pages.size_bytes()};
  CacheStat status = {};
  const bool is_told =
      ::syscall(SYS_cachestat, file.descriptor(), &range, &status, 0) == 0;
  return page_size_bytes() *
         (is_told ? status.cached_pages
                  : cached_pages_by_mincore(file.descriptor(), pages));
}

}  // namespace ckpt_streamer::os
