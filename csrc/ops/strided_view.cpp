#include "ops/strided_view.h"

#include <utility>

namespace ckpt_streamer::ops {

at::Tensor strided_view(
    c10::Storage storage,
    at::ScalarType dtype,
    int64_t storage_offset,
    c10::IntArrayRef sizes,
    c10::IntArrayRef strides) {
  at::Tensor view = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage),
      c10::DispatchKeySet(c10::DispatchKey::CPU),
      c10::scalarTypeToTypeMeta(dtype));
  view.unsafeGetTensorImpl()->set_sizes_and_strides(
      sizes,
      strides,
      storage_offset);
  return view;
}

}  // namespace ckpt_streamer::ops
