// Physical memory behind file mappings: which memory may be given back, how
// much of it is resident, and giving it back without losing a write.
//
// Four words, used everywhere in this sense and no other:
//   prefetch       have the kernel read what will be needed into its cache
//   drop resident  unmap this process's clean pages; the kernel's cached copy
//                  of the file stays, the next touch is a warm fault
//   drop cached    give back the kernel's cached copy as well
//   release        the user is done: all memory held for them goes back now
//
// Platform table:
//                    Linux                               macOS
//   evictable        PROCMAP_QUERY (6.11), or            mach_vm_region
//                    /proc/self/maps
//   drop resident    PAGEMAP_SCAN (6.7) or pagemap,      madvise(DONTNEED): a
//                    then MADV_DONTNEED, MADV_PAGEOUT    hint, never lossy
//                    (5.4) of pages that a pipe holds,
//                    or mremap (5.13): exact
//   page out         the same, MADV_PAGEOUT alone        as drop resident
//   count resident   the same scan: exact                mincore: upper bound
//   populate         MADV_POPULATE_READ (5.14) or a      a read of each page
//                    read of each page
// Each row is tested on Linux, with its fallback forced as well. macOS is
// written from its documentation. The kernel's cached copy: os/page_cache.h.
//
// "Clean" means: still the file's own page. A page the process has written to
// is a private copy; no function here ever drops one. What can happen between
// the look and the drop is said at OtherWriters.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/byte_range.h"
#include "os/page_out.h"

namespace ckpt_streamer::os {

[[nodiscard]] uint64_t page_size_bytes() noexcept;

// The most that one touched byte may map: the aligned block of this size around
// it. Linux maps a whole large folio of the page cache at once, through a huge
// page or page by page, but never across a page table's end: 2 MiB with 4 KiB
// pages. Without large folios, fault-around still maps 64 KiB.
[[nodiscard]] uint64_t fault_extent_bytes() noexcept;

// How the page cache and the page tables hold a mapping's file pages from now
// on. The advice stays on the mapping; no contents change. Refusals are
// ignored: where files have no huge pages, both are the same.
enum class HugePages {
  kPrefer,  // read and map 2 MiB as one: cheaper to map and to drop
  kAvoid,   // map page by page, so that a part of a block can be dropped
};
void advise_huge_pages(
    std::span<const ByteRange> mappings,
    HugePages huge_pages) noexcept;

// Makes pages of a mapping resident for reading, by one system call: where they
// cannot be, as past the end of a truncated file, no signal is raised. Returns
// 0 or an errno: EINVAL before Linux 5.14, ENOTSUP on macOS.
[[nodiscard]] int populate_at_once(const ByteRange& pages) noexcept;

// How the process's page tables and mappings are read.
enum class ScanMethod {
  kBest,     // PAGEMAP_SCAN (6.7) and PROCMAP_QUERY (6.11), else as below
  kPagemap,  // pagemap and the text of maps, as on kernels before those
  kNone,     // as where /proc/self/pagemap cannot be opened; maps as kPagemap
};

// The private file mappings of this process that overlap `within`, whole,
// ascending and disjoint. Cost: a system call for each; on older kernels, one
// read of the process's mapping table, a millisecond.
// THROWS: CheckpointError Io when the table cannot be read.
[[nodiscard]] std::vector<ByteRange> private_file_mappings(
    const ByteRange& within,
    ScanMethod method = ScanMethod::kBest);

// Whether other threads may write to the pages while they are dropped. The look
// at a page and its drop are two system calls; a first write to a clean page
// can fall between them.
enum class OtherWriters {
  // None: MADV_DONTNEED, the cheapest.
  kNone,
  // Some: the kernel's reclaim unmaps the pages, which loses no write whatever
  // happens (os/page_out.h). It passes over what somebody else has mapped as
  // well, files that the user neither owns nor may write, pages that are just
  // being written to disk, and some large folios (see LargeFolios). These are
  // moved away as they are (mremap), looked at again where no other thread can
  // reach them, and discarded. A page that was written to meanwhile is merged
  // back byte by byte. What remains there: a thread that reads again, within
  // some 100 microseconds, what it has just written for the first time sees the
  // file's bytes, and one that writes the file's own value over it then finds
  // its earlier value. Before Linux 5.13, what is passed over stays.
  kPossible,
};

// What happens beside other threads to large folios that are mapped in part
// only, which reclaim cannot unmap as they are.
enum class LargeFolios {
  // They are split, which takes them out of the page tables as a whole, and no
  // write is lost or out of sight. In the page cache they stay single pages,
  // which are slower to map and to drop, until they are read from disk again.
  kSplit,
  // Only those with written pages near them are; the others are moved away. For
  // many drops of parts.
  kKeepUnlessWritten,
};

struct DropResult {
  uint64_t found_bytes = 0;      // clean and resident before
  uint64_t remaining_bytes = 0;  // clean and resident after, by a second look
  // Why, if anything remains: the first refusal. 0 if there was none, as where
  // another thread reads the pages again meanwhile.
  int error_number = 0;
  // Whether pages beside the ranges may have been unmapped as well, because
  // they were in large folios with those inside.
  bool has_split = false;

  DropResult& operator+=(const DropResult& other) noexcept {
    found_bytes += other.found_bytes;
    remaining_bytes += other.remaining_bytes;
    error_number = error_number != 0 ? error_number : other.error_number;
    has_split = has_split || other.has_split;
    return *this;
  }
};

// A run of pages of one kind, of a private file mapping.
struct PageRun {
  ByteRange range;
  bool is_written;  // private copies, resident or swapped out; else clean
  bool is_huge;     // mapped as huge pages; false where that is not known
};

// Reads and drops pages of this process. Holds a descriptor or two, and those
// of PageOut if it drops beside others, opened anew after a fork (they name the
// process that opened them). Not thread-safe; but once scan_error() was asked
// in this process, drop_resident(kNone) may run on several threads at once.
class Residency {
 public:
  explicit Residency(ScanMethod method = ScanMethod::kBest) noexcept;
  ~Residency();
  Residency(const Residency&) = delete;
  Residency& operator=(const Residency&) = delete;

  // From now on, dropped pages need not stay in the kernel's cache, which is
  // cheaper beside others. Those that did not go are os/page_cache.h's to drop.
  void need_not_stay_cached() noexcept {
    keeps_cached_ = false;
  }

  // Drops every page that is a clean, resident page of a file and lies fully
  // inside one of the ranges, then looks again: what could not be dropped is in
  // remaining_bytes. Written pages, anonymous pages and holes stay as they are.
  //
  // REQUIRES: the ranges lie in private file mappings, whole pages.
  DropResult drop_resident(
      std::span<const ByteRange> ranges,
      OtherWriters other_writers = OtherWriters::kPossible,
      LargeFolios large_folios = LargeFolios::kSplit) noexcept;

  // The same by the kernel's reclaim alone: other threads may read and write
  // the pages all the while (os/page_out.h).
  DropResult page_out(std::span<const ByteRange> ranges) noexcept;

  // The steps of the two above, for whoever watches pages that others read.
  //
  // Appends the runs of resident pages, clean and written, ascending, and stops
  // soon after `most_runs`. Returns where it stopped, or the range's beginning
  // where page tables cannot be read. 0.2 microseconds for 2 MiB mapped as one,
  // 35 page by page, next to nothing for holes.
  // THROWS: std::bad_alloc.
  uint64_t list_runs(
      const ByteRange& range,
      size_t most_runs,
      std::vector<PageRun>& runs);
  // Unmaps a clean run by reclaim, as PageOut::unmap().
  int page_out(const PageRun& run) noexcept;
  // Moves all of a range away but its written pages, holes as well: the more is
  // moved at once, the cheaper, and the longer what OtherWriters says remains.
  // Returns 0 or an errno. REQUIRES: as drop_resident().
  int move_out(const ByteRange& range) noexcept;

  // Bytes of file pages that the process has mapped in, of all files: to see at
  // a microsecond's cost whether anything changed. Before Linux 6.16, to within
  // some hundred KiB for each processor. 0 where that is not known.
  uint64_t mapped_file_bytes() noexcept;

  // Bytes of clean resident file pages in the ranges. Where page tables cannot
  // be read: the size of the ranges, an upper bound (see can_scan()).
  uint64_t count_resident(std::span<const ByteRange> ranges) noexcept;

  // Bytes of private pages in the ranges: those the process has written to, in
  // memory or swapped out. 0 where page tables cannot be read.
  uint64_t count_written(std::span<const ByteRange> ranges) noexcept;

  // Makes every page of the range resident for reading, without writing.
  // Returns 0 or an errno; EFAULT past the end of a truncated file.
  int populate(const ByteRange& range) noexcept;

  // 0, or the errno with which reading the page tables was refused; then
  // nothing is ever dropped, because written pages could not be told from clean
  // ones.
  int scan_error() noexcept;

 private:
  enum class PageKind {
    kClean,            // resident, and the file's own
    kCleanByHugeness,  // the same, in other runs where mapped as huge pages
    kWritten,          // a private copy, resident or swapped out
  };
  // How pages are dropped, one way after the other on what remains.
  enum class Way { kDiscard, kPageOut, kSplit, kSplitIfWritten, kMoveAway };
  static constexpr uint64_t kUnknownBytes = ~uint64_t{0};

  // Calls visit(run, is_huge) for each run of such pages in `range`, ascending;
  // false when the page tables cannot be read.
  template <typename Visit>
  bool for_each_run(
      const ByteRange& range,
      PageKind kind,
      Visit visit) noexcept;
  bool ensure_open() noexcept;
  void close_all() noexcept;
  void drop_range(
      const ByteRange& range,
      std::span<const Way> ways,
      DropResult& result) noexcept;
  // Returns the bytes found, or kUnknownBytes; widens the hull by them; sets
  // the first error.
  uint64_t drop_runs(
      const ByteRange& range,
      Way way,
      ByteRange& found_hull,
      int& error_number) noexcept;
  int drop_run(
      const ByteRange& run,
      bool is_huge,
      Way way,
      bool may_be_locked) noexcept;
  int move_run(const ByteRange& run, bool may_be_locked) noexcept;

  PageOut page_out_;
  ScanMethod method_;
  bool keeps_cached_ = true;
  std::atomic<bool> fast_scan_works_ = true;
  int descriptor_ = -1;
  int statm_descriptor_ = -1;
  int64_t owner_process_ = 0;
  std::atomic<int> scan_error_ = 0;
};

}  // namespace ckpt_streamer::os
