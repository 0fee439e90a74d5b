#include "base/byte_ranges.h"

#include <algorithm>
#include <numeric>

namespace ckpt_streamer {

uint64_t total_bytes(std::span<const ByteRange> ranges) noexcept {
  return std::accumulate(
      ranges.begin(),
      ranges.end(),
      uint64_t{0},
      [](uint64_t sum, const ByteRange& range) {
        return sum + range.size_bytes();
      });
}

void append_parts_outside(
    const ByteRange& range,
    std::span<const ByteRange> holes,
    std::vector<ByteRange>& parts) {
  uint64_t cursor = range.begin;
  for (const ByteRange& hole : holes) {
    if (hole.begin >= range.end) {
      break;
    }
    if (cursor < hole.begin) {
      parts.push_back({cursor, hole.begin});
    }
    cursor = std::max(cursor, hole.end);
  }
  if (cursor < range.end) {
    parts.push_back({cursor, range.end});
  }
}

namespace {

using Iterator = std::vector<ByteRange>::iterator;

Iterator first_not_before(std::vector<ByteRange>& ranges, uint64_t address) {
  return std::partition_point(
      ranges.begin(),
      ranges.end(),
      [&](const ByteRange& range) { return range.end < address; });
}

}  // namespace

void ByteRangeSet::add(const ByteRange& range) {
  if (range.empty()) {
    return;
  }
  const Iterator first = first_not_before(ranges_, range.begin);
  Iterator last = first;
  ByteRange merged = range;
  for (; last != ranges_.end() && last->begin <= range.end; ++last) {
    merged.begin = std::min(merged.begin, last->begin);
    merged.end = std::max(merged.end, last->end);
  }
  if (first == last) {
    ranges_.insert(first, merged);
  } else {
    *first = merged;
    ranges_.erase(first + 1, last);
  }
}

void ByteRangeSet::remove(
    const ByteRange& range,
    std::vector<ByteRange>& removed) {
  const Iterator first = first_not_before(ranges_, range.begin + 1);
  Iterator last = first;
  while (last != ranges_.end() && last->begin < range.end) {
    ++last;
  }
  if (range.empty() || first == last) {
    return;
  }
  // All that can throw comes before any change.
  removed.reserve(removed.size() + static_cast<size_t>(last - first));
  const ByteRange before = {first->begin, range.begin};
  const ByteRange behind = {range.end, (last - 1)->end};
  std::vector<ByteRange> left;
  for (const ByteRange& part : {before, behind}) {
    if (!part.empty()) {
      left.push_back(part);
    }
  }
  const auto begin = static_cast<size_t>(first - ranges_.begin());
  const auto end = static_cast<size_t>(last - ranges_.begin());
  ranges_.reserve(ranges_.size() + 1);
  const auto at = [&](size_t i) {
    return ranges_.begin() + static_cast<std::ptrdiff_t>(i);
  };
  for (auto part = at(begin); part != at(end); ++part) {
    removed.push_back(intersect(*part, range));
  }
  ranges_.erase(at(begin), at(end));
  ranges_.insert(at(begin), left.begin(), left.end());
}

}  // namespace ckpt_streamer
