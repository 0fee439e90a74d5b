// The tensors of a stream, by position in its order.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "base/byte_range.h"

namespace ckpt_streamer::ops {

class TensorSource {
 public:
  TensorSource() = default;
  TensorSource(const TensorSource&) = delete;
  TensorSource& operator=(const TensorSource&) = delete;
  virtual ~TensorSource() = default;

  // The addresses that each tensor's elements span, in the order of the stream;
  // its size is the number of tensors.
  [[nodiscard]] virtual std::vector<ByteRange> spans() const = 0;

  // REQUIRES: index < spans().size().
  [[nodiscard]] virtual ByteRange span(size_t index) const = 0;
  [[nodiscard]] virtual std::string name(size_t index) const = 0;
  [[nodiscard]] virtual at::Tensor tensor(size_t index) = 0;

  // Addresses of spans whose tensors have been given other memory since the
  // last call: what is there now is not known.
  [[nodiscard]] virtual std::vector<ByteRange> take_moved() {
    return {};
  }

  // Called before the tensors of a window are handed out.
  // THROWS: CheckpointError when they can no longer be read.
  virtual void check_readable() const = 0;
};

}  // namespace ckpt_streamer::ops
