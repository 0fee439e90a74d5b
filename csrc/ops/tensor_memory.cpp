#include "ops/tensor_memory.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

namespace ckpt_streamer::ops {
namespace {

ByteRange storage_range(const at::Tensor& tensor) {
  const c10::TensorImpl* const impl = tensor.unsafeGetTensorImpl();
  if (!impl->has_storage()) {
    return {};
  }
  const c10::Storage& storage = impl->unsafe_storage();
  if (!storage || storage.device_type() != c10::DeviceType::CPU ||
      storage.unsafeGetStorageImpl()->sym_nbytes().is_symbolic()) {
    return {};
  }
  // The checked accessors throw for tensors that only pretend to have data and
  // copy a lazily cloned storage.
  const auto begin = reinterpret_cast<uint64_t>(
      storage.unsafeGetStorageImpl()->_mutable_data_ptr_no_checks().get());
  return begin == 0 ? ByteRange{} : ByteRange{begin, begin + storage.nbytes()};
}

// The addresses between the first and behind the last element.
ByteRange strided_span(const at::Tensor& tensor, const ByteRange& storage) {
  if (tensor.numel() == 0) {
    return {};
  }
  const auto item_size = static_cast<uint64_t>(tensor.element_size());
  const c10::IntArrayRef sizes = tensor.sizes();
  const c10::IntArrayRef strides = tensor.strides();
  uint64_t last_element = 0;
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    last_element += static_cast<uint64_t>(sizes[dim] - 1) *
                    static_cast<uint64_t>(strides[dim]);
  }
  const uint64_t begin =
      storage.begin +
      static_cast<uint64_t>(tensor.storage_offset()) * item_size;
  return intersect({begin, begin + (last_element + 1) * item_size}, storage);
}

template <typename T>
void fetch(const T* object) noexcept {
  constexpr size_t kCacheLineBytes = 64;
  if (object == nullptr) {
    return;
  }
  const auto* const bytes = reinterpret_cast<const char*>(object);
  for (size_t at = 0; at < sizeof(T); at += kCacheLineBytes) {
    __builtin_prefetch(bytes + at);
  }
  __builtin_prefetch(bytes + sizeof(T) - 1);
}

// A sparse tensor's components come from one file side by side: the range over
// all of them, if no more than a small gap lies between.
ByteRange sparse_span(const at::Tensor& tensor) {
  ByteRange hull;
  uint64_t component_bytes = 0;
  for (const at::Tensor& component : sparse_components(tensor)) {
    const ByteRange span = memory_of(component).span;
    if (span.empty()) {
      continue;
    }
    hull = hull_of(hull, span);
    component_bytes += span.size_bytes();
  }
  constexpr uint64_t kLargestGapBytes = 65536;
  return hull.size_bytes() <= component_bytes + kLargestGapBytes ? hull
                                                                 : ByteRange{};
}

}  // namespace

std::vector<at::Tensor> sparse_components(const at::Tensor& tensor) {
  switch (tensor.layout()) {
    case at::kSparse:
      return {tensor._indices(), tensor._values()};
    case at::kSparseCsr:
    case at::kSparseBsr:
      return {tensor.crow_indices(), tensor.col_indices(), tensor.values()};
    case at::kSparseCsc:
    case at::kSparseBsc:
      return {tensor.ccol_indices(), tensor.row_indices(), tensor.values()};
    default:
      return {};
  }
}

TensorMemory memory_of(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.device().is_cpu()) {
    return {};
  }
  if (tensor.layout() != at::kStrided) {
    return {0, sparse_span(tensor)};
  }
  const ByteRange storage = storage_range(tensor);
  if (storage.empty()) {
    return {};
  }
  if (tensor.is_nested() ||
      tensor.unsafeGetTensorImpl()->has_symbolic_sizes_strides()) {
    return {storage.begin, storage};
  }
  const ByteRange span = strided_span(tensor, storage);
  return span.empty() ? TensorMemory{} : TensorMemory{storage.begin, span};
}

// To refer to the tensor, its first cache line was read; it says which storage.
void fetch_objects_of(const at::Tensor& tensor) noexcept {
  const c10::TensorImpl* const impl = tensor.unsafeGetTensorImpl();
  fetch(impl);
  fetch(impl->unsafe_storage().unsafeGetStorageImpl());
}

std::vector<size_t> stream_order(std::span<const TensorMemory> memory) {
  std::vector<size_t> order(memory.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const auto is_before = [&](size_t left, size_t right) {
    const TensorMemory& a = memory[left];
    const TensorMemory& b = memory[right];
    if (a.storage_begin != b.storage_begin) {
      return a.storage_begin < b.storage_begin;
    }
    // Without memory here, traversal order alone counts.
    return a.storage_begin != 0 && a.span.begin < b.span.begin;
  };
  if (!std::is_sorted(order.begin(), order.end(), is_before)) {
    std::stable_sort(order.begin(), order.end(), is_before);
  }
  return order;
}

}  // namespace ckpt_streamer::ops
