#include "ops/checkpoint_tensors.h"

#include <ATen/ATen.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string_view>
#include <tuple>
#include <utility>

#include "format/checkpoint_files.h"
#include "ops/composed_tensors.h"
#include "ops/file_memory.h"
#include "ops/node_values.h"
#include "ops/scalar_types.h"
#include "ops/strided_view.h"

namespace ckpt_streamer::ops {
namespace {

// The upper half of the addresses is the system's own, on all that have 64
// bits.
constexpr uint64_t kNowhere = uint64_t{1} << 63;

}  // namespace

CheckpointTensors::CheckpointTensors(
    const std::string& path,
    uint64_t memory_limit_bytes,
    Verify verify)
    : index_(format::read_checkpoint(path, files_)),
      pieces_(index_, memory_limit_bytes),
      live_storages_(std::make_shared<LiveStorages>(pieces_.count())),
      copied_bytes_(std::make_shared<ByteCount>(0)) {
  map_files(memory_limit_bytes, verify);
}

CheckpointTensors::CheckpointTensors(
    std::span<const std::string> paths,
    uint64_t memory_limit_bytes,
    Verify verify)
    : index_(format::read_checkpoint(paths, files_)),
      pieces_(index_, memory_limit_bytes),
      live_storages_(std::make_shared<LiveStorages>(pieces_.count())),
      copied_bytes_(std::make_shared<ByteCount>(0)) {
  map_files(memory_limit_bytes, verify);
}

void CheckpointTensors::map_files(uint64_t memory_limit_bytes, Verify verify) {
  files_.map(index_.files);
  if (verify == Verify::kOn) {
    verified_ =
        std::make_unique<VerifiedRecords>(index_, files_, memory_limit_bytes);
  }
}

CheckpointTensors::~CheckpointTensors() {
  // The storages that live on need no table.
  live_storages_->forget_all();
}

void CheckpointTensors::sort_in_file_order(std::vector<uint32_t>& slots) const {
  const auto begin_of = [this](uint32_t slot) {
    const uint32_t tensor_index = index_.slots[slot].tensor_index;
    const format::TensorRecord& tensor = index_.tensors[tensor_index];
    const ByteRange range = index_.file_range(tensor);
    using Begin = std::tuple<uint64_t, uint64_t, uint64_t>;
    if (range.empty()) {
      return Begin{0, 0, 0};
    }
    const uint64_t storage_begin =
        tensor.storage_index == format::kNoStorage
            ? range.begin
            : index_.storages[tensor.storage_index].file_range.begin;
    return Begin{index_.file_index(tensor_index), storage_begin, range.begin};
  };
  // As most files have them; begin_of() once for each, not twice.
  decltype(begin_of(0)) last{};
  const bool is_sorted =
      std::all_of(slots.begin(), slots.end(), [&](uint32_t slot) {
        const auto begin = begin_of(slot);
        return std::exchange(last, begin) <= begin;
      });
  if (!is_sorted) {
    std::stable_sort(
        slots.begin(),
        slots.end(),
        [&](uint32_t left, uint32_t right) {
          return begin_of(left) < begin_of(right);
        });
  }
}

uint64_t CheckpointTensors::mapping_begin(uint32_t tensor_index) const {
  return files_.mapping(index_.file_index(tensor_index))->addresses().begin;
}

ByteRange CheckpointTensors::span(uint32_t tensor_index) const {
  const format::TensorRecord& tensor = index_.tensors[tensor_index];
  if (tensor.storage_index != format::kNoStorage) {
    return span_of_view(tensor_index);
  }
  ByteRange mapped;
  ByteRange copied;
  for (const uint32_t part : index_.components(tensor)) {
    if (part == format::kNoTensor) {
      continue;
    }
    ByteRange& hull = pieces_.piece_of(part).is_copy ? copied : mapped;
    hull = hull_of(hull, span_of_view(part));
  }
  return mapped.empty() ? copied : mapped;
}

ByteRange CheckpointTensors::span_of_view(uint32_t tensor_index) const {
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
  if (verified_ != nullptr) {
    verified_->check(storage_index);
  }
  if (c10::Storage alive = live_storages_->find(piece.number)) {
    return alive;
  }
  const uint32_t file_index = index_.storages[storage_index].file_index;
  c10::DataPtr memory(nullptr, c10::kCPU);
  if (piece.is_copy && !piece.file_range.empty()) {
    memory = copy(files_.file(file_index), piece.file_range);
  } else if (!piece.file_range.empty()) {
    memory = file_memory(files_.mapping(file_index), piece.file_range.begin);
  }
  return live_storages_->add(
      piece.number,
      piece.file_range.size_bytes(),
      std::move(memory));
}

at::Tensor CheckpointTensors::tensor(uint32_t tensor_index) const {
  const format::TensorRecord& record = index_.tensors[tensor_index];
  at::Tensor tensor = without_grad(tensor_index);
  if (record.requires_grad) {
    tensor.set_requires_grad(true);
  }
  return tensor;
}

std::optional<ContiguousElements> CheckpointTensors::elements(
    uint32_t tensor_index) const {
  const format::TensorRecord& record = index_.tensors[tensor_index];
  if (record.kind != format::TensorKind::kStrided || record.is_conjugate ||
      record.is_negative) {
    return std::nullopt;
  }
  const std::span<const int64_t> sizes = index_.sizes(record);
  const std::span<const int64_t> strides = index_.strides(record);
  int64_t count = 1;
  for (size_t dim = sizes.size(); dim-- > 0;) {
    // Also in dimensions of one element: a copy keeps its strides.
    if (strides[dim] != count) {
      return std::nullopt;
    }
    count *= sizes[dim];
  }
  if (count == 0 || pieces_.is_copied(record.storage_index)) {
    return std::nullopt;
  }
  if (verified_ != nullptr) {
    verified_->check(record.storage_index);
  }
  const format::StorageRecord& storage = index_.storages[record.storage_index];
  return ContiguousElements{
      files_.mapping(storage.file_index)
          ->at(
              storage.file_range.begin +
              record.storage_offset_elements *
                  format::item_size_bytes(record.dtype)),
      scalar_type_of(record.dtype),
      sizes,
      count,
      record.requires_grad};
}

c10::IValue CheckpointTensors::value(format::NodeId node) const {
  const format::ValueTree& tree = index_.values;
  return tree.kind(node) == format::NodeKind::kTensor
             ? c10::IValue(tensor(tree.tensor_index(node)))
             : value_of(tree, node);
}

at::Tensor CheckpointTensors::without_grad(uint32_t tensor_index) const {
  const format::TensorRecord& record = index_.tensors[tensor_index];
  const auto part = [this](uint32_t part_index) {
    return part_index == format::kNoTensor ? at::Tensor()
                                           : view(part_index, {});
  };
  switch (record.kind) {
    case format::TensorKind::kStrided:
      return view(tensor_index, {});
    case format::TensorKind::kQuantized: {
      const auto& quantizer = index_.quantized[record.detail_index];
      return view(
          tensor_index,
          empty_quantized(
              quantizer,
              part(quantizer.scales),
              part(quantizer.zero_points),
              scalar_type_of(record.dtype)));
    }
    case format::TensorKind::kSparse: {
      const auto& sparse = index_.sparse[record.detail_index];
      return make_sparse(
          sparse,
          index_.sizes(record),
          part(sparse.indices),
          part(sparse.plain_indices),
          part(sparse.values),
          index_.files[index_.file_index(tensor_index)].path);
    }
    case format::TensorKind::kNested: {
      const auto& nested = index_.nested[record.detail_index];
      return make_nested(
          part(nested.buffer),
          part(nested.sizes),
          part(nested.strides),
          part(nested.offsets),
          index_.files[index_.file_index(tensor_index)].path);
    }
    case format::TensorKind::kMeta:
      return at::empty_strided(
          index_.sizes(record),
          index_.strides(record),
          at::TensorOptions()
              .dtype(scalar_type_of(record.dtype))
              .device(at::kMeta));
    case format::TensorKind::kArray: {
      const auto& array = index_.arrays[record.detail_index];
      const std::string_view bytes = index_.values.array(array.array).bytes;
      const at::Tensor copy = at::empty_strided(
          index_.sizes(record),
          index_.strides(record),
          at::TensorOptions().dtype(scalar_type_of(array.dtype)));
      if (!bytes.empty()) {
        std::memcpy(copy.mutable_data_ptr(), bytes.data(), bytes.size());
      }
      return copy.to(scalar_type_of(record.dtype));
    }
    case format::TensorKind::kUninitialized:
      return at::empty(
          {0},
          at::TensorOptions().dtype(scalar_type_of(record.dtype)));
  }
  TORCH_INTERNAL_ASSERT(false, "a TensorKind that is not made");
}

at::Tensor CheckpointTensors::view(uint32_t tensor_index, at::Tensor empty)
    const {
  const format::TensorRecord& record = index_.tensors[tensor_index];
  const format::MemoryPiece piece = pieces_.piece_of(tensor_index);
  // Elements in front of the piece are not in its storage.
  const uint64_t skipped_elements =
      (piece.file_range.begin -
       index_.storages[record.storage_index].file_range.begin) /
      format::item_size_bytes(record.dtype) *
      format::elements_per_item(record.dtype);
  const auto storage_offset =
      static_cast<int64_t>(record.storage_offset_elements - skipped_elements);
  at::Tensor tensor = std::move(empty);
  if (tensor.defined()) {
    tensor.set_(
        storage(record.storage_index, piece),
        storage_offset,
        index_.sizes(record),
        index_.strides(record));
  } else {
    tensor = strided_view(
        storage(record.storage_index, piece),
        scalar_type_of(record.dtype),
        storage_offset,
        index_.sizes(record),
        index_.strides(record));
  }
  if (record.is_conjugate) {
    tensor._set_conj(true);
  }
  if (record.is_negative) {
    tensor._set_neg(true);
  }
  return tensor;
}

}  // namespace ckpt_streamer::ops
