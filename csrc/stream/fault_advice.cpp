#include "stream/fault_advice.h"

#include <algorithm>
#include <limits>
#include <mutex>
#include <optional>
#include <utility>

#include "base/byte_ranges.h"
#include "os/single_faults.h"
#include "os/threads.h"
#include "plan/window.h"

namespace ckpt_streamer::stream {
namespace {

struct Registry {
  os::ForkSafeMutex mutex;
  std::vector<FaultAdvice*> all;
  std::optional<os::SingleFaults> single_faults;  // as long as any are limited
};

// Never destroyed: streams may outlive static objects.
Registry& registry() {
  static auto* const instance = new Registry;
  return *instance;
}

bool have_common_part(
    std::span<const ByteRange> ranges,
    const ByteRange& range) noexcept {
  return std::any_of(ranges.begin(), ranges.end(), [&](const ByteRange& one) {
    return !intersect(one, range).empty();
  });
}

// The union of both, disjoint and ascending.
std::vector<ByteRange> with(
    std::span<const ByteRange> ranges,
    const ByteRange& added) {
  plan::Window all({std::numeric_limits<uint64_t>::max(), 1, 0});
  for (const ByteRange& range : ranges) {
    all.add(range);
  }
  all.add(added);
  return all.extents();
}

// The ranges, ascending, without all that lies in the holes, ascending too.
std::vector<ByteRange> without(
    std::span<const ByteRange> ranges,
    std::span<const ByteRange> holes) {
  std::vector<ByteRange> left;
  for (const ByteRange& range : ranges) {
    append_parts_outside(range, holes, left);
  }
  return left;
}

}  // namespace

FaultAdvice::FaultAdvice(std::vector<ByteRange> mappings, os::HugePages wanted)
    : mappings_(std::move(mappings)), wanted_(wanted) {
  const std::lock_guard lock(registry().mutex);
  for (const ByteRange& mapping : mappings_) {
    if (wanted == os::HugePages::kAvoid) {
      os::advise_huge_pages({&mapping, 1}, wanted);
    } else if (!is_wanted_elsewhere(os::HugePages::kAvoid, mapping)) {
      prefer_huge_pages(mapping);
    }
  }
  registry().all.push_back(this);
}

FaultAdvice::~FaultAdvice() {
  lift_all();
  const std::lock_guard lock(registry().mutex);
  std::erase(registry().all, this);
  if (wanted_ == os::HugePages::kPrefer) {
    return;
  }
  for (const ByteRange& mapping : mappings_) {
    if (is_wanted_elsewhere(os::HugePages::kPrefer, mapping) &&
        !is_wanted_elsewhere(os::HugePages::kAvoid, mapping)) {
      prefer_huge_pages(mapping);
    }
  }
}

// But where faults are limited to pages.
void FaultAdvice::prefer_huge_pages(const ByteRange& range) noexcept {
  os::advise_huge_pages({&range, 1}, os::HugePages::kPrefer);
  for (const FaultAdvice* const one : registry().all) {
    for (const ByteRange& limited : one->limited_) {
      const ByteRange part = intersect(limited, range);
      if (!part.empty()) {
        os::advise_huge_pages({&part, 1}, os::HugePages::kAvoid);
      }
    }
  }
}

void FaultAdvice::limit_to_pages(std::span<const ByteRange> ranges) noexcept {
  const std::lock_guard lock(registry().mutex);
  auto& single_faults = registry().single_faults;
  if (!single_faults.has_value()) {
    single_faults.emplace();
  }
  for (const ByteRange& range : ranges) {
    try {
      std::vector<ByteRange> limited = with(limited_, range);
      if (single_faults->begin(range) != 0) {
        continue;
      }
      limited_ = std::move(limited);
    } catch (...) {  // no memory
      continue;
    }
    os::advise_huge_pages({&range, 1}, os::HugePages::kAvoid);
  }
}

void FaultAdvice::lift_limit(const ByteRange& range) const noexcept {
  if (auto& single_faults = registry().single_faults) {
    single_faults->end(range);
  }
  if (wanted_ == os::HugePages::kPrefer &&
      !is_wanted_elsewhere(os::HugePages::kAvoid, range)) {
    prefer_huge_pages(range);
  }
}

void FaultAdvice::lift(std::span<const ByteRange> ranges) noexcept {
  const std::lock_guard lock(registry().mutex);
  for (FaultAdvice* const one : registry().all) {
    if (one->limited_.empty()) {
      continue;
    }
    try {
      std::vector<ByteRange> left = without(one->limited_, ranges);
      const std::vector<ByteRange> lifted = without(one->limited_, left);
      std::swap(one->limited_, left);
      for (const ByteRange& range : lifted) {
        lift_limit(range);
      }
    } catch (...) {  // no memory: slow to read, and nothing else
    }
  }
}

void FaultAdvice::lift_all() noexcept {
  const std::lock_guard lock(registry().mutex);
  std::vector<ByteRange> limited = std::exchange(limited_, {});
  bool are_any_left = false;
  for (const FaultAdvice* const one : registry().all) {
    are_any_left = are_any_left || !one->limited_.empty();
    try {
      limited = without(limited, one->limited_);
    } catch (...) {  // no memory: theirs are lifted as well
    }
  }
  for (const ByteRange& range : limited) {
    lift_limit(range);
  }
  if (!are_any_left) {
    registry().single_faults.reset();
  }
}

void FaultAdvice::disown(const ByteRange& range) noexcept {
  const std::lock_guard lock(registry().mutex);
  std::erase_if(mappings_, [&](const ByteRange& mapping) {
    return !intersect(mapping, range).empty();
  });
  // What they map by now, if anything, is not this one's to advise.
  std::erase_if(limited_, [&](const ByteRange& limited) {
    return std::none_of(
        mappings_.begin(),
        mappings_.end(),
        [&](const ByteRange& mapping) { return mapping.contains(limited); });
  });
}

bool FaultAdvice::is_wanted_elsewhere(
    os::HugePages wanted,
    const ByteRange& range) const noexcept {
  const auto& all = registry().all;
  return std::any_of(all.begin(), all.end(), [&](const FaultAdvice* other) {
    return other != this && other->wanted_ == wanted &&
           have_common_part(other->mappings_, range);
  });
}

}  // namespace ckpt_streamer::stream
