// Several byte ranges together. Pure arithmetic.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/byte_range.h"

namespace ckpt_streamer {

// Common parts count as often as they are there.
[[nodiscard]] uint64_t total_bytes(std::span<const ByteRange> ranges) noexcept;

// Appends the parts of the range that lie outside all holes, ascending.
// REQUIRES: the holes ascend by where they begin; they may overlap.
// THROWS: std::bad_alloc.
void append_parts_outside(
    const ByteRange& range,
    std::span<const ByteRange> holes,
    std::vector<ByteRange>& parts);

// Bytes, as disjoint ranges that do not touch, ascending. Cost of a change:
// O(log n), and moving what comes behind. THROWS: std::bad_alloc, with which
// nothing is changed.
class ByteRangeSet {
 public:
  void add(const ByteRange& range);
  // Appends the parts that were there.
  void remove(const ByteRange& range, std::vector<ByteRange>& removed);

  [[nodiscard]] const std::vector<ByteRange>& ranges() const noexcept {
    return ranges_;
  }

 private:
  std::vector<ByteRange> ranges_;
};

}  // namespace ckpt_streamer
