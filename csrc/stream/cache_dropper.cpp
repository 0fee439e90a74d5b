#include "stream/cache_dropper.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <thread>
#include <utility>

#include "os/page_cache.h"
#include "os/residency.h"

namespace ckpt_streamer::stream {
namespace {

// Of a stream in an order of its reader's own, there may be thousands.
constexpr size_t kMostRangesLookedAtAgain = 64;

constexpr plan::WindowRules kAnyBytes{
    std::numeric_limits<uint64_t>::max(),
    /*block_bytes=*/1,
    0};

// What the kernel reads around a page that is touched: a block and the next
// one, or its readahead of some MiB on both sides.
uint64_t read_around_bytes() noexcept {
  return 2 * os::prefetch_block_bytes();
}

// Calls visit(part) for what is left of the range without the holes.
// REQUIRES: the holes ascend.
template <typename Visit>
void for_each_left(
    const ByteRange& range,
    std::span<const ByteRange> holes,
    Visit visit) {
  uint64_t cursor = range.begin;
  for (const ByteRange& hole : holes) {
    const ByteRange overlap = intersect({cursor, range.end}, hole);
    if (overlap.empty()) {
      continue;
    }
    if (cursor < overlap.begin) {
      visit(ByteRange{cursor, overlap.begin});
    }
    cursor = overlap.end;
  }
  if (cursor < range.end) {
    visit(ByteRange{cursor, range.end});
  }
}

// Where the addresses lie in the file, ascending, by blocks: a folio goes as a
// whole or not at all, and lies in one.
std::vector<ByteRange> blocks_in_file(
    const os::BackingFile& file,
    std::span<const ByteRange> addresses) {
  std::vector<ByteRange> blocks;
  for (const ByteRange& range : addresses) {
    const ByteRange here = intersect(range, file.addresses());
    if (!here.empty()) {
      blocks.push_back(
          round_outward(file.file_range(here), os::prefetch_block_bytes()));
    }
  }
  std::sort(
      blocks.begin(),
      blocks.end(),
      [](const ByteRange& one, const ByteRange& other) {
        return one.begin < other.begin;
      });
  return blocks;
}

// Where what lies at the range's beginning ends: a mapping of a file, or what
// lies before the next one; at the range's end at most.
uint64_t end_of_mapping_at(const ByteRange& range) {
  const std::vector<ByteRange> mappings = os::private_file_mappings(range);
  if (mappings.empty()) {
    return range.end;
  }
  const ByteRange& first = mappings.front();
  return std::min(
      range.end,
      first.begin > range.begin ? first.begin : first.end);
}

}  // namespace

CacheDropper::CacheDropper() : added_(kAnyBytes), unreachable_(kAnyBytes) {}

void CacheDropper::add(std::span<const ByteRange> ranges) {
  for (const ByteRange& range : ranges) {
    if (!range.empty()) {
      added_.add(range);
      recently_.push_back(range);
    }
  }
}

uint64_t CacheDropper::drop_range(
    const ByteRange& range,
    std::span<const ByteRange> kept) {
  uint64_t left_bytes = 0;
  for (ByteRange rest = range; !rest.empty();) {
    const auto file = files_.file_at(rest.begin);
    if (file == nullptr) {
      const ByteRange unreachable{rest.begin, end_of_mapping_at(rest)};
      unreachable_.add(unreachable);
      rest.begin = unreachable.end;
      continue;
    }
    const ByteRange in_file =
        file->file_range(intersect(rest, file->addresses()));
    rest.begin += in_file.size_bytes();
    const std::vector<ByteRange> kept_in_file = blocks_in_file(*file, kept);
    const bool is_shown = file->shows_cached_pages();
    const ByteRange around = round_outward(
        {in_file.begin - std::min(in_file.begin, read_around_bytes()),
         in_file.end + read_around_bytes()},
        os::prefetch_block_bytes());
    for_each_left(around, kept_in_file, [&](const ByteRange& part) {
      if (!is_shown || os::cached_bytes(*file, part) > 0) {
        os::drop_cached(*file, part);
        left_bytes += os::cached_bytes(*file, intersect(part, in_file));
      }
    });
  }
  return left_bytes;
}

void CacheDropper::drop(std::span<const ByteRange> kept) {
  std::vector<ByteRange> ranges = added_.extents();
  if (ranges.size() > kMostRangesLookedAtAgain) {
    ranges = recently_;
  }
  recently_.clear();
  for (const ByteRange& range : ranges) {
    drop_range(range, kept);
  }
}

void CacheDropper::drop_all() {
  // What the disk was asked for just before is locked for some milliseconds.
  constexpr int kMostTries = 8;
  constexpr auto kBetweenTries = std::chrono::milliseconds(2);
  drop({});
  for (int i = 0; i < kMostTries; ++i) {
    if (i > 0) {
      std::this_thread::sleep_for(kBetweenTries);
    }
    undropped_bytes_ = 0;
    for (const ByteRange& range : added_.extents()) {
      undropped_bytes_ += drop_range(range, {});
    }
    if (undropped_bytes_ == 0) {
      return;
    }
  }
}

}  // namespace ckpt_streamer::stream
