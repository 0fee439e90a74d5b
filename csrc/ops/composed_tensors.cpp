#include "ops/composed_tensors.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <optional>

#include "base/checked_math.h"
#include "base/error.h"

namespace ckpt_streamer::ops {
namespace {

at::Layout layout_of(format::SparseLayout layout) {
  switch (layout) {
    case format::SparseLayout::kCoo:
      return at::kSparse;
    case format::SparseLayout::kCsr:
      return at::kSparseCsr;
    case format::SparseLayout::kCsc:
      return at::kSparseCsc;
    case format::SparseLayout::kBsr:
      return at::kSparseBsr;
    case format::SparseLayout::kBsc:
      return at::kSparseBsc;
  }
  TORCH_INTERNAL_ASSERT(false, "a SparseLayout without a layout of torch");
}

// torch's checks of a tensor's parts, as an error of the file.
template <typename Make>
at::Tensor checked(
    const char* kind,
    const std::string& file_path,
    const Make& make) {
  try {
    return make();
  } catch (const c10::Error& error) {
    throw CheckpointError(
        ErrorKind::kCorrupt,
        file_path,
        std::string("has a ") + kind + " tensor that does not hold together (" +
            error.what_without_backtrace() + "), expected valid parts");
  }
}

// The element behind the last one of a tensor inside, in those of the storage;
// nullopt when it is nowhere.
std::optional<uint64_t> end_of_row(
    const int64_t* sizes,
    const int64_t* strides,
    int64_t offset,
    int64_t dim_count) {
  if (offset < 0) {
    return std::nullopt;
  }
  std::optional<uint64_t> end = static_cast<uint64_t>(offset) + 1;
  bool is_empty = false;
  for (int64_t dim = 0; dim < dim_count; ++dim) {
    if (sizes[dim] < 0 || strides[dim] < 0) {
      return std::nullopt;
    }
    is_empty = is_empty || sizes[dim] == 0;
    const auto reach = checked_mul(
        static_cast<uint64_t>(sizes[dim] == 0 ? 0 : sizes[dim] - 1),
        static_cast<uint64_t>(strides[dim]));
    end = reach.has_value() && end.has_value() ? checked_add(*end, *reach)
                                               : std::nullopt;
  }
  return is_empty ? std::optional<uint64_t>(0) : end;
}

}  // namespace

at::Tensor empty_quantized(
    const format::QuantizedRecord& record,
    const at::Tensor& scales,
    const at::Tensor& zero_points,
    at::ScalarType dtype) {
  const auto options = at::TensorOptions().dtype(dtype);
  if (!scales.defined()) {
    return at::_empty_affine_quantized(
        {0},
        options,
        record.scale,
        record.zero_point);
  }
  return at::_empty_per_channel_affine_quantized(
      {0},
      scales,
      zero_points,
      static_cast<int64_t>(record.axis),
      options);
}

at::Tensor make_sparse(
    const format::SparseRecord& record,
    at::IntArrayRef sizes,
    const at::Tensor& indices,
    const at::Tensor& plain_indices,
    const at::Tensor& values,
    const std::string& file_path) {
  const at::Layout layout = layout_of(record.layout);
  const auto options = values.options().layout(layout);
  return checked("sparse", file_path, [&] {
    // Whether it is pinned is of no interest, and the question would wake a
    // GPU.
    constexpr bool kChecksPinning = false;
    if (layout == at::kSparse) {
      at::_validate_sparse_coo_tensor_args(
          indices,
          values,
          sizes,
          record.is_coalesced,
          kChecksPinning);
      return at::_sparse_coo_tensor_unsafe(
          indices,
          values,
          sizes,
          options,
          record.is_coalesced);
    }
    at::_validate_sparse_compressed_tensor_args(
        indices,
        plain_indices,
        values,
        sizes,
        layout,
        kChecksPinning);
    return at::_sparse_compressed_tensor_unsafe(
        indices,
        plain_indices,
        values,
        sizes,
        options);
  });
}

at::Tensor make_nested(
    const at::Tensor& buffer,
    const at::Tensor& sizes,
    const at::Tensor& strides,
    const at::Tensor& offsets,
    const std::string& file_path) {
  const at::Tensor whole_sizes = sizes.contiguous();
  const at::Tensor whole_strides = strides.contiguous();
  const at::Tensor whole_offsets = offsets.contiguous();
  const auto storage_elements =
      buffer.storage().nbytes() / static_cast<uint64_t>(buffer.itemsize());
  const int64_t dim_count = sizes.dim() == 2 ? sizes.size(1) : 0;
  for (int64_t row = 0; row < offsets.numel(); ++row) {
    const auto end = end_of_row(
        whole_sizes.const_data_ptr<int64_t>() + row * dim_count,
        whole_strides.const_data_ptr<int64_t>() + row * dim_count,
        whole_offsets.const_data_ptr<int64_t>()[row],
        dim_count);
    if (!end.has_value() || *end > storage_elements) {
      throw CheckpointError(
          ErrorKind::kCorrupt,
          file_path,
          "has a nested tensor whose part " + std::to_string(row) +
              " is outside its buffer, expected it inside the " +
              std::to_string(storage_elements) + " elements");
    }
  }
  return checked("nested", file_path, [&] {
    return at::_nested_view_from_buffer(buffer, sizes, strides, offsets);
  });
}

}  // namespace ckpt_streamer::ops
