#include "format/slot_finder.h"

#include <algorithm>
#include <functional>
#include <tuple>
#include <utility>

#include "base/error.h"
#include "format/slot_names.h"
#include "format/text.h"
#include "format/value_text.h"

namespace ckpt_streamer::format {
namespace {

constexpr size_t kShownSlots = 3;

uint64_t hash_of(std::string_view name) {
  return std::hash<std::string_view>{}(name);
}

std::string key_in_brackets(const ValueTree& tree, NodeId key) {
  return "[" +
         (tree.kind(key) == NodeKind::kString ? quoted(tree.text(key))
                                              : key_text(tree, key)) +
         "]";
}

const std::string& path_of_file(const CheckpointIndex& index, uint32_t slot) {
  return index.files[index.file_index(index.slots[slot].tensor_index)].path;
}

}  // namespace

SlotFinder::SlotFinder(
    const CheckpointIndex& index,
    std::vector<uint32_t> slots)
    : index_(index), slots_(std::move(slots)) {
  SlotNames names(index);
  entries_.reserve(slots_.size());
  for (size_t i = 0; i < slots_.size(); ++i) {
    entries_.push_back(
        {hash_of(names.name(slots_[i])), static_cast<uint32_t>(i)});
  }
  std::sort(
      entries_.begin(),
      entries_.end(),
      [](const Entry& left, const Entry& right) {
        return std::tie(left.hash, left.position) <
               std::tie(right.hash, right.position);
      });
}

std::vector<uint32_t> SlotFinder::find(std::string_view name) const {
  const uint64_t hash = hash_of(name);
  auto entry = std::lower_bound(
      entries_.begin(),
      entries_.end(),
      hash,
      [](const Entry& left, uint64_t right) { return left.hash < right; });
  SlotNames names(index_);
  std::vector<uint32_t> positions;
  for (; entry != entries_.end() && entry->hash == hash; ++entry) {
    if (names.name(slots_[entry->position]) == name) {
      positions.push_back(entry->position);
    }
  }
  return positions;
}

uint32_t SlotFinder::find_one(std::string_view name) const {
  const std::vector<uint32_t> positions = find(name);
  if (positions.size() == 1) {
    return positions.front();
  }
  const std::string& path = index_.files.front().path;
  if (positions.empty()) {
    throw CheckpointError(
        ErrorKind::kInvalidArgument,
        path,
        "has no tensor " + quoted(name));
  }
  std::string places;
  for (size_t i = 0; i < std::min(positions.size(), kShownSlots); ++i) {
    const uint32_t slot = slots_[positions[i]];
    places += (i > 0 ? " and " : "") + slot_path(index_, slot);
    if (index_.files.size() > 1) {
      places += " of " + path_of_file(index_, slot);
    }
  }
  throw CheckpointError(
      ErrorKind::kInvalidArgument,
      path,
      "has " + std::to_string(positions.size()) + " tensors of the name " +
          quoted(name) + ", " + places +
          (positions.size() > kShownSlots ? " and others" : "") +
          ", expected the name of one");
}

std::string slot_path(const CheckpointIndex& index, uint32_t slot) {
  const Slot& found = index.slots[slot];
  std::string path =
      found.key == kNoNode ? "" : key_in_brackets(index.values, found.key);
  for (uint32_t i = found.prefix; i != kNoPrefix;
       i = index.prefixes[i].parent) {
    path.insert(0, key_in_brackets(index.values, index.prefixes[i].key));
  }
  return path;
}

}  // namespace ckpt_streamer::format
