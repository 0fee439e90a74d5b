// From the calls that rebuild tensors in a pickle to records of the index.
//
// What the calls mean is taken from torch 2.13: _utils.py (_rebuild_*),
// _tensor.py, nn/parameter.py and, for TorchScript,
// csrc/jit/serialization/unpickler.cpp.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "format/checkpoint_index.h"
#include "format/pickle_context.h"
#include "format/pickle_storages.h"

namespace ckpt_streamer::format {

// The arrays of numpy in a pickle, in which some devices' tensors are kept.
class ArraySource {
 public:
  ArraySource() = default;
  ArraySource(const ArraySource&) = delete;
  ArraySource& operator=(const ArraySource&) = delete;
  virtual ~ArraySource() = default;

  // Its node in the index's values; kNoNode for what is no array that is read.
  virtual NodeId array_of(ValueId id) = 0;
};

// A tensor and what is pickled onto it.
struct RebuiltTensor {
  uint32_t tensor_index = kNoTensor;
  ValueId type = kNoValue;   // of a subclass: a global
  ValueId state = kNoValue;  // attributes, if it has any
  // Of the data of a parameter, beside its own.
  ValueId data_state = kNoValue;
};

class TensorRebuilder {
 public:
  // REQUIRES: all outlive this. `arrays` may be null: then there are none.
  TensorRebuilder(
      const PickleContext& context,
      StorageLookup& lookup,
      ArraySource* arrays,
      CheckpointIndex& index);

  // Whether the object is a tensor. Subclasses that wrap other tensors
  // (_rebuild_wrapper_subclass) have no data and are objects like all others;
  // so are parameters of such.
  // REQUIRES: an object.
  [[nodiscard]] bool is_tensor(ValueId object_id) const;

  // Appends it to the index.
  // REQUIRES: is_tensor(object_id).
  // THROWS: CheckpointError, in the name of the tensor at context.path().
  RebuiltTensor rebuild(ValueId object_id);

  // A storage by itself, as a tensor of one dimension.
  // REQUIRES: a persistent value.
  // THROWS: as above.
  uint32_t rebuild_storage(ValueId id);

 private:
  // ATen's dim_bitset_size: what most operators of torch take.
  static constexpr size_t kLargestDimCount = 64;

  // A call that makes a tensor; _rebuild_from_type_v2 makes one from the
  // inside.
  struct Call {
    GlobalRole role = GlobalRole::kOther;
    ValueId callable = kNoValue;
    std::span<const ValueId> args;
    uint64_t file_offset = 0;
  };

  [[nodiscard]] Call call_of(ValueId object_id) const;
  // The call itself, or what it hands to _rebuild_from_type; kOther when that
  // is no tensor.
  [[nodiscard]] Call unwrapped(const Call& call) const;
  uint32_t index_of(ValueId object_id);
  TensorRecord record_of(const Call& call);

  TensorRecord strided(const Call& call);
  TensorRecord quantized(const Call& call);
  TensorRecord sparse(const Call& call);
  TensorRecord nested(const Call& call);
  TensorRecord meta(const Call& call);
  TensorRecord from_array(const Call& call);
  TensorRecord uninitialized(const Call& call);

  // Parts of calls.
  void expect_args(const Call& call, size_t fewest, size_t most) const;
  void read_view(const Call& call, TensorRecord& tensor);
  void read_metadata(const Call& call, ValueId id, TensorRecord& tensor) const;
  QuantizedRecord read_quantizer(const Call& call, const TensorRecord& tensor);
  SparseLayout read_layout(const Call& call) const;
  // A strided tensor that is part of another: `what` is the noun for it.
  uint32_t component(const Call& call, ValueId id, const char* what);
  void expect_integers(const Call& call, uint32_t tensor, const char* what)
      const;
  [[nodiscard]] bool read_bool(const Call& call, ValueId id, const char* what)
      const;
  [[nodiscard]] DType read_dtype(const Call& call, ValueId id) const;
  std::span<const ValueId> read_dims(
      const Call& call,
      ValueId id,
      const char* what) const;
  void add_dims(
      const Call& call,
      ValueId sizes,
      ValueId strides,
      TensorRecord& tensor);
  void check_sizes(const Call& call, const TensorRecord& tensor) const;
  void check_bounds(
      const Call& call,
      const TensorRecord& tensor,
      const StoragePart& storage) const;
  void move_into_part(
      const Call& call,
      TensorRecord& tensor,
      const ByteRange& storage_part) const;
  void check_requires_grad(const Call& call, const TensorRecord& tensor) const;

  [[noreturn]] void fail(
      ErrorKind kind,
      const Call& call,
      const std::string& what) const {
    context_.fail_tensor(kind, what, call.file_offset);
  }

  const PickleContext& context_;
  const PickleTree& tree_;
  CheckpointIndex& index_;
  ArraySource* const arrays_;
  PickleStorages storages_;
  std::vector<uint32_t> tensor_of_object_;  // by object index of tree_
};

}  // namespace ckpt_streamer::format
