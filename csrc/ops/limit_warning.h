// Telling the user, once a stream, that its limit could not be held.
#pragma once

#include "stream/window_streamer.h"

namespace ckpt_streamer::ops {

// Warns (torch's warning, a UserWarning in Python) when clean pages could not
// be dropped and the limit was exceeded for it. Sets `warned`.
void warn_if_limit_not_held(const stream::StreamFigures& figures, bool& warned);

}  // namespace ckpt_streamer::ops
