#include "format/name_prefix.h"

#include <algorithm>
#include <cstddef>
#include <map>
#include <vector>

#include "base/error.h"
#include "format/slot_names.h"
#include "format/text.h"

namespace ckpt_streamer::format {
namespace {

constexpr size_t kShownPrefixes = 3;

}  // namespace

std::string find_prefix(
    const CheckpointIndex& index,
    std::span<const uint32_t> slots,
    const std::unordered_set<std::string_view>& names) {
  std::map<std::string, size_t, std::less<>> counts;
  SlotNames slot_names(index);
  for (const uint32_t slot : slots) {
    const std::string_view name = slot_names.name(slot);
    for (size_t begin = 0; begin <= name.size();) {
      if (names.contains(name.substr(begin))) {
        const std::string_view prefix = name.substr(0, begin);
        const auto found = counts.find(prefix);
        (found == counts.end() ? counts.emplace(prefix, 0).first : found)
            ->second += 1;
      }
      const size_t dot = name.find('.', begin);
      begin = dot == std::string_view::npos ? name.size() + 1 : dot + 1;
    }
  }
  size_t most = 0;
  std::vector<std::string_view>
      best;  // ascending: what all begin with is first
  for (const auto& [prefix, count] : counts) {
    if (count > most) {
      most = count;
      best.clear();
    }
    if (count == most) {
      best.push_back(prefix);
    }
  }
  if (best.empty()) {
    return "";
  }
  if (!std::all_of(best.begin(), best.end(), [&](std::string_view prefix) {
        return prefix.starts_with(best.front());
      })) {
    std::string shown;
    for (size_t i = 0; i < std::min(best.size(), kShownPrefixes); ++i) {
      shown += (i > 0 ? ", " : "") + quoted(best[i]);
    }
    throw CheckpointError(
        ErrorKind::kInvalidArgument,
        index.files.front().path,
        "has " + std::to_string(most) + " of the " +
            std::to_string(names.size()) + " names behind each of " + shown +
            (best.size() > kShownPrefixes ? " and others" : "") +
            ", expected one prefix that has the most; say which by prefix");
  }
  return std::string(best.front());
}

}  // namespace ckpt_streamer::format
