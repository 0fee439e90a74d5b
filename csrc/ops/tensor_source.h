// The tensors of a stream, by position in its order.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/byte_range.h"
#include "ops/tensor_memory.h"

namespace ckpt_streamer::ops {

class TensorSource {
 public:
  TensorSource() = default;
  TensorSource(const TensorSource&) = delete;
  TensorSource& operator=(const TensorSource&) = delete;
  virtual ~TensorSource() = default;

  // The addresses that each tensor counts with when windows are cut, in the
  // order of the stream; its size is the number of tensors. What is mapped
  // there is the tensor's memory.
  [[nodiscard]] virtual std::vector<ByteRange> spans() const = 0;

  // REQUIRES: index < spans().size().

  // Where the tensor's elements come from: equal addresses, the same elements.
  // 0 for a tensor without memory.
  [[nodiscard]] virtual uint64_t source_address(size_t index) const = 0;
  [[nodiscard]] virtual std::string name(size_t index) const = 0;
  [[nodiscard]] virtual at::Tensor tensor(size_t index) = 0;

  // The elements of that tensor, where it would be a plain contiguous view of a
  // file's mapping; mostly none. Its storage is not made, nor shared.
  [[nodiscard]] virtual std::optional<ContiguousElements> elements(
      size_t index) const {
    (void)index;
    return std::nullopt;
  }

  // The position of the tensor of that name.
  // THROWS: CheckpointError InvalidArgument without one, or for several.
  [[nodiscard]] virtual size_t find(const std::string& name) = 0;

  // Addresses of spans whose tensors have been given other memory since the
  // last call: what is there now is not known.
  [[nodiscard]] virtual std::vector<ByteRange> take_moved() {
    return {};
  }

  // Memory that holds copies for tensors that live, because they cannot be used
  // where they are mapped.
  [[nodiscard]] virtual uint64_t copied_bytes() const {
    return 0;
  }

  // Called before the tensors of a window are handed out, and after the last.
  // THROWS: CheckpointError when the bytes are no longer what they were, or no
  // longer there.
  virtual void check_unchanged() const = 0;
};

}  // namespace ckpt_streamer::ops
