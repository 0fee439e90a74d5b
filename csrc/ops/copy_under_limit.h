// torch.ops.ckpt_streamer.copy_: Tensor.copy_ from a file within a memory
// limit.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "stream/bounds.h"

namespace ckpt_streamer::ops {

// destination.copy_(source) in every respect: bits, broadcasting, version,
// autograd, errors. Returns `destination`.
//
// A source of pages larger than the limit in a private file mapping is read in
// pieces, and its clean pages are dropped behind: no more than
// `memory_limit_bytes` of them are resident at any instant, and none in the
// end. No other memory is used. A source that fits is copied as it is, and its
// pages stay, for the stream that yielded it to drop. Where copy_ would be
// recorded (autograd), seen by a mode or handled by a subclass, it is called as
// it is.
//
// With drop_page_cache, pages that are dropped go from the kernel's cache too.
//
// THROWS: c10::ValueError unless the limit is positive; whatever copy_ throws;
// c10::Error when the process's mappings cannot be read. Warns if the limit
// could not be held.
at::Tensor& copy_(
    at::Tensor& destination,
    const at::Tensor& source,
    int64_t memory_limit_bytes,
    bool drop_page_cache);

// The same within bounds that are checked already.
at::Tensor& copy_within(
    at::Tensor& destination,
    const at::Tensor& source,
    const stream::Bounds& bounds);

}  // namespace ckpt_streamer::ops
