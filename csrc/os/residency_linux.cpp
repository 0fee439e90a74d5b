#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "os/advise.h"
#include "os/move_away.h"
#include "os/procmap_query.h"
#include "os/residency.h"

// From the kernel's linux/mman.h and linux/fs.h, for headers older than the
// kernel that runs.
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

namespace ckpt_streamer::os {
namespace {

// linux/fs.h, struct page_region and struct pm_scan_arg (since 6.7).
struct PageRegion {
  uint64_t start;
  uint64_t end;
  uint64_t categories;
};
struct PagemapScan {
  uint64_t size;
  uint64_t flags;
  uint64_t start;
  uint64_t end;
  uint64_t walk_end;
  uint64_t vec;
  uint64_t vec_len;
  uint64_t max_pages;
  uint64_t category_inverted;
  uint64_t category_mask;
  uint64_t category_anyof_mask;
  uint64_t return_mask;
};
constexpr unsigned long kPagemapScan = _IOWR('f', 16, PagemapScan);
constexpr uint64_t kPageIsFile = uint64_t{1} << 2;
constexpr uint64_t kPageIsPresent = uint64_t{1} << 3;
constexpr uint64_t kPageIsSwapped = uint64_t{1} << 4;
constexpr uint64_t kPageIsHuge = uint64_t{1} << 6;

// Of pages in the range; which of them, and what is said of them, is the
// caller's to add.
PagemapScan scan_of(const ByteRange& range, std::span<PageRegion> regions) {
  PagemapScan scan{};
  scan.size = sizeof(scan);
  scan.start = range.begin;
  scan.end = range.end;
  scan.vec = reinterpret_cast<uint64_t>(regions.data());
  scan.vec_len = regions.size();
  return scan;
}

// Documentation/admin-guide/mm/pagemap.rst, the bits of one entry.
constexpr uint64_t kEntryPresent = uint64_t{1} << 63;
constexpr uint64_t kEntrySwapped = uint64_t{1} << 62;
constexpr uint64_t kEntryFileOrShared = uint64_t{1} << 61;

uint64_t read_number(const char* path, uint64_t otherwise) noexcept {
  try {
    std::ifstream stream(path);
    uint64_t value = 0;
    return stream >> value ? value : otherwise;
  } catch (...) {
    return otherwise;
  }
}

// One line of /proc/self/maps, proc_pid_maps(5):
//   begin-end perms offset dev inode  path
// A private mapping of a file has 'p' in its permissions and an inode.
void append_if_private_file(
    std::string_view line,
    std::vector<ByteRange>& mappings) {
  ByteRange range;
  const char* const end = line.data() + line.size();
  auto parsed = std::from_chars(line.data(), end, range.begin, 16);
  if (parsed.ec != std::errc{} || parsed.ptr == end || *parsed.ptr != '-') {
    return;
  }
  parsed = std::from_chars(parsed.ptr + 1, end, range.end, 16);
  // " rwxp 00000000 fe:00 260386"
  std::string_view rest(parsed.ptr, static_cast<size_t>(end - parsed.ptr));
  if (parsed.ec != std::errc{} || rest.size() < 6 || rest[4] != 'p') {
    return;
  }
  for (int field = 0; field < 3; ++field) {  // permissions, offset, device
    rest.remove_prefix(std::min(rest.find_first_not_of(' '), rest.size()));
    rest.remove_prefix(std::min(rest.find(' '), rest.size()));
  }
  rest.remove_prefix(std::min(rest.find_first_not_of(' '), rest.size()));
  uint64_t inode = 0;
  std::from_chars(rest.data(), end, inode);
  if (inode != 0) {
    mappings.push_back(range);
  }
}

constexpr char kMapsPath[] = "/proc/self/maps";

class Descriptor {
 public:
  explicit Descriptor(int value) noexcept : value_(value) {}
  ~Descriptor() {
    if (value_ >= 0) {
      ::close(value_);
    }
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  [[nodiscard]] int value() const noexcept {
    return value_;
  }

 private:
  int value_;
};

std::string read_maps(int descriptor) {
  std::string text;
  std::array<char, 65536> buffer{};
  for (;;) {
    const ssize_t count = ::read(descriptor, buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count < 0) {
      throw_errno(kMapsPath, "read", errno);
    }
    if (count == 0) {
      return text;
    }
    text.append(buffer.data(), static_cast<size_t>(count));
  }
}

std::vector<ByteRange> parse_private_files(std::string_view maps) {
  std::vector<ByteRange> mappings;
  while (!maps.empty()) {
    const size_t line_end = std::min(maps.find('\n'), maps.size());
    append_if_private_file(maps.substr(0, line_end), mappings);
    maps.remove_prefix(std::min(line_end + 1, maps.size()));
  }
  return mappings;
}

// False where the kernel has no such query.
bool query_private_files(
    int maps_descriptor,
    const ByteRange& within,
    std::vector<ByteRange>& mappings) {
  uint64_t cursor = within.begin;
  while (cursor < within.end) {
    ProcmapQuery query{};
    query.size = sizeof(query);
    query.query_flags = kCoveringOrNextVma | kFileBackedVma;
    query.query_addr = cursor;
    if (::ioctl(maps_descriptor, kProcmapQuery, &query) != 0) {
      if (errno == ENOENT) {  // there is no further one
        return true;
      }
      mappings.clear();
      return false;
    }
    if (query.vma_start >= within.end) {
      return true;
    }
    if ((query.vma_flags & kVmaIsShared) == 0 && query.inode != 0) {
      mappings.push_back({query.vma_start, query.vma_end});
    }
    cursor = query.vma_end;
  }
  return true;
}

}  // namespace

uint64_t page_size_bytes() noexcept {
  static const uint64_t value = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  return value;
}

uint64_t fault_extent_bytes() noexcept {
  // Without huge pages: mm/memory.c, fault_around_bytes, which root alone can
  // read. With them, mm/filemap.c, filemap_map_pages().
  static const uint64_t value = std::max(
      {uint64_t{65536},
       page_size_bytes(),
       read_number("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", 0)});
  return value;
}

std::vector<ByteRange> private_file_mappings(
    const ByteRange& within,
    ScanMethod method) {
  if (within.empty()) {
    return {};
  }
  const Descriptor maps(::open(kMapsPath, O_RDONLY | O_CLOEXEC));
  if (maps.value() < 0) {
    throw_errno(kMapsPath, "open", errno);
  }
  std::vector<ByteRange> mappings;
  if (method == ScanMethod::kBest &&
      query_private_files(maps.value(), within, mappings)) {
    return mappings;
  }
  mappings = parse_private_files(read_maps(maps.value()));
  std::erase_if(mappings, [&](const ByteRange& mapping) {
    return intersect(mapping, within).empty();
  });
  return mappings;
}

void advise_huge_pages(
    std::span<const ByteRange> mappings,
    HugePages huge_pages) noexcept {
  for (const ByteRange& mapping : mappings) {
    advise(
        mapping,
        huge_pages == HugePages::kPrefer ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  }
}

Residency::Residency(ScanMethod method) noexcept
    : method_(method), fast_scan_works_(method == ScanMethod::kBest) {}

Residency::~Residency() {
  close_all();
}

void Residency::close_all() noexcept {
  for (int* const descriptor : {&descriptor_, &statm_descriptor_}) {
    if (*descriptor >= 0) {
      ::close(std::exchange(*descriptor, -1));
    }
  }
}

bool Residency::ensure_open() noexcept {
  if (method_ == ScanMethod::kNone) {
    scan_error_ = EACCES;
    return false;
  }
  // After a fork the descriptor still shows the parent's page tables: acting
  // on them here would drop pages that this process has written.
  const auto process = static_cast<int64_t>(::getpid());
  if (descriptor_ >= 0 && owner_process_ == process) {
    return true;
  }
  close_all();
  descriptor_ = ::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  scan_error_ = descriptor_ < 0 ? errno : 0;
  owner_process_ = process;
  return descriptor_ >= 0;
}

int Residency::scan_error() noexcept {
  ensure_open();
  return scan_error_;
}

template <typename Visit>
bool Residency::for_each_run(
    const ByteRange& range,
    PageKind kind,
    Visit visit) noexcept {
  const bool clean = kind != PageKind::kWritten;
  if (!ensure_open()) {
    return false;
  }
  uint64_t cursor = range.begin;
  while (fast_scan_works_ && cursor < range.end) {
    std::array<PageRegion, 256> regions;
    PagemapScan scan = scan_of({cursor, range.end}, regions);
    if (clean) {
      scan.category_mask = kPageIsFile | kPageIsPresent;
    } else {
      scan.category_mask = kPageIsFile;
      scan.category_inverted = kPageIsFile;
      scan.category_anyof_mask = kPageIsPresent | kPageIsSwapped;
    }
    // Categories that are not returned do not split runs.
    scan.return_mask = kind == PageKind::kCleanByHugeness
                           ? scan.category_mask | kPageIsHuge
                           : scan.category_mask;
    const int count = ::ioctl(descriptor_, kPagemapScan, &scan);
    if (count < 0 || scan.walk_end <= cursor) {
      // Kernels before 6.7 answer ENOTTY; whatever the reason, the older way
      // goes on from here.
      fast_scan_works_ = false;
      break;
    }
    for (int i = 0; i < count; ++i) {
      visit(
          ByteRange{regions[i].start, regions[i].end},
          (regions[i].categories & kPageIsHuge) != 0);
    }
    cursor = scan.walk_end;
  }
  const uint64_t page_size = page_size_bytes();
  ByteRange run{cursor, cursor};
  while (cursor < range.end) {
    std::array<uint64_t, 4096> entries;
    const size_t wanted =
        std::min<size_t>(entries.size(), (range.end - cursor) / page_size);
    const ssize_t count = ::pread(
        descriptor_,
        entries.data(),
        wanted * sizeof(uint64_t),
        static_cast<off_t>(cursor / page_size * sizeof(uint64_t)));
    if (count <= 0) {
      if (count < 0 && errno == EINTR) {
        continue;
      }
      scan_error_ = count < 0 ? errno : EIO;
      return false;
    }
    const size_t entry_count = static_cast<size_t>(count) / sizeof(uint64_t);
    for (size_t i = 0; i < entry_count; ++i, cursor += page_size) {
      const bool is_file = (entries[i] & kEntryFileOrShared) != 0;
      const bool is_wanted =
          clean
              ? is_file && (entries[i] & kEntryPresent) != 0
              : !is_file && (entries[i] & (kEntryPresent | kEntrySwapped)) != 0;
      if (!is_wanted) {
        continue;
      }
      if (run.end != cursor) {
        if (!run.empty()) {
          visit(run, /*is_huge=*/false);
        }
        run.begin = cursor;
      }
      run.end = cursor + page_size;
    }
  }
  if (!run.empty()) {
    visit(run, /*is_huge=*/false);
  }
  return true;
}

uint64_t Residency::drop_runs(
    const ByteRange& range,
    Way way,
    ByteRange& found_hull,
    int& error_number) noexcept {
  const bool may_be_locked = way == Way::kMoveAway && has_locked_memory();
  uint64_t found_bytes = 0;
  const auto drop = [&](const ByteRange& run, bool is_huge) {
    found_bytes += run.size_bytes();
    found_hull = hull_of(found_hull, run);
    const int failure = drop_run(run, is_huge, way, may_be_locked);
    error_number = error_number != 0 ? error_number : failure;
  };
  const auto kind =
      way == Way::kPageOut ? PageKind::kCleanByHugeness : PageKind::kClean;
  return for_each_run(range, kind, drop) ? found_bytes : kUnknownBytes;
}

int Residency::drop_run(
    const ByteRange& run,
    bool is_huge,
    Way way,
    bool may_be_locked) noexcept {
  switch (way) {
    case Way::kDiscard:
      return advise(run, MADV_DONTNEED);
    case Way::kPageOut:
      return keeps_cached_ ? page_out_.unmap(run, is_huge)
                           : PageOut::evict(run);
    case Way::kSplitIfWritten: {
      const ByteRange blocks = round_outward(run, fault_extent_bytes());
      return count_written({&blocks, 1}) > 0 ? PageOut::split(run) : 0;
    }
    case Way::kSplit:
      return PageOut::split(run);
    case Way::kMoveAway:
      break;
  }
  return move_run(run, may_be_locked);
}

int Residency::move_run(const ByteRange& run, bool may_be_locked) noexcept {
  const auto scan = [this](const ByteRange& range, const auto& visit) {
    return for_each_run(
        range,
        PageKind::kWritten,
        [&](const ByteRange& written, bool) { visit(written); });
  };
  return move_away(run, may_be_locked, scan);
}

void Residency::drop_range(
    const ByteRange& range,
    std::span<const Way> ways,
    DropResult& result) noexcept {
  uint64_t found_bytes = 0;
  ByteRange found_hull;
  uint64_t remaining_bytes = 0;
  int error_number = 0;
  for (const Way way : ways) {
    error_number = 0;
    const uint64_t bytes = drop_runs(range, way, found_hull, error_number);
    if (bytes == kUnknownBytes) {
      found_bytes = remaining_bytes = range.size_bytes();
      error_number = scan_error_;
      break;
    }
    found_bytes = std::max(found_bytes, bytes);
    const bool may_split = way == Way::kSplit || way == Way::kSplitIfWritten;
    result.has_split = result.has_split || (may_split && bytes > 0);
    // What others read meanwhile lies anywhere.
    const ByteRange& looked_at = way == Way::kDiscard ? found_hull : range;
    remaining_bytes = bytes == 0 ? 0 : count_resident({&looked_at, 1});
    if (remaining_bytes == 0) {
      break;
    }
  }
  result.found_bytes += found_bytes;
  result.remaining_bytes += remaining_bytes;
  if (remaining_bytes > 0 && result.error_number == 0) {
    result.error_number = error_number;
  }
}

DropResult Residency::drop_resident(
    std::span<const ByteRange> ranges,
    OtherWriters other_writers,
    LargeFolios large_folios) noexcept {
  static constexpr std::array kAlone = {Way::kDiscard};
  const std::array beside_others = {
      Way::kPageOut,
      large_folios == LargeFolios::kSplit ? Way::kSplit : Way::kSplitIfWritten,
      Way::kMoveAway};
  DropResult result;
  for (const ByteRange& range : ranges) {
    if (other_writers == OtherWriters::kNone) {
      drop_range(range, kAlone, result);
    } else {
      drop_range(range, beside_others, result);
    }
  }
  return result;
}

DropResult Residency::page_out(std::span<const ByteRange> ranges) noexcept {
  static constexpr std::array kWays = {Way::kPageOut, Way::kSplit};
  DropResult result;
  for (const ByteRange& range : ranges) {
    drop_range(range, kWays, result);
  }
  return result;
}

int Residency::move_out(const ByteRange& range) noexcept {
  const bool may_be_locked = has_locked_memory();
  int error_number = 0;
  ByteRange gap = {range.begin, range.begin};
  const auto move_gap_before = [&](uint64_t end) {
    gap.end = end;
    if (!gap.empty()) {
      const int failure = move_run(gap, may_be_locked);
      error_number = error_number != 0 ? error_number : failure;
    }
  };
  const bool is_read = for_each_run(
      range,
      PageKind::kWritten,
      [&](const ByteRange& written, bool) {
        move_gap_before(written.begin);
        gap.begin = written.end;
      });
  if (!is_read) {
    return scan_error_;
  }
  move_gap_before(range.end);
  return error_number;
}

int Residency::page_out(const PageRun& run) noexcept {
  return keeps_cached_ ? page_out_.unmap(run.range, run.is_huge)
                       : PageOut::evict(run.range);
}

// Documentation/filesystems/proc.rst: the third number of statm is the pages of
// files and of shared memory.
uint64_t Residency::mapped_file_bytes() noexcept {
  if (!ensure_open()) {
    return 0;
  }
  if (statm_descriptor_ < 0) {
    statm_descriptor_ = ::open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
  }
  std::array<char, 128> buffer;
  const ssize_t count =
      ::pread(statm_descriptor_, buffer.data(), buffer.size(), 0);
  std::string_view text(
      buffer.data(),
      static_cast<size_t>(std::max<ssize_t>(count, 0)));
  for (int field = 0; field < 2; ++field) {
    text.remove_prefix(std::min(text.find(' '), text.size()));
    text.remove_prefix(text.empty() ? 0 : 1);
  }
  uint64_t pages = 0;
  std::from_chars(text.data(), text.data() + text.size(), pages);
  return pages * page_size_bytes();
}

uint64_t Residency::list_runs(
    const ByteRange& range,
    size_t most_runs,
    std::vector<PageRun>& runs) {
  if (!ensure_open()) {
    return range.begin;
  }
  uint64_t cursor = range.begin;
  const size_t most = runs.size() + most_runs;
  while (fast_scan_works_ && cursor < range.end && runs.size() < most) {
    std::array<PageRegion, 256> regions;
    const size_t wanted = std::min(regions.size(), most - runs.size());
    PagemapScan scan =
        scan_of({cursor, range.end}, std::span(regions).first(wanted));
    scan.category_anyof_mask = kPageIsPresent | kPageIsSwapped;
    scan.return_mask = kPageIsFile | kPageIsHuge;
    const int count = ::ioctl(descriptor_, kPagemapScan, &scan);
    if (count < 0 || scan.walk_end <= cursor) {
      fast_scan_works_ = false;
      break;
    }
    for (int i = 0; i < count; ++i) {
      const uint64_t categories = regions[i].categories;
      const bool is_written = (categories & kPageIsFile) == 0;
      runs.push_back(
          {{regions[i].start, regions[i].end},
           is_written,
           !is_written && (categories & kPageIsHuge) != 0});
    }
    cursor = scan.walk_end;
  }
  // Without that call: clean ones by the pagemap, then written ones, a part of
  // the range at a time.
  constexpr uint64_t kPartBytes = uint64_t{16} << 20;
  while (cursor < range.end && runs.size() < most) {
    const ByteRange part = {cursor, std::min(range.end, cursor + kPartBytes)};
    const size_t first = runs.size();
    for (const PageKind kind : {PageKind::kClean, PageKind::kWritten}) {
      const bool is_read =
          for_each_run(part, kind, [&](const ByteRange& run, bool) {
            runs.push_back(
                {run, kind == PageKind::kWritten, /*is_huge=*/false});
          });
      if (!is_read) {
        return range.begin;
      }
    }
    std::sort(
        runs.begin() + static_cast<std::ptrdiff_t>(first),
        runs.end(),
        [](const PageRun& left, const PageRun& right) {
          return left.range.begin < right.range.begin;
        });
    cursor = part.end;
  }
  return cursor;
}

uint64_t Residency::count_resident(std::span<const ByteRange> ranges) noexcept {
  uint64_t total = 0;
  for (const ByteRange& range : ranges) {
    uint64_t in_range = 0;
    const auto add = [&](const ByteRange& run, bool) {
      in_range += run.size_bytes();
    };
    total += for_each_run(range, PageKind::kClean, add) ? in_range
                                                        : range.size_bytes();
  }
  return total;
}

uint64_t Residency::count_written(std::span<const ByteRange> ranges) noexcept {
  uint64_t total = 0;
  for (const ByteRange& range : ranges) {
    for_each_run(range, PageKind::kWritten, [&](const ByteRange& run, bool) {
      total += run.size_bytes();
    });
  }
  return total;
}

int populate_at_once(const ByteRange& pages) noexcept {
  return advise(pages, MADV_POPULATE_READ);
}

int Residency::populate(const ByteRange& range) noexcept {
  const ByteRange pages = round_outward(range, page_size_bytes());
  const int error_number = populate_at_once(pages);
  if (error_number != EINVAL && error_number != EPERM) {
    return error_number;
  }
  // Before 5.14, or where a policy forbids it: touch each page. Past the end of
  // a truncated file this raises SIGBUS, as the reader's own touch would a
  // moment later.
  for (uint64_t page = pages.begin; page < pages.end;
       page += page_size_bytes()) {
    (void)*static_cast<const volatile char*>(pointer_to(page));
  }
  return 0;
}

}  // namespace ckpt_streamer::os
