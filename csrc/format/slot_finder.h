// Finds slots by their dotted names. Names may repeat: {"a.b": t, "a": {"b":
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
  // `slots`: of the index, those to be found.
  // REQUIRES: `index` outlives this. Cost: O(names), 20 bytes a slot.
  SlotFinder(const CheckpointIndex& index, std::vector<uint32_t> slots);

  // Their positions in `slots`, ascending.
  [[nodiscard]] std::vector<uint32_t> find(std::string_view name) const;

  // The position of the one slot of that name.
  // THROWS: CheckpointError InvalidArgument that names the file, and the keys
  // that lead to each if there are several.
  [[nodiscard]] uint32_t find_one(std::string_view name) const;

 private:
  struct Entry {
    uint64_t hash;
    uint32_t position;  // in slots_
  };

  const CheckpointIndex& index_;
  const std::vector<uint32_t> slots_;
  std::vector<Entry> entries_;  // ascending
};

// The keys that lead to a slot, as Python would write them: ['a'][0]['b'].
[[nodiscard]] std::string slot_path(
    const CheckpointIndex& index,
    uint32_t slot);

}  // namespace ckpt_streamer::format
