// What TorchScript holds, for the C++ interface.
#pragma once

#include <ATen/core/ivalue.h>
#include <c10/util/Exception.h>
#include <torch/custom_class.h>

namespace ckpt_streamer {

// `name`: that of the class, for the error.
// THROWS: c10::TypeError unless the value is a `Handle`.
template <typename Handle>
c10::intrusive_ptr<Handle> handle_of_value(
    const c10::IValue& value,
    const char* name) {
  TORCH_CHECK_TYPE(
      value.isObject() &&
          value.type() == c10::getCustomClassType<c10::intrusive_ptr<Handle>>(),
      "expected a torch.classes.ckpt_streamer.",
      name,
      ", found ",
      value.type()->repr_str());
  return value.toCustomClass<Handle>();
}

}  // namespace ckpt_streamer
