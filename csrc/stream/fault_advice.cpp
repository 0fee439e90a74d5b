#include "stream/fault_advice.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>
#include <utility>

#include "os/single_faults.h"
#include "os/threads.h"

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

// Whether faults are limited anywhere: asked before any lock is taken.
std::atomic<bool> are_any_limited = false;

bool have_common_part(
    std::span<const ByteRange> ranges,
    const ByteRange& range) noexcept {
  return std::any_of(ranges.begin(), ranges.end(), [&](const ByteRange& one) {
    return !intersect(one, range).empty();
  });
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
  prefer_huge_pages_only_in({});
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
    for (const ByteRange& limited : one->limited_.ranges()) {
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
  are_any_limited = true;
  for (const ByteRange& range : ranges) {
    if (single_faults->begin(range) != 0) {
      continue;
    }
    try {
      limited_.add(range);
    } catch (...) {  // no memory
      single_faults->end(range);
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
  if (!are_any_limited) {
    return;
  }
  const std::lock_guard lock(registry().mutex);
  std::vector<ByteRange> lifted;
  for (FaultAdvice* const one : registry().all) {
    try {
      for (const ByteRange& range : ranges) {
        one->limited_.remove(range, lifted);
      }
    } catch (...) {  // no memory: slow to read, and nothing else
    }
  }
  for (const ByteRange& range : lifted) {
    lift_limit(range);
  }
}

void FaultAdvice::lift_all() noexcept {
  const std::lock_guard lock(registry().mutex);
  ByteRangeSet limited = std::exchange(limited_, {});
  bool are_any_left = false;
  for (const FaultAdvice* const one : registry().all) {
    try {
      std::vector<ByteRange> kept;
      for (const ByteRange& range : one->limited_.ranges()) {
        are_any_left = true;
        limited.remove(range, kept);
      }
    } catch (...) {  // no memory: theirs are lifted as well
    }
  }
  for (const ByteRange& range : limited.ranges()) {
    lift_limit(range);
  }
  if (!are_any_left) {
    registry().single_faults.reset();
    are_any_limited = false;
  }
}

void FaultAdvice::prefer_huge_pages_only_in(
    std::span<const ByteRange> ranges) noexcept {
  if (wanted_ == os::HugePages::kPrefer) {
    return;
  }
  const std::lock_guard lock(registry().mutex);
  os::advise_huge_pages(exceptions_, os::HugePages::kAvoid);
  exceptions_.clear();
  for (const ByteRange& range : ranges) {
    if (is_wanted_elsewhere(os::HugePages::kAvoid, range)) {
      continue;
    }
    try {
      exceptions_.push_back(range);
    } catch (...) {  // no memory
      return;
    }
    prefer_huge_pages(range);
  }
}

void FaultAdvice::disown(const ByteRange& range) noexcept {
  const std::lock_guard lock(registry().mutex);
  std::erase_if(mappings_, [&](const ByteRange& mapping) {
    if (intersect(mapping, range).empty()) {
      return false;
    }
    try {
      std::vector<ByteRange> forgotten;
      limited_.remove(mapping, forgotten);
    } catch (...) {  // no memory: all of them are
      limited_ = {};
    }
    return true;
  });
  std::erase_if(exceptions_, [&](const ByteRange& exception) {
    return !have_common_part(mappings_, exception);
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
