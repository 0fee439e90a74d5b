// Telling the user, once a stream, that its limit could not be held.
#pragma once

#include <span>

#include "base/byte_range.h"
#include "stream/window_streamer.h"

namespace ckpt_streamer::ops {

// Warns (torch's warning, a UserWarning in Python) when clean pages could not
// be dropped and the limit was exceeded for it, or when a reader was so fast
// that the watcher let through more than it promises. Sets `warned`.
void warn_if_limit_not_held(const stream::StreamFigures& figures, bool& warned);

// Gives up the memory that is no longer known to be the streamed tensors', and
// warns if there is any.
void disown_moved(
    stream::WindowStreamer& streamer,
    std::span<const ByteRange> moved);

}  // namespace ckpt_streamer::ops
