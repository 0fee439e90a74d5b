// One step of a stream: the tensors whose pages may be resident together.
//
// A window counts its tensors' bytes rounded outward to whole blocks, blocks
// counted once however many tensors share them. Touching one byte can map more
// than its page (os::fault_extent_bytes()); there are two ways to allow for it:
//   by fault blocks  Blocks are what one fault may map: what is counted is all
//                    that can be resident. For limits that are large beside it.
//   by pages         Blocks are pages. The reader makes the pages at each edge
//                    of an extent resident in advance and drops those outside,
//                    so that no later fault reaches beyond. While that happens,
//                    one fault block more is resident.
// Pure arithmetic; not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "base/byte_range.h"

namespace ckpt_streamer::plan {

struct WindowRules {
  uint64_t memory_limit_bytes;
  uint64_t block_bytes;  // a power of two
  // What is to stay free for an edge that is made resident on top of the rest:
  // 0 by fault blocks, one fault block by pages.
  uint64_t edge_bytes;
  // Whether edges have to be made resident in advance.
  [[nodiscard]] bool pins_edges() const noexcept {
    return edge_bytes > 0;
  }
};

// By fault blocks if the limit is at least 16 of them and they push no span
// over it that would fit by pages; else by pages. REQUIRES: both sizes are
// powers of two, page <= fault block.
[[nodiscard]] WindowRules choose_rules(
    std::span<const ByteRange> spans,
    uint64_t memory_limit_bytes,
    uint64_t page_size_bytes,
    uint64_t fault_extent_bytes);

// The rules for a stream whose windows leave a part of its limit for others,
// but hold each span that the limit itself holds.
[[nodiscard]] WindowRules with_room(
    const WindowRules& rules,
    std::span<const ByteRange> spans,
    uint64_t room_bytes);

class Window {
 public:
  explicit Window(const WindowRules& rules) noexcept : rules_(rules) {}

  // The limit from now on.
  void set_memory_limit(uint64_t memory_limit_bytes) noexcept {
    rules_.memory_limit_bytes = memory_limit_bytes;
  }

  // Whether the window with `span` added still keeps the limit, given that all
  // of it is known before any of it is touched. An empty window takes anything,
  // also what is larger than the limit: a tensor cannot be split.
  [[nodiscard]] bool fits(const ByteRange& span) const;

  // The same, given that the window so far is resident already.
  [[nodiscard]] bool fits_resident(const ByteRange& span) const;

  // Adds a span; an empty one changes nothing. O(log n) in the window's
  // disjoint extents.
  void add(const ByteRange& span);

  void clear() noexcept;

  [[nodiscard]] bool empty() const noexcept {
    return extents_.empty();
  }
  [[nodiscard]] uint64_t extent_bytes() const noexcept {
    return extent_bytes_;
  }
  // Disjoint, ascending, whole blocks.
  [[nodiscard]] std::vector<ByteRange> extents() const;

 private:
  [[nodiscard]] uint64_t added_bytes(const ByteRange& extent) const;
  [[nodiscard]] bool keeps(uint64_t limit_bytes, uint64_t added) const noexcept;
  // Whether one extent remains when `extent` is added.
  [[nodiscard]] bool stays_whole(const ByteRange& extent) const;

  WindowRules rules_;
  uint64_t extent_bytes_ = 0;
  std::map<uint64_t, uint64_t> extents_;  // begin -> end
};

// Cuts a stream into windows, greedily: the index behind the last span of each
// window, ascending; the last one is spans.size(). No spans: no windows. Spans
// without bytes belong to the window they fall in. O(n log n).
[[nodiscard]] std::vector<size_t> plan_windows(
    std::span<const ByteRange> spans,
    const WindowRules& rules);

// The first of them that begins at a span: the index behind its last.
// REQUIRES: begin < spans.size().
[[nodiscard]] size_t window_end(
    std::span<const ByteRange> spans,
    size_t begin,
    const WindowRules& rules);

}  // namespace ckpt_streamer::plan
