// What a checkpoint file holds, as plain values: storages (where the bytes
// are), tensors (how they are viewed) and slots (under which names).
//
// Built by the format readers, consumed by stream/ and ops/. Holds no bytes of
// any tensor and no handle on the file. Safe to share between threads once
// built.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/byte_range.h"

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

// One place in the container tree. A tied tensor has one TensorRecord for each
// rebuild in the pickle and one slot for each (container, key).
struct Slot {
  std::string name;  // keys from the root joined by '.'; a bare tensor: ""
  uint32_t tensor_index = 0;
};

struct CheckpointIndex {
  std::vector<FileRecord> files;  // in the order of the stream
  // Of the index of shards through which the files were found; those of the
  // files themselves are with them.
  std::vector<MetadataEntry> metadata;
  std::vector<StorageRecord> storages;
  std::vector<TensorRecord> tensors;
  std::vector<Slot> slots;    // in traversal order
  std::vector<int64_t> dims;  // the sizes and strides of all tensors

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

  // Moves the files of another index, with all that is in them, behind those of
  // this one.
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
