#include "ops/limit_warning.h"

#include <c10/util/Exception.h>

#include "ops/stream_stats.h"

namespace ckpt_streamer::ops {

void warn_if_limit_not_held(
    const stream::StreamFigures& figures,
    bool& warned) {
  if (warned || figures.drop_error == 0 ||
      figures.peak_resident_bytes <= figures.memory_limit_bytes) {
    return;
  }
  warned = true;
  TORCH_WARN(
      "ckpt_streamer: ",
      not_held(figures),
      "; the memory limit of ",
      figures.memory_limit_bytes,
      " bytes is not held");
}

void disown_moved(
    stream::WindowStreamer& streamer,
    std::span<const ByteRange> moved) {
  for (const ByteRange& range : moved) {
    streamer.disown(range);
    TORCH_WARN(
        "ckpt_streamer: a tensor was given other memory in mid-stream, as "
        "share_memory_() does; the file pages of ",
        range.size_bytes(),
        " bytes of tensors that lay beside it are no longer bounded");
  }
}

}  // namespace ckpt_streamer::ops
