// The bytes of tensors as a file is to hold them: in a dtype, in row-major
// order, a piece at a time.
//
// Not thread-safe.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>

#include "ops/conversion.h"

namespace ckpt_streamer::ops {

// Takes the next bytes; they are there until it returns.
using TakeBytes = std::function<void(std::span<const std::byte>)>;

class WrittenElements final {
 public:
  // The limit is that of the pages of one tensor. REQUIRES: positive.
  explicit WrittenElements(uint64_t memory_limit_bytes)
      : memory_limit_bytes_(memory_limit_bytes) {}

  // Hands out the elements of a strided tensor, bit for bit as
  // tensor.to(dtype).contiguous() has them; but for NaNs of tensors above 4 MiB
  // with gaps between their elements, which may come out as other NaNs.
  //
  // Holds 8 MiB at most. Of a contiguous tensor in a private file mapping that
  // is larger than the limit, clean pages are dropped behind, so that no more
  // than the limit is resident; of one that is not contiguous, no more than
  // what a piece of 4 MiB of its elements touches. Pages of smaller ones stay,
  // for the stream that yielded them to drop.
  // REQUIRES: the dtype is the tensor's, or Conversion of it changes the
  // tensor. THROWS: as `take`; c10::Error when a piece cannot be copied.
  void hand_out(
      const at::Tensor& tensor,
      at::ScalarType dtype,
      const TakeBytes& take);

 private:
  class Reader;
  struct RunEnds;

  [[nodiscard]] Conversion& conversion_to(at::ScalarType dtype);
  // Of one dimension, without gaps.
  void hand_out_flat(
      const at::Tensor& flat,
      at::ScalarType dtype,
      Reader& reader,
      const TakeBytes& take);
  void convert_flat(
      const at::Tensor& flat,
      at::ScalarType dtype,
      Reader& reader,
      const TakeBytes& take);
  // `ends`: of the whole that the tensor is a part of; null where torch would
  // convert the part alone alike.
  void hand_out_strided(
      const at::Tensor& tensor,
      at::ScalarType dtype,
      Reader& reader,
      RunEnds* ends,
      const TakeBytes& take);

  const uint64_t memory_limit_bytes_;
  at::Tensor buffer_;  // uint8 [kPieceBytes], once it was needed
  std::optional<at::ScalarType> dtype_;
  std::optional<Conversion> conversion_;  // to dtype_
};

}  // namespace ckpt_streamer::ops
