// Tensors and parts of them that are read out of the order of a stream.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "ops/conversion.h"
#include "ops/tensor_memory.h"
#include "stream/window_streamer.h"

namespace ckpt_streamer::ops {

// whole.tensor[begin:end], a view that is a leaf as the tensor is. `name` is
// for messages. THROWS: c10::ValueError for a tensor without dimensions,
// c10::IndexError unless 0 <= begin <= end <= the size of the first.
[[nodiscard]] PlacedTensor slice_of(
    const PlacedTensor& whole,
    const std::string& name,
    int64_t begin,
    int64_t end);

// Makes a part of a tensor live and returns it, or what `conversion` makes of
// it. What was live goes if need be.
// REQUIRES: the tensor's span is the one at `index` in `streamer`.
[[nodiscard]] at::Tensor read_part(
    stream::WindowStreamer& streamer,
    size_t index,
    const PlacedTensor& whole,
    const PlacedTensor& part,
    Conversion& conversion);

}  // namespace ckpt_streamer::ops
