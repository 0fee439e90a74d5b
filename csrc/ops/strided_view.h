// Making dense tensors without the dispatcher.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/core/Storage.h>
#include <c10/util/ArrayRef.h>

#include <cstdint>

namespace ckpt_streamer::ops {

// A tensor of elements of `storage`, as Tensor.set_() makes one, at a tenth of
// its cost; not seen by modes.
// REQUIRES: the elements lie in the storage, which is CPU memory.
[[nodiscard]] at::Tensor strided_view(
    c10::Storage storage,
    at::ScalarType dtype,
    int64_t storage_offset,
    c10::IntArrayRef sizes,
    c10::IntArrayRef strides);

}  // namespace ckpt_streamer::ops
