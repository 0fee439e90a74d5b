#include "format/slot_names.h"

#include <vector>

#include "format/value_text.h"

namespace ckpt_streamer::format {

const std::string& SlotNames::name(size_t slot_index) {
  const Slot& slot = index_.slots[slot_index];
  if (!has_prefix_ || slot.prefix != prefix_) {
    std::vector<NodeId> keys;  // from the container up
    for (uint32_t i = slot.prefix; i != kNoPrefix;
         i = index_.prefixes[i].parent) {
      keys.push_back(index_.prefixes[i].key);
    }
    name_.clear();
    for (size_t i = keys.size(); i-- > 0;) {
      name_ += key_text(index_.values, keys[i]);
      name_ += i > 0 ? "." : "";
    }
    prefix_ = slot.prefix;
    prefix_bytes_ = name_.size();
    has_prefix_ = true;
  }
  name_.resize(prefix_bytes_);
  if (slot.key != kNoNode) {
    name_ += slot.prefix == kNoPrefix ? "" : ".";
    if (index_.values.kind(slot.key) == NodeKind::kString) {
      name_ += index_.values.text(slot.key);
    } else {
      name_ += key_text(index_.values, slot.key);
    }
  }
  return name_;
}

}  // namespace ckpt_streamer::format
