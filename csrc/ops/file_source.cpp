#include "ops/file_source.h"

#include <ATen/ATen.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <tuple>

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

FileSource::FileSource(const std::string& path)
    : index_(format::read_checkpoint(path, files_)),
      last_storage_(c10::intrusive_ptr<c10::StorageImpl>()) {
  prepare();
}

FileSource::FileSource(std::span<const std::string> paths)
    : index_(format::read_checkpoint(paths, files_)),
      last_storage_(c10::intrusive_ptr<c10::StorageImpl>()) {
  prepare();
}

void FileSource::prepare() {
  files_.map(index_.files);
  order_.resize(index_.slots.size());
  std::iota(order_.begin(), order_.end(), uint32_t{0});
  const auto begin_of = [this](uint32_t slot) {
    const format::TensorRecord& tensor =
        index_.tensors[index_.slots[slot].tensor_index];
    const ByteRange range = index_.file_range(tensor);
    // Tensors without bytes come first, in traversal order.
    using Begin = std::tuple<uint64_t, uint64_t, uint64_t>;
    if (range.empty()) {
      return Begin{0, 0, 0};
    }
    const format::StorageRecord& storage =
        index_.storages[tensor.storage_index];
    return Begin{storage.file_index, storage.file_range.begin, range.begin};
  };
  std::stable_sort(
      order_.begin(),
      order_.end(),
      [&](uint32_t left, uint32_t right) {
        return begin_of(left) < begin_of(right);
      });
}

std::vector<ByteRange> FileSource::spans() const {
  std::vector<ByteRange> result;
  result.reserve(order_.size());
  for (const uint32_t slot : order_) {
    const format::TensorRecord& tensor =
        index_.tensors[index_.slots[slot].tensor_index];
    const ByteRange range = index_.file_range(tensor);
    const uint64_t base =
        files_.mapping(index_.storages[tensor.storage_index].file_index)
            ->addresses()
            .begin;
    result.push_back(
        range.empty() ? ByteRange{}
                      : ByteRange{base + range.begin, base + range.end});
  }
  return result;
}

std::string FileSource::name(size_t index) const {
  return index_.slots[order_[index]].name;
}

c10::Storage FileSource::storage(const format::TensorRecord& tensor) {
  if (tensor.storage_index == last_storage_index_) {
    if (auto alive = last_storage_.lock()) {
      return c10::Storage(std::move(alive));
    }
  }
  const format::StorageRecord& record = index_.storages[tensor.storage_index];
  const ByteRange& range = record.file_range;
  const auto& mapping = files_.mapping(record.file_index);
  void* const address = mapping->at(range.begin);
  c10::DataPtr data;
  if (range.empty()) {
    data = c10::DataPtr(nullptr, c10::kCPU);
  } else if (
      reinterpret_cast<uint64_t>(address) % alignment_bytes(tensor.dtype) !=
      0) {
    data = c10::GetCPUAllocator()->allocate(range.size_bytes());
    std::memcpy(data.get(), address, range.size_bytes());
  } else {
    using Share = std::shared_ptr<const os::MappedFile>;
    data = c10::DataPtr(
        address,
        new Share(mapping),
        [](void* share) { delete static_cast<Share*>(share); },
        c10::kCPU);
  }
  auto made = c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(),
      range.size_bytes(),
      std::move(data),
      /*allocator=*/nullptr,
      /*resizable=*/false);
  last_storage_index_ = tensor.storage_index;
  last_storage_ = WeakStorage(made);
  return c10::Storage(std::move(made));
}

at::Tensor FileSource::tensor(size_t index) {
  const format::TensorRecord& record =
      index_.tensors[index_.slots[order_[index]].tensor_index];
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

void FileSource::check_readable() const {
  files_.check_unshrunk();
}

}  // namespace ckpt_streamer::ops
