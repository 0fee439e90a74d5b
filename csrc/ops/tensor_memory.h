// Where a tensor's elements lie in this process, and the order of a stream.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/byte_range.h"

namespace ckpt_streamer::ops {

struct TensorMemory {
  // The address of its storage's first byte; 0 for a tensor without memory
  // here: empty, meta, on another device, sparse, or a subclass that wraps
  // others.
  uint64_t storage_begin = 0;
  // The addresses that its elements span. For a sparse tensor, those of its
  // indices and values.
  ByteRange span;
};

// A tensor, and where its elements come from (see TensorSource).
struct PlacedTensor {
  at::Tensor tensor;
  uint64_t source_address = 0;
};

// The elements of a contiguous tensor, to be read without making it.
struct ContiguousElements {
  const void* begin = nullptr;
  at::ScalarType dtype = at::kFloat;
  c10::IntArrayRef sizes;
  int64_t count = 0;
  bool requires_grad = false;
};

// Whether a microsecond no longer shows beside what a pass over the elements
// takes.
[[nodiscard]] inline bool is_large(int64_t count, at::ScalarType dtype) {
  constexpr int64_t kLeastBytes = int64_t{1} << 20;
  return count >= kLeastBytes / static_cast<int64_t>(c10::elementSize(dtype));
}

// Reads addresses only: no element is touched, a lazily cloned storage is not
// materialised.
[[nodiscard]] TensorMemory memory_of(const at::Tensor& tensor);

// Has the objects that memory_of() reads for the tensor fetched into the
// processor's cache meanwhile: of many tensors, it has few.
void fetch_objects_of(const at::Tensor& tensor) noexcept;

// The dense tensors that hold a sparse tensor's memory; none for other layouts.
[[nodiscard]] std::vector<at::Tensor> sparse_components(
    const at::Tensor& tensor);

// The order of a stream, as indices into `memory`: ascending address of the
// storage's first byte, then of the tensor's, then as given; tensors without
// memory here first.
[[nodiscard]] std::vector<size_t> stream_order(
    std::span<const TensorMemory> memory);

}  // namespace ckpt_streamer::ops
