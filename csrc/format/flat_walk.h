// From a pickle of TorchScript to the names of its tensors.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "format/checkpoint_index.h"
#include "format/pickle_context.h"
#include "format/tensor_rebuild.h"

namespace ckpt_streamer::format {

// Walks the modules, lists, tuples and dicts that are reachable from the
// pickle's root, each under all its paths but not inside itself, and adds a
// named slot for each tensor.
class FlatWalk {
 public:
  // REQUIRES: all outlive this.
  FlatWalk(
      PickleContext& context,
      StorageLookup& lookup,
      CheckpointIndex& index);

  // THROWS: CheckpointError Unsupported for shared containers that unfold to
  // many times the pickle's values.
  void run();

 private:
  struct Frame {
    std::span<const ValueId> values;
    bool is_mapping;  // values are key, value, key, value
    size_t next;
    size_t name_bytes;  // of the container's own path
    ValueId container;
  };

  void visit(ValueId id);
  // The value that stands for this one, kNoValue if none is to be walked.
  ValueId stand_in(ValueId id);
  void charge_visits(uint64_t value_count);
  void push_container(
      ValueId id,
      std::span<const ValueId> values,
      bool is_mapping);
  void append_key(ValueId key, bool is_first);

  PickleContext& context_;
  const PickleTree& tree_;
  CheckpointIndex& index_;
  TensorRebuilder tensors_;

  std::vector<uint32_t> tensor_of_object_;  // by object index of tree_
  std::vector<bool> is_open_;  // by ValueId: whether a frame is inside it
  const uint64_t visit_budget_;
  uint64_t visit_count_ = 0;
  std::vector<Frame> frames_;
};

}  // namespace ckpt_streamer::format
