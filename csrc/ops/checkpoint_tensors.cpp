#include "ops/checkpoint_tensors.h"

#include <ATen/ATen.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <cstring>
#include <tuple>
#include <utility>

#include "format/checkpoint_files.h"

namespace ckpt_streamer::ops {
namespace {

at::ScalarType scalar_type_of(format::DType dtype) {
  using format::DType;
  switch (dtype) {
    case DType::kUInt8:
      return at::kByte;
    case DType::kInt8:
      return at::kChar;
    case DType::kUInt16:
      return at::kUInt16;
    case DType::kInt16:
      return at::kShort;
    case DType::kUInt32:
      return at::kUInt32;
    case DType::kInt32:
      return at::kInt;
    case DType::kUInt64:
      return at::kUInt64;
    case DType::kInt64:
      return at::kLong;
    case DType::kFloat16:
      return at::kHalf;
    case DType::kBFloat16:
      return at::kBFloat16;
    case DType::kFloat32:
      return at::kFloat;
    case DType::kFloat64:
      return at::kDouble;
    case DType::kComplex32:
      return at::kComplexHalf;
    case DType::kComplex64:
      return at::kComplexFloat;
    case DType::kComplex128:
      return at::kComplexDouble;
    case DType::kBool:
      return at::kBool;
    case DType::kFloat8E4M3FN:
      return at::kFloat8_e4m3fn;
    case DType::kFloat8E4M3FNUZ:
      return at::kFloat8_e4m3fnuz;
    case DType::kFloat8E5M2:
      return at::kFloat8_e5m2;
    case DType::kFloat8E5M2FNUZ:
      return at::kFloat8_e5m2fnuz;
    case DType::kFloat8E8M0FNU:
      return at::kFloat8_e8m0fnu;
    case DType::kFloat4E2M1FNX2:
      return at::kFloat4_e2m1fn_x2;
  }
  TORCH_INTERNAL_ASSERT(false, "a DType without a torch dtype");
}

// The alignment that a load of one element needs; complex numbers are two.
uint64_t alignment_bytes(format::DType dtype) {
  return std::min<uint64_t>(format::item_size_bytes(dtype), 8);
}

}  // namespace

CheckpointTensors::CheckpointTensors(const std::string& path)
    : index_(format::read_checkpoint(path, files_)),
      live_storages_(std::make_shared<LiveStorages>(index_.storages.size())) {
  files_.map(index_.files);
  find_misaligned();
}

CheckpointTensors::CheckpointTensors(std::span<const std::string> paths)
    : index_(format::read_checkpoint(paths, files_)),
      live_storages_(std::make_shared<LiveStorages>(index_.storages.size())) {
  files_.map(index_.files);
  find_misaligned();
}

// Mappings begin at pages, so offsets in the file tell.
void CheckpointTensors::find_misaligned() {
  for (const format::TensorRecord& tensor : index_.tensors) {
    const ByteRange& range = index_.storages[tensor.storage_index].file_range;
    if (range.begin % alignment_bytes(tensor.dtype) != 0) {
      is_misaligned_.resize(index_.storages.size());
      is_misaligned_[tensor.storage_index] = true;
    }
  }
}

CheckpointTensors::~CheckpointTensors() {
  // The storages that live on need no table.
  live_storages_->forget_all();
}

void CheckpointTensors::sort_in_file_order(std::vector<uint32_t>& slots) const {
  const auto begin_of = [this](uint32_t slot) {
    const format::TensorRecord& tensor =
        index_.tensors[index_.slots[slot].tensor_index];
    const ByteRange range = index_.file_range(tensor);
    using Begin = std::tuple<uint64_t, uint64_t, uint64_t>;
    if (range.empty()) {
      return Begin{0, 0, 0};
    }
    const format::StorageRecord& storage =
        index_.storages[tensor.storage_index];
    return Begin{storage.file_index, storage.file_range.begin, range.begin};
  };
  const auto is_before = [&](uint32_t left, uint32_t right) {
    return begin_of(left) < begin_of(right);
  };
  if (!std::is_sorted(slots.begin(), slots.end(), is_before)) {
    std::stable_sort(slots.begin(), slots.end(), is_before);
  }
}

ByteRange CheckpointTensors::span(uint32_t tensor_index) const {
  const format::TensorRecord& tensor = index_.tensors[tensor_index];
  const ByteRange range = index_.file_range(tensor);
  if (range.empty()) {
    return {};
  }
  const uint64_t base =
      files_.mapping(index_.storages[tensor.storage_index].file_index)
          ->addresses()
          .begin;
  return {base + range.begin, base + range.end};
}

c10::Storage CheckpointTensors::storage(
    const format::TensorRecord& tensor) const {
  if (c10::Storage alive = live_storages_->find(tensor.storage_index)) {
    return alive;
  }
  const format::StorageRecord& record = index_.storages[tensor.storage_index];
  const ByteRange& range = record.file_range;
  const auto& mapping = files_.mapping(record.file_index);
  void* const address = mapping->at(range.begin);
  c10::DataPtr memory;
  if (range.empty()) {
    memory = c10::DataPtr(nullptr, c10::kCPU);
  } else if (!is_misaligned_.empty() && is_misaligned_[tensor.storage_index]) {
    memory = c10::GetCPUAllocator()->allocate(range.size_bytes());
    std::memcpy(memory.get(), address, range.size_bytes());
  } else {
    using Share = std::shared_ptr<const os::MappedFile>;
    memory = c10::DataPtr(
        address,
        new Share(mapping),
        [](void* share) { delete static_cast<Share*>(share); },
        c10::kCPU);
  }
  return live_storages_->add(
      tensor.storage_index,
      range.size_bytes(),
      std::move(memory));
}

at::Tensor CheckpointTensors::tensor(uint32_t tensor_index) const {
  const format::TensorRecord& record = index_.tensors[tensor_index];
  at::Tensor tensor =
      at::empty({0}, at::TensorOptions().dtype(scalar_type_of(record.dtype)));
  tensor.set_(
      storage(record),
      static_cast<int64_t>(record.storage_offset_elements),
      index_.sizes(record),
      index_.strides(record));
  if (record.requires_grad) {
    tensor.set_requires_grad(true);
  }
  return tensor;
}

}  // namespace ckpt_streamer::ops
