#include "ops/limit_warning.h"

#include <c10/util/Exception.h>

#include <algorithm>

#include "ops/stream_stats.h"

namespace ckpt_streamer::ops {
namespace {

// Behind readers that we do not control, what is promised is not the limit:
// limit + 8 MiB for one thread, and for all processors the limit, or 96 MiB if
// that is more, and a twentieth.
bool is_watched_well(const stream::StreamFigures& figures) {
  constexpr uint64_t kMiB = uint64_t{1} << 20;
  const uint64_t limit_bytes = figures.memory_limit_bytes;
  const uint64_t for_all = std::max(limit_bytes, 96 * kMiB);
  return figures.peak_watched_bytes <=
         std::max(limit_bytes + 8 * kMiB, for_all + for_all / 20);
}

}  // namespace

void warn_if_limit_not_held(
    const stream::StreamFigures& figures,
    bool& warned) {
  const bool is_held =
      figures.drop_error == 0 ||
      figures.peak_resident_bytes <= figures.memory_limit_bytes;
  if (warned || (is_held && is_watched_well(figures))) {
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
