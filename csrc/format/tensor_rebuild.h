// From the calls that rebuild tensors in a pickle to records of the index.
//
// What the calls mean is taken from torch 2.13: _utils.py (_rebuild_*),
// _tensor.py and nn/parameter.py.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "format/checkpoint_index.h"
#include "format/pickle_context.h"
#include "format/pickle_storages.h"

namespace ckpt_streamer::format {

class TensorRebuilder {
 public:
  // REQUIRES: all outlive this.
  TensorRebuilder(
      const PickleContext& context,
      StorageLookup& lookup,
      CheckpointIndex& index);

  // Whether a call of this makes a tensor.
  [[nodiscard]] static bool makes_tensor(GlobalRole role) noexcept;

  // The tensor that the object is; appended to the index the first time.
  // REQUIRES: an object whose callable makes_tensor().
  // THROWS: CheckpointError, in the name of the tensor at context.path().
  uint32_t tensor_of(ValueId object_id);

  // A storage by itself, as a tensor of one dimension.
  // REQUIRES: a persistent value that is asked for once.
  // THROWS: as above.
  uint32_t tensor_of_storage(ValueId id);

 private:
  // What a rebuild says about a tensor, before it is checked.
  struct Rebuild {
    ValueId storage = kNoValue;
    ValueId storage_offset = kNoValue;
    ValueId sizes = kNoValue;
    ValueId strides = kNoValue;
    ValueId requires_grad = kNoValue;
    ValueId dtype = kNoValue;     // v3 only
    ValueId metadata = kNoValue;  // when there is one
    uint64_t file_offset = 0;
  };

  Rebuild unpack_rebuild(ValueId object_id, uint64_t file_offset);
  void check_metadata(const Rebuild& rebuild);
  bool read_requires_grad(ValueId id, uint64_t file_offset);
  std::span<const ValueId> read_dims(
      ValueId id,
      const char* what,
      uint64_t file_offset);
  void check_bounds(
      const TensorRecord& tensor,
      const ByteRange& storage_part,
      uint64_t file_offset);
  void move_into_part(
      TensorRecord& tensor,
      const ByteRange& storage_part,
      uint64_t file_offset);

  const PickleContext& context_;
  const PickleTree& tree_;
  CheckpointIndex& index_;
  PickleStorages storages_;
  std::vector<uint32_t> tensor_of_object_;  // by object index of tree_
};

}  // namespace ckpt_streamer::format
