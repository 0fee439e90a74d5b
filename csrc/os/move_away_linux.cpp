#include "os/move_away.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <mutex>
#include <string_view>

#include "os/advise.h"
#include "os/residency.h"
#include "os/threads.h"

// From the kernel's linux/mman.h, for headers older than the kernel that runs.
#ifndef MADV_COLD
#define MADV_COLD 20
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

namespace ckpt_streamer::os {
namespace {

// Moves the pages of a range to a place of its own; MAP_FAILED and errno
// otherwise. The range shows the file's pages again.
void* move(const ByteRange& range) noexcept {
  return ::mremap(
      pointer_to(range.begin),
      range.size_bytes(),
      range.size_bytes(),
      MREMAP_MAYMOVE | MREMAP_DONTUNMAP,
      nullptr);
}

// Brings the file's page to where a written one is that nobody else knows of;
// false if that is refused.
bool uncover_file(const ByteRange& page) noexcept {
  if (advise(page, MADV_DONTNEED) == 0) {
    return true;
  }
  // As where a policy forbids it. That pages can be moved is known here.
  void* const copy = move(page);
  if (copy != MAP_FAILED) {
    ::munmap(copy, page.size_bytes());
  }
  return copy != MAP_FAILED;
}

// Brings a page that another thread wrote to on its way out back to where it
// was. `moved` is the page; at `place` there is a page of the file again,
// perhaps written to since. Written bytes are those that differ from the
// file's; of two writes to one byte the later stands.
void merge_back(uint64_t moved, uint64_t place) noexcept {
  const uint64_t page_size = page_size_bytes();
  std::array<unsigned char, 65536> written;  // no Linux has larger pages
  auto* const moved_bytes = static_cast<unsigned char*>(pointer_to(moved));
  auto* const place_bytes = static_cast<unsigned char*>(pointer_to(place));
  std::memcpy(written.data(), moved_bytes, page_size);
  // Where the file's page cannot be had, what is in its place stands for it:
  // the file's bytes, but for what was written there in these microseconds.
  const bool is_uncovered = uncover_file({moved, moved + page_size});
  for (uint64_t i = 0; i < page_size; ++i) {
    const std::atomic_ref now(place_bytes[i]);
    unsigned char from_file =
        is_uncovered ? moved_bytes[i] : now.load(std::memory_order_relaxed);
    if (written[i] != from_file) {
      now.compare_exchange_strong(from_file, written[i]);
    }
  }
}

}  // namespace

bool has_locked_memory() noexcept {
  const int descriptor = ::open("/proc/self/status", O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) {
    return true;
  }
  std::array<char, 4096> buffer;
  const ssize_t count = ::read(descriptor, buffer.data(), buffer.size());
  ::close(descriptor);
  const std::string_view text(
      buffer.data(),
      static_cast<size_t>(std::max<ssize_t>(count, 0)));
  constexpr std::string_view kName = "\nVmLck:";
  size_t at = text.find(kName);
  if (at != std::string_view::npos) {
    at = text.find_first_not_of(" \t", at + kName.size());
  }
  uint64_t kilobytes = 1;
  if (at != std::string_view::npos) {
    std::from_chars(text.data() + at, text.data() + text.size(), kilobytes);
  }
  return kilobytes != 0;
}

namespace {

// A child that is forked in the middle would have the file's bytes where the
// written ones are on their way, and the place that they are moved to for ever.
// Never destroyed: watchers may outlive static objects.
ForkSafeMutex& no_fork() {
  static auto* const instance = new ForkSafeMutex;
  return *instance;
}

int move_away_while_none_forks(
    const ByteRange& run,
    bool may_be_locked,
    const WrittenScan& scan) noexcept {
  // A part of a locked mapping that moves unlocks the rest of it. MADV_COLD
  // refuses locked memory, as MADV_DONTNEED does, and otherwise does no harm to
  // a page that is about to go.
  if (may_be_locked) {
    const int error_number =
        advise({run.begin, run.begin + page_size_bytes()}, MADV_COLD);
    if (error_number != 0) {
      return error_number;
    }
  }
  // Moves the page tables' entries, each atomically with respect to faults: a
  // write comes either before, and is in the page that moves, or after, and
  // faults a page of the file in anew.
  void* const moved = move(run);
  if (moved == MAP_FAILED) {
    const int error_number = errno;
    // EFAULT: the run has come to lie in several mappings, as where a part was
    // given other flags. ENOMEM: no room for it at once.
    const uint64_t half = run.size_bytes() / 2 / page_size_bytes();
    if ((error_number != EFAULT && error_number != ENOMEM) || half == 0) {
      return error_number;
    }
    const uint64_t middle = run.begin + half * page_size_bytes();
    const int first =
        move_away_while_none_forks({run.begin, middle}, may_be_locked, scan);
    if (first == ENOMEM) {
      return first;  // or every page is tried
    }
    const int second =
        move_away_while_none_forks({middle, run.end}, may_be_locked, scan);
    return first != 0 ? first : second;
  }
  const auto begin = reinterpret_cast<uint64_t>(moved);
  const ByteRange range = {begin, begin + run.size_bytes()};
  const auto merge_all_back = [&](const ByteRange& written) {
    for (uint64_t page = written.begin; page < written.end;
         page += page_size_bytes()) {
      merge_back(page, run.begin + (page - begin));
    }
  };
  if (!scan(range, merge_all_back)) {
    // Cannot be told from clean ones any more: all pages count as written.
    merge_all_back(range);
  }
  ::munmap(moved, run.size_bytes());
  return 0;
}

}  // namespace

int move_away(
    const ByteRange& run,
    bool may_be_locked,
    const WrittenScan& scan) noexcept {
  const std::lock_guard lock(no_fork());
  return move_away_while_none_forks(run, may_be_locked, scan);
}

}  // namespace ckpt_streamer::os
