// Copying a tensor whose memory is larger than a memory limit.
#pragma once

#include <ATen/core/Tensor.h>

#include "stream/window_streamer.h"

namespace ckpt_streamer::ops {

// Whether the tensor is dense CPU memory and nothing else: not sparse, not
// quantized, no subclass, no lazy conjugation or negation. Whether it requires
// grad does not matter.
[[nodiscard]] bool is_plain(const at::Tensor& tensor);

// destination.copy_(source), bit for bit, piece by piece in the order of the
// source's memory: each piece is made live in `streamer` before it is read, and
// nothing is live in the end. So the source's clean pages hold the streamer's
// limit, however large it is; no other memory is used. Knows nothing of
// autograd: the version stays.
//
// REQUIRES: is_plain() both, of equal sizes, without memory in common; the
// elements of `destination` do not overlap; the source lies in a span of
// `streamer`.
void copy_in_pieces(
    const at::Tensor& destination,
    const at::Tensor& source,
    stream::WindowStreamer& streamer);

}  // namespace ckpt_streamer::ops
