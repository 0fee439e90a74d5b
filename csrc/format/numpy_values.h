// Arrays and scalars of numpy in a pickle, as far as they are plain numbers,
// bools or fixed-size texts: what is needed to read them without numpy.
//
// Facts are from numpy 2: _core/numeric.py (_frombuffer) and
// _core/src/multiarray (array_reduce_ex, array_setstate, arraydescr_reduce).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "format/checkpoint_index.h"
#include "format/pickle_context.h"

namespace ckpt_streamer::format {

struct NumpyValue {
  std::string dtype;               // numpy's str: "<f8", "|b1", "<U5"
  std::span<const ValueId> sizes;  // ints of 0 or more; none for a scalar
  ValueId bytes = kNoValue;        // bytes, a string or what makes bytes
  uint64_t size_bytes = 0;         // that they must have
  bool is_scalar = false;
  bool is_fortran_order = false;
};

// nullopt for any other object, and for arrays of objects, records and dates,
// which stay what they are.
[[nodiscard]] std::optional<NumpyValue> read_numpy(
    const PickleContext& context,
    const PickleObject& object);

// torch.from_numpy's; nullopt for what torch has not, big-endian numbers among
// it.
[[nodiscard]] std::optional<DType> dtype_of_numpy(
    std::string_view dtype) noexcept;

}  // namespace ckpt_streamer::format
