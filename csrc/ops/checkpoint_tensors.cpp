#include "ops/checkpoint_tensors.h"

#include <ATen/ATen.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <cstddef>
#include <tuple>
#include <utility>

#include "format/checkpoint_files.h"
#include "ops/node_values.h"

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

// The upper half of the addresses is the system's own, on all that have 64
// bits.
constexpr uint64_t kNowhere = uint64_t{1} << 63;

}  // namespace

CheckpointTensors::CheckpointTensors(
    const std::string& path,
    uint64_t memory_limit_bytes)
    : index_(format::read_checkpoint(path, files_)),
      pieces_(index_, memory_limit_bytes),
      live_storages_(std::make_shared<LiveStorages>(pieces_.count())),
      copied_bytes_(std::make_shared<ByteCount>(0)) {
  files_.map(index_.files);
}

CheckpointTensors::CheckpointTensors(
    std::span<const std::string> paths,
    uint64_t memory_limit_bytes)
    : index_(format::read_checkpoint(paths, files_)),
      pieces_(index_, memory_limit_bytes),
      live_storages_(std::make_shared<LiveStorages>(pieces_.count())),
      copied_bytes_(std::make_shared<ByteCount>(0)) {
  files_.map(index_.files);
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

uint64_t CheckpointTensors::mapping_begin(uint32_t tensor_index) const {
  const uint32_t storage = index_.tensors[tensor_index].storage_index;
  return files_.mapping(index_.storages[storage].file_index)->addresses().begin;
}

ByteRange CheckpointTensors::span(uint32_t tensor_index) const {
  ByteRange range = index_.file_range(index_.tensors[tensor_index]);
  if (range.empty()) {
    return {};
  }
  uint64_t base = mapping_begin(tensor_index);
  const format::MemoryPiece piece = pieces_.piece_of(tensor_index);
  if (piece.is_copy) {
    range = piece.file_range;
    base += kNowhere;
  }
  return {base + range.begin, base + range.end};
}

uint64_t CheckpointTensors::source_address(uint32_t tensor_index) const {
  const ByteRange range = index_.file_range(index_.tensors[tensor_index]);
  return range.empty() ? 0 : mapping_begin(tensor_index) + range.begin;
}

c10::DataPtr CheckpointTensors::copy(
    const os::File& file,
    const ByteRange& range) const {
  struct Copy {
    c10::DataPtr memory;
    uint64_t size_bytes;
    std::shared_ptr<ByteCount> total_bytes;
  };
  auto copy = std::make_unique<Copy>(
      c10::GetCPUAllocator()->allocate(range.size_bytes()),
      range.size_bytes(),
      copied_bytes_);
  void* const address = copy->memory.get();
  // Read, not copied out of the mapping, whose pages would be resident too.
  file.read(
      range.begin,
      {static_cast<std::byte*>(address), range.size_bytes()});
  copied_bytes_->fetch_add(range.size_bytes(), std::memory_order_relaxed);
  return {
      address,
      copy.release(),
      [](void* context) {
        const std::unique_ptr<Copy> ended(static_cast<Copy*>(context));
        ended->total_bytes->fetch_sub(
            ended->size_bytes,
            std::memory_order_relaxed);
      },
      c10::kCPU};
}

c10::Storage CheckpointTensors::storage(
    uint32_t storage_index,
    const format::MemoryPiece& piece) const {
  if (c10::Storage alive = live_storages_->find(piece.number)) {
    return alive;
  }
  const uint32_t file_index = index_.storages[storage_index].file_index;
  c10::DataPtr memory(nullptr, c10::kCPU);
  if (piece.is_copy && !piece.file_range.empty()) {
    memory = copy(files_.file(file_index), piece.file_range);
  } else if (!piece.file_range.empty()) {
    using Share = std::shared_ptr<const os::MappedFile>;
    const Share& mapping = files_.mapping(file_index);
    memory = c10::DataPtr(
        mapping->at(piece.file_range.begin),
        new Share(mapping),
        [](void* share) { delete static_cast<Share*>(share); },
        c10::kCPU);
  }
  return live_storages_->add(
      piece.number,
      piece.file_range.size_bytes(),
      std::move(memory));
}

at::Tensor CheckpointTensors::tensor(uint32_t tensor_index) const {
  const format::TensorRecord& record = index_.tensors[tensor_index];
  const format::MemoryPiece piece = pieces_.piece_of(tensor_index);
  // Elements in front of the piece are not in its storage.
  const uint64_t skipped_elements =
      (piece.file_range.begin -
       index_.storages[record.storage_index].file_range.begin) /
      format::item_size_bytes(record.dtype);
  at::Tensor tensor =
      at::empty({0}, at::TensorOptions().dtype(scalar_type_of(record.dtype)));
  tensor.set_(
      storage(record.storage_index, piece),
      static_cast<int64_t>(record.storage_offset_elements - skipped_elements),
      index_.sizes(record),
      index_.strides(record));
  if (record.requires_grad) {
    tensor.set_requires_grad(true);
  }
  return tensor;
}

c10::IValue CheckpointTensors::value(format::NodeId node) const {
  const format::ValueTree& tree = index_.values;
  return tree.kind(node) == format::NodeKind::kTensor
             ? c10::IValue(tensor(tree.tensor_index(node)))
             : value_of(tree, node);
}

}  // namespace ckpt_streamer::ops
