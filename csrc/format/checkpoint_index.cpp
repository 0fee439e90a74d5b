#include "format/checkpoint_index.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <numeric>
#include <utility>

#include "base/checked_math.h"
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
    case DType::kInt1:
    case DType::kInt2:
    case DType::kInt3:
    case DType::kInt4:
    case DType::kInt5:
    case DType::kInt6:
    case DType::kInt7:
    case DType::kUInt1:
    case DType::kUInt2:
    case DType::kUInt3:
    case DType::kUInt4:
    case DType::kUInt5:
    case DType::kUInt6:
    case DType::kUInt7:
    case DType::kBits1x8:
    case DType::kBits2x4:
    case DType::kBits4x2:
    case DType::kBits8:
    case DType::kQInt8:
    case DType::kQUInt8:
    case DType::kQUInt4x2:
    case DType::kQUInt2x4:
      return 1;
    case DType::kUInt16:
    case DType::kInt16:
    case DType::kFloat16:
    case DType::kBFloat16:
    case DType::kBits16:
      return 2;
    case DType::kUInt32:
    case DType::kInt32:
    case DType::kFloat32:
    case DType::kComplex32:
    case DType::kQInt32:
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
    case DType::kInt1:
      return "int1";
    case DType::kInt2:
      return "int2";
    case DType::kInt3:
      return "int3";
    case DType::kInt4:
      return "int4";
    case DType::kInt5:
      return "int5";
    case DType::kInt6:
      return "int6";
    case DType::kInt7:
      return "int7";
    case DType::kUInt1:
      return "uint1";
    case DType::kUInt2:
      return "uint2";
    case DType::kUInt3:
      return "uint3";
    case DType::kUInt4:
      return "uint4";
    case DType::kUInt5:
      return "uint5";
    case DType::kUInt6:
      return "uint6";
    case DType::kUInt7:
      return "uint7";
    case DType::kBits1x8:
      return "bits1x8";
    case DType::kBits2x4:
      return "bits2x4";
    case DType::kBits4x2:
      return "bits4x2";
    case DType::kBits8:
      return "bits8";
    case DType::kBits16:
      return "bits16";
    case DType::kQInt8:
      return "qint8";
    case DType::kQUInt8:
      return "quint8";
    case DType::kQInt32:
      return "qint32";
    case DType::kQUInt4x2:
      return "quint4x2";
    case DType::kQUInt2x4:
      return "quint2x4";
  }
  return "";
}

uint64_t elements_per_item(DType dtype) noexcept {
  switch (dtype) {
    case DType::kQUInt4x2:
      return 2;
    case DType::kQUInt2x4:
      return 4;
    default:
      return 1;
  }
}

std::optional<uint64_t> end_byte_of_elements(
    DType dtype,
    uint64_t element_count) noexcept {
  const uint64_t per_item = elements_per_item(dtype);
  const uint64_t items =
      element_count / per_item + (element_count % per_item != 0 ? 1 : 0);
  return checked_mul(items, item_size_bytes(dtype));
}

bool is_quantized(DType dtype) noexcept {
  return dtype >= DType::kQInt8;
}

bool is_complex(DType dtype) noexcept {
  return dtype >= DType::kComplex32 && dtype <= DType::kComplex128;
}

bool may_require_grad(DType dtype) noexcept {
  return (dtype >= DType::kFloat16 && dtype <= DType::kComplex128) ||
         (dtype >= DType::kFloat8E4M3FN && dtype <= DType::kFloat4E2M1FNX2);
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

std::vector<uint32_t> CheckpointIndex::all_slots() const {
  std::vector<uint32_t> positions(slots.size());
  std::iota(positions.begin(), positions.end(), uint32_t{0});
  return positions;
}

void CheckpointIndex::share_dims(TensorRecord& tensor) {
  if (tensors.empty() || tensors.back().dim_count != tensor.dim_count) {
    return;
  }
  const auto first = dims.begin();
  const auto of_last =
      first + static_cast<ptrdiff_t>(tensors.back().dims_begin);
  const auto own = first + static_cast<ptrdiff_t>(tensor.dims_begin);
  if (std::equal(own, dims.end(), of_last)) {
    dims.erase(own, dims.end());
    tensor.dims_begin = tensors.back().dims_begin;
  }
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
  const auto first_tensor = static_cast<uint32_t>(tensors.size());
  for (auto* records : {&other.storages, &other.read_records}) {
    for (StorageRecord& record : *records) {
      record.file_index += first_file;
    }
  }
  for (FileRecord& file : other.files) {
    file.first_tensor += first_tensor;
  }
  for (TensorRecord& tensor : other.tensors) {
    tensor.dims_begin += dims.size();
    if (tensor.storage_index != kNoStorage) {
      tensor.storage_index += static_cast<uint32_t>(storages.size());
    }
    tensor.detail_index += static_cast<uint32_t>(details_of(tensor.kind));
  }
  const auto shift = [&](uint32_t& tensor) {
    tensor += tensor != kNoTensor ? first_tensor : 0;
  };
  for (QuantizedRecord& record : other.quantized) {
    shift(record.scales);
    shift(record.zero_points);
  }
  for (SparseRecord& record : other.sparse) {
    shift(record.indices);
    shift(record.plain_indices);
    shift(record.values);
  }
  for (NestedRecord& record : other.nested) {
    shift(record.buffer);
    shift(record.sizes);
    shift(record.strides);
    shift(record.offsets);
  }
  for (ArrayRecord& record : other.arrays) {
    record.array = values.add_copy(other.values, record.array);
  }
  for (size_t i = 0; i < other.slots.size(); ++i) {
    add_named_slot(
        other.slot_name(i),
        first_tensor + other.slots[i].tensor_index);
  }
  const auto move_behind = [](auto& to, auto& from) {
    std::move(from.begin(), from.end(), std::back_inserter(to));
  };
  move_behind(storages, other.storages);
  move_behind(read_records, other.read_records);
  move_behind(tensors, other.tensors);
  move_behind(quantized, other.quantized);
  move_behind(sparse, other.sparse);
  move_behind(nested, other.nested);
  move_behind(arrays, other.arrays);
  move_behind(dims, other.dims);
  move_behind(files, other.files);
}

size_t CheckpointIndex::details_of(TensorKind kind) const noexcept {
  switch (kind) {
    case TensorKind::kQuantized:
      return quantized.size();
    case TensorKind::kSparse:
      return sparse.size();
    case TensorKind::kNested:
      return nested.size();
    case TensorKind::kArray:
      return arrays.size();
    default:
      return 0;
  }
}

void CheckpointIndex::shrink_to_fit() {
  storages.shrink_to_fit();
  tensors.shrink_to_fit();
  quantized.shrink_to_fit();
  sparse.shrink_to_fit();
  nested.shrink_to_fit();
  arrays.shrink_to_fit();
  slots.shrink_to_fit();
  prefixes.shrink_to_fit();
  values.shrink_to_fit();
  dims.shrink_to_fit();
}

ByteRange CheckpointIndex::file_range(
    const TensorRecord& tensor) const noexcept {
  if (tensor.storage_index == kNoStorage) {
    ByteRange hull;
    for (const uint32_t component : components(tensor)) {
      if (component == kNoTensor) {
        continue;
      }
      hull = hull_of(hull, strided_range(tensors[component]));
    }
    return hull;
  }
  return strided_range(tensor);
}

uint32_t CheckpointIndex::file_index(uint32_t tensor_index) const noexcept {
  const uint32_t storage = tensors[tensor_index].storage_index;
  if (storage != kNoStorage) {
    return storages[storage].file_index;
  }
  const auto behind = std::upper_bound(
      files.begin(),
      files.end(),
      tensor_index,
      [](uint32_t wanted, const FileRecord& file) {
        return wanted < file.first_tensor;
      });
  // A reader of one file may leave its record to its caller.
  return behind == files.begin()
             ? 0
             : static_cast<uint32_t>(behind - files.begin()) - 1;
}

std::array<uint32_t, 4> CheckpointIndex::components(
    const TensorRecord& tensor) const noexcept {
  switch (tensor.kind) {
    case TensorKind::kSparse: {
      const SparseRecord& record = sparse[tensor.detail_index];
      return {record.indices, record.plain_indices, record.values, kNoTensor};
    }
    case TensorKind::kNested: {
      const NestedRecord& record = nested[tensor.detail_index];
      return {record.buffer, record.sizes, record.strides, record.offsets};
    }
    default:
      return {kNoTensor, kNoTensor, kNoTensor, kNoTensor};
  }
}

ByteRange CheckpointIndex::strided_range(
    const TensorRecord& tensor) const noexcept {
  const ByteRange& storage = storages[tensor.storage_index].file_range;
  const auto tensor_sizes = sizes(tensor);
  const auto tensor_strides = strides(tensor);
  uint64_t last_element = tensor.storage_offset_elements;
  for (size_t dim = 0; dim < tensor_sizes.size(); ++dim) {
    if (tensor_sizes[dim] == 0) {
      return {storage.begin, storage.begin};
    }
    last_element += static_cast<uint64_t>(tensor_sizes[dim] - 1) *
                    static_cast<uint64_t>(tensor_strides[dim]);
  }
  const uint64_t item_bytes = item_size_bytes(tensor.dtype);
  const uint64_t per_item = elements_per_item(tensor.dtype);
  return {
      storage.begin + tensor.storage_offset_elements / per_item * item_bytes,
      storage.begin + (last_element / per_item + 1) * item_bytes};
}

}  // namespace ckpt_streamer::format
