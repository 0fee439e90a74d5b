#include "stream/huge_page_advice.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "os/threads.h"

namespace ckpt_streamer::stream {
namespace {

struct Registry {
  os::ForkSafeMutex mutex;
  std::vector<const HugePageAdvice*> all;
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

}  // namespace

HugePageAdvice::HugePageAdvice(
    std::vector<ByteRange> mappings,
    os::HugePages wanted)
    : mappings_(std::move(mappings)), wanted_(wanted) {
  const std::lock_guard lock(registry().mutex);
  for (const ByteRange& mapping : mappings_) {
    if (wanted == os::HugePages::kAvoid ||
        !is_wanted_elsewhere(os::HugePages::kAvoid, mapping)) {
      os::advise_huge_pages({&mapping, 1}, wanted);
    }
  }
  registry().all.push_back(this);
}

HugePageAdvice::~HugePageAdvice() {
  const std::lock_guard lock(registry().mutex);
  std::erase(registry().all, this);
  if (wanted_ == os::HugePages::kPrefer) {
    return;
  }
  for (const ByteRange& mapping : mappings_) {
    if (is_wanted_elsewhere(os::HugePages::kPrefer, mapping) &&
        !is_wanted_elsewhere(os::HugePages::kAvoid, mapping)) {
      os::advise_huge_pages({&mapping, 1}, os::HugePages::kPrefer);
    }
  }
}

void HugePageAdvice::disown(const ByteRange& range) noexcept {
  const std::lock_guard lock(registry().mutex);
  std::erase_if(mappings_, [&](const ByteRange& mapping) {
    return !intersect(mapping, range).empty();
  });
}

bool HugePageAdvice::is_wanted_elsewhere(
    os::HugePages wanted,
    const ByteRange& range) const noexcept {
  const auto& all = registry().all;
  return std::any_of(all.begin(), all.end(), [&](const HugePageAdvice* other) {
    return other != this && other->wanted_ == wanted &&
           have_common_part(other->mappings_, range);
  });
}

}  // namespace ckpt_streamer::stream
