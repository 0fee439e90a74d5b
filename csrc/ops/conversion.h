// Tensors in another floating-point dtype, bit for bit what Tensor.to(dtype)
// gives.
//
// Not thread-safe.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/core/StorageImpl.h>
#include <c10/util/DimVector.h>
#include <c10/util/intrusive_ptr.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "ops/result_memory.h"
#include "ops/tensor_memory.h"
#include "stream/window_streamer.h"

namespace ckpt_streamer::ops {

class Conversion final {
 public:
  // Without a dtype, every tensor passes.
  // THROWS: c10::ValueError for a dtype that is not a floating-point one, or
  // that Tensor.to() has no conversion to.
  // Results that are plain and large (is_large()) are made in `memory`, if
  // there is one.
  explicit Conversion(
      std::optional<at::ScalarType> dtype,
      std::shared_ptr<ResultMemory> memory = nullptr);

  [[nodiscard]] bool is_wanted() const noexcept {
    return dtype_.has_value();
  }

  // Whether the tensor is converted. Passed unchanged are those that are of the
  // dtype already, integers, bools, complex numbers, quantized tensors, and
  // float4, from which there is no conversion.
  [[nodiscard]] bool changes(const at::Tensor& tensor) const {
    return changes(tensor.scalar_type());
  }
  [[nodiscard]] bool changes(at::ScalarType source) const;

  // The tensor itself if it passes. Else one that owns its storage, of the
  // sizes and strides that Tensor.to() gives, a leaf that requires grad if
  // `tensor` does.
  //
  // `begin`: the address of the tensor's first byte in the file's mapping, or
  // wherever its elements come from; 0 if it is known to be tied to no other.
  // Identical views of one `begin`, given one after the other, share one
  // storage as long as one of the tensors made of them lives: tied tensors are
  // converted once and stay tied.
  [[nodiscard]] at::Tensor operator()(const at::Tensor& tensor, uint64_t begin);

  // Whether of_elements() takes them: those that are changed, and not by a call
  // of torch's.
  [[nodiscard]] bool takes(const ContiguousElements& elements) const;

  // The same of the elements of a tensor that is tied to no other, and is not
  // made for it.
  // REQUIRES: takes(elements).
  [[nodiscard]] at::Tensor of_elements(
      const ContiguousElements& elements) const;

  // Whether in_pieces() takes it: those that are changed, and plain. Others
  // have to be live as a whole when they are converted.
  [[nodiscard]] bool takes_in_pieces(const at::Tensor& tensor) const;

  // The same for a tensor larger than the memory limit: reads it in pieces, so
  // that the limit of `streamer` holds; nothing is live there afterwards.
  // REQUIRES: takes_in_pieces(tensor), whose memory is a span of `streamer`, or
  // a part of one.
  [[nodiscard]] at::Tensor in_pieces(
      const at::Tensor& tensor,
      uint64_t begin,
      stream::WindowStreamer& streamer);

  // Whatever is converted from now on shares no storage with what was before.
  void forget() noexcept;

 private:
  // A tensor made of a view at begin_.
  struct Made {
    at::ScalarType source_dtype;
    c10::DimVector source_sizes;
    c10::DimVector source_strides;
    c10::DimVector strides;
    c10::weak_intrusive_ptr<c10::StorageImpl> storage;
  };

  [[nodiscard]] at::Tensor find_made(const at::Tensor& tensor, uint64_t begin);
  void remember(const at::Tensor& tensor, const at::Tensor& made);

  const std::optional<at::ScalarType> dtype_;
  const std::shared_ptr<ResultMemory> memory_;
  uint64_t begin_ = 0;
  std::vector<Made> made_;
};

}  // namespace ckpt_streamer::ops
