// torch's dtypes and those of the layers below it.
#pragma once

#include <c10/core/ScalarType.h>

#include <optional>

#include "format/checkpoint_index.h"

namespace ckpt_streamer::ops {

[[nodiscard]] at::ScalarType scalar_type_of(format::DType dtype);

// None for a dtype that no checkpoint names.
[[nodiscard]] std::optional<format::DType> dtype_of(at::ScalarType dtype);

}  // namespace ckpt_streamer::ops
