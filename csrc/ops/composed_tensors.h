// Tensors that are made of others: quantized, sparse and nested ones. They
// share the memory of what they are made of.
//
// What their parts' data says (indices, offsets) comes from a file: it is
// checked here, so that no operator goes outside of the memory.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "format/checkpoint_index.h"

namespace ckpt_streamer::ops {

// A quantized tensor without elements, to be set to a storage. `scales` and
// `zero_points` are undefined when there is one of each.
[[nodiscard]] at::Tensor empty_quantized(
    const format::QuantizedRecord& record,
    const at::Tensor& scales,
    const at::Tensor& zero_points,
    at::ScalarType dtype);

// `plain_indices` is undefined for COO. `file_path` is for messages.
// THROWS: CheckpointError Corrupt when the parts do not fit each other. Cost:
// reads all indices.
[[nodiscard]] at::Tensor make_sparse(
    const format::SparseRecord& record,
    at::IntArrayRef sizes,
    const at::Tensor& indices,
    const at::Tensor& plain_indices,
    const at::Tensor& values,
    const std::string& file_path);

// THROWS: CheckpointError Corrupt when a tensor inside is not inside the
// buffer.
[[nodiscard]] at::Tensor make_nested(
    const at::Tensor& buffer,
    const at::Tensor& sizes,
    const at::Tensor& strides,
    const at::Tensor& offsets,
    const std::string& file_path);

}  // namespace ckpt_streamer::ops
