// Which addresses each stream of the process has live, so that streams over the
// same mapping leave each other's pages alone. What a stream passes over for
// that, the other gives back when it is done with it.
//
// Between a look here and a drop, another stream can make the same addresses
// live: its pages are read from the file again.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "base/byte_range.h"

namespace ckpt_streamer::stream {

// One stream's. set() and add() are for its owner; the others may be called by
// any thread.
class LiveRanges {
 public:
  // `hull`: around all that may ever be live.
  // THROWS: std::bad_alloc.
  explicit LiveRanges(const ByteRange& hull);
  ~LiveRanges();
  LiveRanges(const LiveRanges&) = delete;
  LiveRanges& operator=(const LiveRanges&) = delete;

  // Whether another stream may have a part of the hull live. Cost: a load.
  [[nodiscard]] bool has_neighbours() const noexcept {
    return neighbour_count_.load(std::memory_order_relaxed) > 0;
  }

  // What is live from now on. Without memory to note it, nothing is.
  void set(std::span<const ByteRange> live) noexcept;
  // What is live beside that.
  void add(const ByteRange& live) noexcept;

  // Appends the parts of the range that no other stream has live.
  // THROWS: std::bad_alloc.
  void append_free_parts(const ByteRange& range, std::vector<ByteRange>& ranges)
      const;

  // Whether another stream has a part of the range live.
  [[nodiscard]] bool is_live_elsewhere(const ByteRange& range) const noexcept;

 private:
  const ByteRange hull_;
  std::atomic<int> neighbour_count_ = 0;
  std::vector<ByteRange> live_;
};

}  // namespace ckpt_streamer::stream
