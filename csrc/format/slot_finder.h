// Finds the slots of a dotted name. Names may repeat: {"a.b": t, "a": {"b":
// u}}, keys 0 and "0", several files.
//
// Safe to share between threads once built.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "format/checkpoint_index.h"

namespace ckpt_streamer::format {

class SlotFinder {
 public:
  // REQUIRES: `index` outlives this. Cost: O(names), 16 bytes a slot.
  explicit SlotFinder(const CheckpointIndex& index);

  // In the order of the index's slots.
  [[nodiscard]] std::vector<uint32_t> find(std::string_view name) const;

  // The one slot of that name.
  // THROWS: CheckpointError InvalidArgument that names the file, and the keys
  // that lead to each if there are several.
  [[nodiscard]] uint32_t find_one(std::string_view name) const;

 private:
  struct Entry {
    uint64_t hash;
    uint32_t slot;
  };

  const CheckpointIndex& index_;
  std::vector<Entry> entries_;  // ascending
};

// The keys that lead to a slot, as Python would write them: ['a'][0]['b'].
[[nodiscard]] std::string slot_path(
    const CheckpointIndex& index,
    uint32_t slot);

}  // namespace ckpt_streamer::format
