#include "stream/live_ranges.h"

#include <algorithm>
#include <mutex>

#include "base/byte_ranges.h"
#include "os/threads.h"

namespace ckpt_streamer::stream {
namespace {

struct Registry {
  os::ForkSafeMutex mutex;
  std::vector<LiveRanges*> streams;
};

// Never destroyed: streams may outlive static objects.
Registry& registry() {
  static auto* const instance = new Registry;
  return *instance;
}

}  // namespace

LiveRanges::LiveRanges(const ByteRange& hull) : hull_(hull) {
  Registry& all = registry();
  const std::lock_guard lock(all.mutex);
  all.streams.push_back(this);
  for (LiveRanges* other : all.streams) {
    if (other != this && !intersect(other->hull_, hull_).empty()) {
      ++other->neighbour_count_;
      ++neighbour_count_;
    }
  }
}

LiveRanges::~LiveRanges() {
  Registry& all = registry();
  const std::lock_guard lock(all.mutex);
  std::erase(all.streams, this);
  for (LiveRanges* other : all.streams) {
    if (!intersect(other->hull_, hull_).empty()) {
      --other->neighbour_count_;
    }
  }
}

void LiveRanges::set(std::span<const ByteRange> live) noexcept {
  const std::lock_guard lock(registry().mutex);
  try {
    live_.assign(live.begin(), live.end());
  } catch (...) {
    live_.clear();
  }
}

void LiveRanges::add(const ByteRange& live) noexcept {
  const std::lock_guard lock(registry().mutex);
  try {
    live_.push_back(live);
  } catch (...) {
    live_.clear();
  }
}

void LiveRanges::append_free_parts(
    const ByteRange& range,
    std::vector<ByteRange>& ranges) const {
  std::vector<ByteRange> taken;
  {
    const std::lock_guard lock(registry().mutex);
    for (const LiveRanges* other : registry().streams) {
      if (other == this) {
        continue;
      }
      for (const ByteRange& live : other->live_) {
        if (!intersect(live, range).empty()) {
          taken.push_back(live);
        }
      }
    }
  }
  std::sort(
      taken.begin(),
      taken.end(),
      [](const ByteRange& one, const ByteRange& other) {
        return one.begin < other.begin;
      });
  append_parts_outside(range, taken, ranges);
}

bool LiveRanges::is_live_elsewhere(const ByteRange& range) const noexcept {
  const std::lock_guard lock(registry().mutex);
  return std::any_of(
      registry().streams.begin(),
      registry().streams.end(),
      [&](const LiveRanges* other) {
        return other != this && std::any_of(
                                    other->live_.begin(),
                                    other->live_.end(),
                                    [&](const ByteRange& live) {
                                      return !intersect(live, range).empty();
                                    });
      });
}

}  // namespace ckpt_streamer::stream
