#include "ops/partial_reads.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <utility>

#include "stream/own_reads.h"

namespace ckpt_streamer::ops {

PlacedTensor slice_of(
    const PlacedTensor& whole,
    const std::string& name,
    int64_t begin,
    int64_t end) {
  TORCH_CHECK_VALUE(
      whole.tensor.dim() > 0,
      "the tensor '",
      name,
      "' has no dimensions, expected at least one to slice along");
  TORCH_CHECK_INDEX(
      0 <= begin && begin <= end && end <= whole.tensor.size(0),
      "slice [",
      begin,
      ", ",
      end,
      ") of the tensor '",
      name,
      "', expected one within [0, ",
      whole.tensor.size(0),
      ")");
  // A leaf, as the tensor is.
  at::Tensor part = whole.tensor.detach().slice(0, begin, end);
  part.set_requires_grad(whole.tensor.requires_grad());
  const ByteRange span = memory_of(part).span;
  const uint64_t offset_bytes =
      span.empty() ? 0 : span.begin - memory_of(whole.tensor).span.begin;
  return {std::move(part), whole.source_address + offset_bytes};
}

at::Tensor read_part(
    stream::WindowStreamer& streamer,
    size_t index,
    const PlacedTensor& whole,
    const PlacedTensor& part,
    Conversion& conversion) {
  const ByteRange whole_span = memory_of(whole.tensor).span;
  const ByteRange part_span = memory_of(part.tensor).span;
  const bool is_mapped = whole_span.begin == whole.source_address;
  const bool is_piece = part_span.size_bytes() <= streamer.piece_bytes();
  if (is_mapped && !is_piece && conversion.takes_in_pieces(part.tensor)) {
    return conversion.in_pieces(part.tensor, part.source_address, streamer);
  }
  const stream::OwnReads own_reads;
  const uint64_t limit_bytes = streamer.window_limit_bytes();
  if (is_mapped && (is_piece || whole_span.size_bytes() > limit_bytes)) {
    streamer.admit_part(index, part_span);
  } else {
    streamer.admit(index);  // holds the limit wherever it begins
  }
  return conversion(part.tensor, part.source_address);
}

}  // namespace ckpt_streamer::ops
