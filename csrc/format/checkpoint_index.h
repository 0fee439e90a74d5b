// What a checkpoint file holds, as plain values: storages (where the bytes
// are), tensors (how they are viewed), slots (under which names) and the tree
// of values that they stand in.
//
// Built by the format readers, consumed by stream/ and ops/. Holds no bytes of
// any tensor and no handle on the file. Safe to share between threads once
// built.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/byte_range.h"
#include "format/value_tree.h"

namespace ckpt_streamer::format {

// The element types of torch 2.13 that a checkpoint can name. The order is
// ours; ops/ maps it to torch's own numbers.
enum class DType : uint8_t {
  kUInt8,
  kInt8,
  kUInt16,
  kInt16,
  kUInt32,
  kInt32,
  kUInt64,
  kInt64,
  kFloat16,
  kBFloat16,
  kFloat32,
  kFloat64,
  kComplex32,
  kComplex64,
  kComplex128,
  kBool,
  kFloat8E4M3FN,
  kFloat8E4M3FNUZ,
  kFloat8E5M2,
  kFloat8E5M2FNUZ,
  kFloat8E8M0FNU,
  kFloat4E2M1FNX2,  // two numbers in a byte, which is one element
};

[[nodiscard]] uint64_t item_size_bytes(DType dtype) noexcept;

// torch's name without the module: "float32", "bfloat16", "float8_e4m3fn".
[[nodiscard]] const char* dtype_name(DType dtype) noexcept;

// A text that the file keeps beside its tensors.
struct MetadataEntry {
  std::string name;
  std::string value;
};

// One file of the checkpoint.
struct FileRecord {
  std::string path;                     // as it was opened
  std::vector<MetadataEntry> metadata;  // in the order of the file
};

// One run of bytes of a file; every tensor cut from it shares it in memory.
struct StorageRecord {
  // The record's name in the file, "archive/data/0"; empty where runs of bytes
  // have none of their own (safetensors).
  std::string name;
  ByteRange file_range;     // absolute; [begin, end) lies inside the file
  uint32_t file_index = 0;  // in CheckpointIndex::files
};

inline constexpr uint32_t kNoStorage = 0xFFFFFFFF;
inline constexpr uint32_t kNoTensor = 0xFFFFFFFF;

// A strided view of one storage. Sizes and strides are in elements and live
// in CheckpointIndex::dims: sizes first, then as many strides.
struct TensorRecord {
  uint32_t storage_index = 0;
  DType dtype = DType::kFloat32;
  bool requires_grad = false;
  uint64_t storage_offset_elements = 0;
  uint64_t dims_begin = 0;
  uint32_t dim_count = 0;
};

inline constexpr uint32_t kNoPrefix = 0xFFFFFFFF;

// A container's name: its own part, a node of CheckpointIndex::values, behind
// that of another one in CheckpointIndex::prefixes.
struct NamePrefix {
  uint32_t parent = kNoPrefix;
  NodeId key = kNoNode;
};

// One place that holds a tensor. A tied tensor has one TensorRecord for each
// rebuild in the pickle and one slot for each place.
struct Slot {
  // The dict, list, tuple, set or object of CheckpointIndex::values that holds
  // it, and under which key: the key's own node, or an int for a position in a
  // list, tuple, set, or an object's items. A tensor that is an object's whole
  // state has no key; the root, and what is itself a key, neither.
  NodeId container = kNoNode;
  NodeId key = kNoNode;
  uint32_t prefix = kNoPrefix;  // in CheckpointIndex::prefixes
  uint32_t tensor_index = 0;
};

struct CheckpointIndex {
  std::vector<FileRecord> files;  // in the order of the stream
  // Of the index of shards through which the files were found; those of the
  // files themselves are with them.
  std::vector<MetadataEntry> metadata;
  std::vector<StorageRecord> storages;
  std::vector<TensorRecord> tensors;
  std::vector<Slot> slots;           // in traversal order
  std::vector<NamePrefix> prefixes;  // of the slots' containers
  std::vector<int64_t> dims;         // the sizes and strides of all tensors
  // Of one file, its values; of several, or one without values beside tensors
  // (safetensors, TorchScript), a dict of the slots' names to their tensors.
  ValueTree values;

  [[nodiscard]] std::span<const int64_t> sizes(
      const TensorRecord& tensor) const noexcept {
    return {dims.data() + tensor.dims_begin, tensor.dim_count};
  }
  [[nodiscard]] std::span<const int64_t> strides(
      const TensorRecord& tensor) const noexcept {
    return {
        dims.data() + tensor.dims_begin + tensor.dim_count,
        tensor.dim_count};
  }

  // Keys from the root joined by '.'; of a bare tensor: "".
  // REQUIRES: slot_index < slots.size(). Cost: O(name).
  [[nodiscard]] std::string slot_name(size_t slot_index) const;

  // Appends a slot to `values` as a dict of names to tensors.
  // REQUIRES: all slots were added so.
  void add_named_slot(std::string_view name, uint32_t tensor_index);

  // Moves the files of another index, with their tensors, behind those of this
  // one. Of its values only the tensors come along, under their slots' names.
  // REQUIRES: all slots of this one were added by this or by add_named_slot.
  // THROWS: CheckpointError Unsupported when numbers no longer fit 32 bits.
  void append(CheckpointIndex&& other);

  // Gives back what the vectors reserved; readers call it at their end.
  void shrink_to_fit();

  // The bytes of the file that the tensor's elements span, gaps included; empty
  // for a tensor without elements.
  // REQUIRES: the index was validated by its reader.
  [[nodiscard]] ByteRange file_range(const TensorRecord& tensor) const noexcept;
};

}  // namespace ckpt_streamer::format
