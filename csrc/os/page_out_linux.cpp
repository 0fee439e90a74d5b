#include "os/page_out.h"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "os/advise.h"
#include "os/residency.h"

// From the kernel's linux/mman.h, for headers older than the kernel that runs.
#ifndef MADV_COLD
#define MADV_COLD 20
#endif
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

namespace ckpt_streamer::os {
namespace {

// pipe(7): what a user without privileges may have, for two pipes each in a few
// dozen streams.
constexpr int kPipeBytes = 1 << 20;

// Blocks mapped as one that are unmapped by one call; each takes a slot.
constexpr size_t kMostBlocks = 32;

void close_if_open(int& descriptor) noexcept {
  if (descriptor >= 0) {
    ::close(descriptor);
    descriptor = -1;
  }
}

}  // namespace

PageOut::~PageOut() {
  close_all();
}

void PageOut::close_all() noexcept {
  for (Pipe& pipe : pipes_) {
    close_if_open(pipe.read_end);
    close_if_open(pipe.write_end);
  }
  close_if_open(null_device_);
}

int PageOut::open_all() noexcept {
  close_all();
  for (Pipe& pipe : pipes_) {
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) {
      return errno;
    }
    pipe.read_end = ends[0];
    pipe.write_end = ends[1];
    // One slot a page. A user who has many pipes is given less.
    (void)::fcntl(pipe.write_end, F_SETPIPE_SZ, kPipeBytes);
    const int capacity_bytes = ::fcntl(pipe.write_end, F_GETPIPE_SZ);
    pipe.capacity_pages =
        static_cast<uint64_t>(std::max(capacity_bytes, 0)) / page_size_bytes();
  }
  null_device_ = ::open("/dev/null", O_WRONLY | O_CLOEXEC);
  return null_device_ < 0 ? errno : 0;
}

int PageOut::ensure_open() noexcept {
  const auto process = static_cast<int64_t>(::getpid());
  if (null_device_ >= 0 && owner_process_ == process) {
    return 0;
  }
  const int error_number = open_all();
  if (error_number != 0) {
    close_all();
  }
  owner_process_ = process;
  return error_number;
}

// Into nowhere: the pages are not read.
void PageOut::let_go(const Pipe& pipe) const noexcept {
  const uint64_t most_bytes = pipe.capacity_pages * page_size_bytes();
  ssize_t count = 0;
  do {
    count = ::splice(
        pipe.read_end,
        nullptr,
        null_device_,
        nullptr,
        most_bytes,
        SPLICE_F_NONBLOCK);
  } while (count > 0 || (count < 0 && errno == EINTR));
}

int PageOut::unmap(const ByteRange& run, bool is_huge) noexcept {
  const int error_number = ensure_open();
  if (error_number != 0) {
    return error_number;
  }
  return is_huge ? unmap_blocks(run) : unmap_pages(run);
}

// A reference to one page of a folio keeps all of it.
int PageOut::unmap_blocks(const ByteRange& run) noexcept {
  const uint64_t block_bytes = fault_extent_bytes();
  const Pipe& pipe = pipes_.front();
  const uint64_t most_blocks =
      std::min<uint64_t>(kMostBlocks, pipe.capacity_pages);
  if (most_blocks == 0) {  // how much the pipe holds could not be read
    return EAGAIN;
  }
  for (uint64_t begin = run.begin; begin < run.end;) {
    std::array<iovec, kMostBlocks> bytes;
    size_t count = 0;
    uint64_t end = begin;
    while (end < run.end && count < most_blocks) {
      bytes[count++] = {pointer_to(end), 1};
      end = std::min(run.end, round_down(end, block_bytes) + block_bytes);
    }
    const ssize_t held =
        ::vmsplice(pipe.write_end, bytes.data(), count, SPLICE_F_NONBLOCK);
    int error_number = held < 0 ? errno : EAGAIN;
    if (held == static_cast<ssize_t>(count)) {
      error_number = advise({begin, end}, MADV_PAGEOUT);
    }
    let_go(pipe);
    if (error_number != 0) {
      return error_number;
    }
    begin = end;
  }
  return 0;
}

// How large the folios are behind pages that are mapped one by one is not
// known: all pages are held. A folio has to be unmapped by one call, and lies
// in one block.
int PageOut::unmap_pages(const ByteRange& run) noexcept {
  const uint64_t page_size = page_size_bytes();
  const uint64_t block_bytes = fault_extent_bytes();
  for (uint64_t begin = run.begin; begin < run.end;) {
    const uint64_t block_end =
        std::min(run.end, round_down(begin, block_bytes) + block_bytes);
    uint64_t held_end = begin;
    int error_number = EAGAIN;
    for (const Pipe& pipe : pipes_) {
      const uint64_t bytes =
          std::min(block_end - held_end, pipe.capacity_pages * page_size);
      if (bytes == 0) {
        continue;
      }
      const iovec pages = {pointer_to(held_end), bytes};
      const ssize_t held =
          ::vmsplice(pipe.write_end, &pages, 1, SPLICE_F_NONBLOCK);
      if (held < 0) {
        error_number = errno;
        break;
      }
      held_end += round_down(static_cast<uint64_t>(held), page_size);
      if (static_cast<uint64_t>(held) < bytes) {
        break;
      }
    }
    if (held_end > begin) {
      error_number = advise({begin, held_end}, MADV_PAGEOUT);
    }
    for (const Pipe& pipe : pipes_) {
      let_go(pipe);
    }
    if (error_number != 0) {
      return error_number;
    }
    begin = held_end;
  }
  return 0;
}

int PageOut::evict(const ByteRange& run) noexcept {
  return advise(run, MADV_PAGEOUT);
}

// mm/madvise.c, madvise_cold_or_pageout_pte_range(): splits what the range
// covers in part, and what is mapped in part; mm/huge_memory.c, unmap_folio():
// a file's folio leaves the page tables for that, and its pages come back by
// faults.
int PageOut::split(const ByteRange& run) noexcept {
  return advise(run, MADV_COLD);
}

}  // namespace ckpt_streamer::os
