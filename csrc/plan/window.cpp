#include "plan/window.h"

#include <algorithm>
#include <iterator>

namespace ckpt_streamer::plan {

uint64_t Window::added_bytes(const ByteRange& extent) const {
  // A stream's next span mostly lies in the last extent, if it is small.
  if (!extents_.empty()) {
    const auto& [begin, end] = *std::prev(extents_.end());
    if (ByteRange{begin, end}.contains(extent)) {
      return 0;
    }
  }
  uint64_t added = extent.size_bytes();
  auto next = extents_.upper_bound(extent.begin);
  if (next != extents_.begin()) {
    --next;
  }
  for (; next != extents_.end() && next->first < extent.end; ++next) {
    added -= intersect(extent, {next->first, next->second}).size_bytes();
  }
  return added;
}

bool Window::keeps(uint64_t limit_bytes, uint64_t added) const noexcept {
  // Nothing added fits even a window that is over the limit by itself: views of
  // one large tensor stay with it.
  return added == 0 ||
         (extent_bytes_ <= limit_bytes && added <= limit_bytes - extent_bytes_);
}

bool Window::stays_whole(const ByteRange& extent) const {
  return extents_.size() == 1 && extents_.begin()->first <= extent.end &&
         extents_.begin()->second >= extent.begin;
}

bool Window::fits(const ByteRange& span) const {
  if (span.empty() || extents_.empty()) {
    return true;
  }
  const ByteRange extent = round_outward(span, rules_.block_bytes);
  // Two edges alone keep the limit while they are made resident: the first has
  // it to itself, and of the second's block no more can be outside than is
  // still missing inside.
  return stays_whole(extent)
             ? keeps(rules_.memory_limit_bytes, added_bytes(extent))
             : keeps(
                   rules_.memory_limit_bytes -
                       std::min(rules_.memory_limit_bytes, rules_.edge_bytes),
                   added_bytes(extent));
}

bool Window::fits_resident(const ByteRange& span) const {
  if (span.empty() || extents_.empty()) {
    return true;
  }
  return keeps(
      rules_.memory_limit_bytes -
          std::min(rules_.memory_limit_bytes, rules_.edge_bytes),
      added_bytes(round_outward(span, rules_.block_bytes)));
}

void Window::add(const ByteRange& span) {
  if (span.empty()) {
    return;
  }
  ByteRange extent = round_outward(span, rules_.block_bytes);
  extent_bytes_ += added_bytes(extent);
  // A stream's next span mostly begins in, or right behind, the last extent.
  if (!extents_.empty()) {
    auto& [last_begin, last_end] = *std::prev(extents_.end());
    if (last_begin <= extent.begin && extent.begin <= last_end) {
      last_end = std::max(last_end, extent.end);
      return;
    }
  }
  // Merge with every extent that overlaps or touches.
  auto first = extents_.upper_bound(extent.begin);
  if (first != extents_.begin() && std::prev(first)->second >= extent.begin) {
    --first;
  }
  auto last = first;
  while (last != extents_.end() && last->first <= extent.end) {
    extent.begin = std::min(extent.begin, last->first);
    extent.end = std::max(extent.end, last->second);
    ++last;
  }
  extents_.insert_or_assign(
      extents_.erase(first, last),
      extent.begin,
      extent.end);
}

void Window::clear() noexcept {
  extents_.clear();
  extent_bytes_ = 0;
}

std::vector<ByteRange> Window::extents() const {
  std::vector<ByteRange> result;
  result.reserve(extents_.size());
  for (const auto& [begin, end] : extents_) {
    result.push_back({begin, end});
  }
  return result;
}

WindowRules choose_rules(
    std::span<const ByteRange> spans,
    uint64_t memory_limit_bytes,
    uint64_t page_size_bytes,
    uint64_t fault_extent_bytes) {
  constexpr uint64_t kFewestBlocks = 16;
  const bool by_fault_blocks =
      memory_limit_bytes / kFewestBlocks >= fault_extent_bytes &&
      std::none_of(spans.begin(), spans.end(), [&](const ByteRange& span) {
        return round_outward(span, page_size_bytes).size_bytes() <=
                   memory_limit_bytes &&
               round_outward(span, fault_extent_bytes).size_bytes() >
                   memory_limit_bytes;
      });
  return by_fault_blocks
             ? WindowRules{memory_limit_bytes, fault_extent_bytes, 0}
             : WindowRules{
                   memory_limit_bytes,
                   page_size_bytes,
                   fault_extent_bytes};
}

WindowRules with_room(
    const WindowRules& rules,
    std::span<const ByteRange> spans,
    uint64_t room_bytes) {
  WindowRules smaller = rules;
  smaller.memory_limit_bytes -=
      std::min(smaller.memory_limit_bytes, room_bytes);
  for (const ByteRange& span : spans) {
    const uint64_t bytes = round_outward(span, rules.block_bytes).size_bytes();
    if (bytes <= rules.memory_limit_bytes) {
      smaller.memory_limit_bytes = std::max(smaller.memory_limit_bytes, bytes);
    }
  }
  return smaller;
}

std::vector<size_t> plan_windows(
    std::span<const ByteRange> spans,
    const WindowRules& rules) {
  std::vector<size_t> ends;
  for (size_t begin = 0; begin < spans.size(); begin = ends.back()) {
    ends.push_back(window_end(spans, begin, rules));
  }
  return ends;
}

size_t window_end(
    std::span<const ByteRange> spans,
    size_t begin,
    const WindowRules& rules) {
  Window window(rules);
  size_t end = begin;
  do {
    window.add(spans[end]);
    ++end;
  } while (end < spans.size() && window.fits(spans[end]));
  return end;
}

}  // namespace ckpt_streamer::plan
