#include "ops/conversion.h"

#include <ATen/EmptyTensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/copy_ops.h>
#include <c10/util/Exception.h>

#include <utility>

#include "ops/piecewise_copy.h"

namespace ckpt_streamer::ops {
namespace {

// Two numbers to an element: nothing converts from or to it.
constexpr at::ScalarType kPacked = at::kFloat4_e2m1fn_x2;

at::Tensor empty_dense(
    c10::IntArrayRef sizes,
    c10::IntArrayRef strides,
    at::ScalarType dtype) {
  return at::Tensor(at::detail::empty_strided_cpu(sizes, strides, dtype));
}

// Tensor.to() itself, for all that is not plain.
at::Tensor convert_any(const at::Tensor& tensor, at::ScalarType dtype) {
  const at::NoGradGuard no_grad;
  return tensor.to(dtype);
}

// Without the dispatcher's upper layers: what is wanted is neither recorded,
// nor traced, nor seen by a mode.
at::Tensor convert_dense(const at::Tensor& tensor, at::ScalarType dtype) {
  at::Tensor made = empty_dense(tensor.sizes(), tensor.strides(), dtype);
  at::_ops::copy_::redispatch(
      c10::DispatchKeySet(c10::DispatchKey::CPU),
      made,
      tensor,
      /*non_blocking=*/false);
  return made;
}

// The strides that Tensor.to() gives.
c10::DimVector strides_of_converted(
    const at::Tensor& tensor,
    at::ScalarType dtype) {
  if (tensor.is_non_overlapping_and_dense()) {
    return c10::DimVector(tensor.strides());
  }
  const at::Tensor shape(
      at::detail::empty_strided_meta(
          tensor.sizes(),
          tensor.strides(),
          tensor.scalar_type()));
  return c10::DimVector(shape.to(dtype).strides());
}

at::Tensor with_grad_of(const at::Tensor& source, at::Tensor made) {
  if (source.requires_grad()) {
    made.set_requires_grad(true);
  }
  return made;
}

}  // namespace

Conversion::Conversion(std::optional<at::ScalarType> dtype) : dtype_(dtype) {
  TORCH_CHECK_VALUE(
      !dtype || (c10::isFloatingType(*dtype) && *dtype != kPacked),
      "dtype is torch.",
      c10::getDtypeNames(*dtype).first,
      ", expected a floating-point dtype that tensors can be converted to");
}

bool Conversion::changes(const at::Tensor& tensor) const {
  if (!dtype_) {
    return false;
  }
  const at::ScalarType dtype = tensor.scalar_type();
  return dtype != *dtype_ && c10::isFloatingType(dtype) && dtype != kPacked;
}

at::Tensor Conversion::operator()(const at::Tensor& tensor, uint64_t begin) {
  if (!changes(tensor)) {
    return tensor;
  }
  if (!is_plain(tensor)) {
    return with_grad_of(tensor, convert_any(tensor, *dtype_));
  }
  if (at::Tensor made = find_made(tensor, begin); made.defined()) {
    return with_grad_of(tensor, std::move(made));
  }
  at::Tensor made = tensor.is_non_overlapping_and_dense()
                        ? convert_dense(tensor, *dtype_)
                        : convert_any(tensor, *dtype_);
  remember(tensor, made);
  return with_grad_of(tensor, std::move(made));
}

at::Tensor Conversion::in_pieces(
    const at::Tensor& tensor,
    uint64_t begin,
    stream::WindowStreamer& streamer) {
  if (!changes(tensor) || !is_plain(tensor)) {
    return (*this)(tensor, begin);
  }
  at::Tensor made = find_made(tensor, begin);
  if (!made.defined()) {
    const c10::DimVector strides = strides_of_converted(tensor, *dtype_);
    made = empty_dense(tensor.sizes(), strides, *dtype_);
    copy_in_pieces(made, tensor, streamer);
    remember(tensor, made);
  }
  return with_grad_of(tensor, std::move(made));
}

void Conversion::forget() noexcept {
  begin_ = 0;
  made_.clear();
}

at::Tensor Conversion::find_made(const at::Tensor& tensor, uint64_t begin) {
  if (begin != begin_ || begin == 0) {
    made_.clear();
    begin_ = begin;
    return {};
  }
  for (Made& made : made_) {
    if (made.source_dtype != tensor.scalar_type() ||
        tensor.sizes() != made.source_sizes ||
        tensor.strides() != made.source_strides) {
      continue;
    }
    if (auto storage = made.storage.lock()) {
      at::Tensor twin = at::detail::make_tensor<c10::TensorImpl>(
          c10::Storage(std::move(storage)),
          c10::DispatchKeySet(c10::DispatchKey::CPU),
          c10::scalarTypeToTypeMeta(*dtype_));
      twin.unsafeGetTensorImpl()->set_sizes_and_strides(
          tensor.sizes(),
          made.strides);
      return twin;
    }
  }
  return {};
}

void Conversion::remember(const at::Tensor& tensor, const at::Tensor& made) {
  if (begin_ == 0) {
    return;
  }
  made_.push_back(
      {tensor.scalar_type(),
       c10::DimVector(tensor.sizes()),
       c10::DimVector(tensor.strides()),
       c10::DimVector(made.strides()),
       made.storage().getWeakStorageImpl()});
}

}  // namespace ckpt_streamer::ops
