#include "format/checkpoint_index.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <utility>

#include "base/error.h"
#include "format/value_text.h"

namespace ckpt_streamer::format {

uint64_t item_size_bytes(DType dtype) noexcept {
  switch (dtype) {
    case DType::kUInt8:
    case DType::kInt8:
    case DType::kBool:
    case DType::kFloat8E4M3FN:
    case DType::kFloat8E4M3FNUZ:
    case DType::kFloat8E5M2:
    case DType::kFloat8E5M2FNUZ:
    case DType::kFloat8E8M0FNU:
    case DType::kFloat4E2M1FNX2:
      return 1;
    case DType::kUInt16:
    case DType::kInt16:
    case DType::kFloat16:
    case DType::kBFloat16:
      return 2;
    case DType::kUInt32:
    case DType::kInt32:
    case DType::kFloat32:
    case DType::kComplex32:
      return 4;
    case DType::kUInt64:
    case DType::kInt64:
    case DType::kFloat64:
    case DType::kComplex64:
      return 8;
    case DType::kComplex128:
      return 16;
  }
  return 0;
}

const char* dtype_name(DType dtype) noexcept {
  switch (dtype) {
    case DType::kUInt8:
      return "uint8";
    case DType::kInt8:
      return "int8";
    case DType::kUInt16:
      return "uint16";
    case DType::kInt16:
      return "int16";
    case DType::kUInt32:
      return "uint32";
    case DType::kInt32:
      return "int32";
    case DType::kUInt64:
      return "uint64";
    case DType::kInt64:
      return "int64";
    case DType::kFloat16:
      return "float16";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kFloat32:
      return "float32";
    case DType::kFloat64:
      return "float64";
    case DType::kComplex32:
      return "complex32";
    case DType::kComplex64:
      return "complex64";
    case DType::kComplex128:
      return "complex128";
    case DType::kBool:
      return "bool";
    case DType::kFloat8E4M3FN:
      return "float8_e4m3fn";
    case DType::kFloat8E4M3FNUZ:
      return "float8_e4m3fnuz";
    case DType::kFloat8E5M2:
      return "float8_e5m2";
    case DType::kFloat8E5M2FNUZ:
      return "float8_e5m2fnuz";
    case DType::kFloat8E8M0FNU:
      return "float8_e8m0fnu";
    case DType::kFloat4E2M1FNX2:
      return "float4_e2m1fn_x2";
  }
  return "";
}

std::string CheckpointIndex::slot_name(size_t slot_index) const {
  const Slot& slot = slots[slot_index];
  if (slot.prefix == kNoPrefix) {
    return slot.key == kNoNode ? "" : key_text(values, slot.key);
  }
  std::vector<NodeId> keys;  // from the slot up
  if (slot.key != kNoNode) {
    keys.push_back(slot.key);
  }
  for (uint32_t i = slot.prefix; i != kNoPrefix; i = prefixes[i].parent) {
    keys.push_back(prefixes[i].key);
  }
  std::string name;
  for (size_t i = keys.size(); i-- > 0;) {
    name += key_text(values, keys[i]);
    name += i > 0 ? "." : "";
  }
  return name;
}

void CheckpointIndex::add_named_slot(
    std::string_view name,
    uint32_t tensor_index) {
  const NodeId key = values.add_flat_entry(name, tensor_index);
  slots.push_back({values.root(), key, kNoPrefix, tensor_index});
}

void CheckpointIndex::append(CheckpointIndex&& other) {
  const auto fits = [](size_t left, size_t right) {
    return left + right < std::numeric_limits<uint32_t>::max();
  };
  if (!fits(storages.size(), other.storages.size()) ||
      !fits(tensors.size(), other.tensors.size())) {
    throw CheckpointError(
        ErrorKind::kUnsupported,
        other.files.front().path,
        "brings the checkpoint to 2^32 tensors or storages, expected fewer");
  }
  const auto first_file = static_cast<uint32_t>(files.size());
  const auto first_storage = static_cast<uint32_t>(storages.size());
  const auto first_tensor = static_cast<uint32_t>(tensors.size());
  const uint64_t first_dim = dims.size();
  for (StorageRecord& storage : other.storages) {
    storage.file_index += first_file;
    storages.push_back(std::move(storage));
  }
  for (TensorRecord& tensor : other.tensors) {
    tensor.storage_index += first_storage;
    tensor.dims_begin += first_dim;
    tensors.push_back(tensor);
  }
  for (size_t i = 0; i < other.slots.size(); ++i) {
    add_named_slot(
        other.slot_name(i),
        first_tensor + other.slots[i].tensor_index);
  }
  dims.insert(dims.end(), other.dims.begin(), other.dims.end());
  std::move(other.files.begin(), other.files.end(), std::back_inserter(files));
}

void CheckpointIndex::shrink_to_fit() {
  storages.shrink_to_fit();
  tensors.shrink_to_fit();
  slots.shrink_to_fit();
  prefixes.shrink_to_fit();
  values.shrink_to_fit();
  dims.shrink_to_fit();
}

ByteRange CheckpointIndex::file_range(
    const TensorRecord& tensor) const noexcept {
  const ByteRange& storage = storages[tensor.storage_index].file_range;
  const auto tensor_sizes = sizes(tensor);
  const auto tensor_strides = strides(tensor);
  uint64_t span_elements = 1;
  for (size_t dim = 0; dim < tensor_sizes.size(); ++dim) {
    if (tensor_sizes[dim] == 0) {
      return {storage.begin, storage.begin};
    }
    span_elements += static_cast<uint64_t>(tensor_sizes[dim] - 1) *
                     static_cast<uint64_t>(tensor_strides[dim]);
  }
  const uint64_t item_bytes = item_size_bytes(tensor.dtype);
  const uint64_t begin =
      storage.begin + tensor.storage_offset_elements * item_bytes;
  return {begin, begin + span_elements * item_bytes};
}

}  // namespace ckpt_streamer::format
