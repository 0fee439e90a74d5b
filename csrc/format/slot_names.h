// The dotted names of many slots, each at little more than the cost of its key.
//
// Not thread-safe: one for each reader.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "format/checkpoint_index.h"

namespace ckpt_streamer::format {

class SlotNames {
 public:
  // REQUIRES: `index` outlives this.
  explicit SlotNames(const CheckpointIndex& index) : index_(index) {}

  // As CheckpointIndex::slot_name(); until the next call. Cost: O(key) where
  // the slot stands in the container of the one before.
  [[nodiscard]] const std::string& name(size_t slot_index);

 private:
  const CheckpointIndex& index_;
  bool has_prefix_ = false;  // whether prefix_ was ever set
  uint32_t prefix_ = kNoPrefix;
  size_t prefix_bytes_ = 0;  // of the containers' part of name_, without a dot
  std::string name_;
};

}  // namespace ckpt_streamer::format
