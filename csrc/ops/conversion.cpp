#include "ops/conversion.h"

#include <ATen/EmptyTensor.h>
#include <ATen/TensorIterator.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/copy_ops.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/Exception.h>
#include <c10/util/strides.h>

#include <cstring>
#include <utility>

#include "base/bfloat16.h"
#include "ops/piecewise_copy.h"
#include "ops/strided_view.h"

namespace ckpt_streamer::ops {
namespace {

// Two numbers to an element: nothing converts from or to it.
constexpr at::ScalarType kPacked = at::kFloat4_e2m1fn_x2;

// torch shares out more elements among threads.
constexpr int64_t kMostForOneThread = at::internal::GRAIN_SIZE;

at::Tensor empty_dense(
    c10::IntArrayRef sizes,
    c10::IntArrayRef strides,
    at::ScalarType dtype) {
  return at::Tensor(at::detail::empty_strided_cpu(sizes, strides, dtype));
}

// Tensor.to() itself, for all that is not plain. A mode's Python code would run
// under our locks; where the tensor is of a Python class, its own has to.
at::Tensor convert_any(const at::Tensor& tensor, at::ScalarType dtype) {
  const at::NoGradGuard no_grad;
  std::optional<c10::impl::ExcludeDispatchKeyGuard> no_modes;
  if (!tensor.key_set().has(c10::DispatchKey::Python)) {
    no_modes.emplace(
        c10::DispatchKeySet(
            {c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot}));
  }
  return tensor.to(dtype);
}

// Without the dispatcher's upper layers: what is wanted is neither recorded,
// nor traced, nor seen by a mode.
void copy(at::Tensor& destination, const at::Tensor& source) {
  at::_ops::copy_::redispatch(
      c10::DispatchKeySet(c10::DispatchKey::CPU),
      destination,
      source,
      /*non_blocking=*/false);
}

void round_to_bfloat16(
    at::Tensor& destination,
    const void* source,
    int64_t count,
    uint16_t nan) {
  ckpt_streamer::round_to_bfloat16(
      {static_cast<const uint32_t*>(source), static_cast<size_t>(count)},
      nan,
      static_cast<uint16_t*>(destination.mutable_data_ptr()));
}

// As Tensor.narrow(), which modes would see.
at::Tensor part_of(const at::Tensor& vector, int64_t begin, int64_t count) {
  return strided_view(
      vector.storage(),
      vector.scalar_type(),
      begin,
      {count},
      {1});
}

// What NaNs become when torch converts float32 to bfloat16 here, provided that
// it does with all other numbers what round_to_bfloat16() does, at any place of
// a tensor. How it rounds depends on the processor; that is tried, with every
// upper half of a number and lower halves on all sides of a tie.
std::optional<uint16_t> find_nan_of_torch() {
  constexpr int64_t kUpperHalves = 65536;
  constexpr int64_t kLongestTail = 64;
  at::Tensor numbers(at::detail::empty_cpu({kUpperHalves}, at::kFloat));
  at::Tensor theirs(at::detail::empty_cpu({kUpperHalves}, at::kBFloat16));
  at::Tensor ours(at::detail::empty_cpu({kUpperHalves}, at::kBFloat16));
  auto* const bits = static_cast<uint32_t*>(numbers.mutable_data_ptr());
  const auto* const rounded =
      static_cast<const uint16_t*>(theirs.const_data_ptr());
  bits[0] = 0x7FC00000;
  copy(theirs, numbers);
  const uint16_t nan = rounded[0];
  const auto agree = [&](int64_t begin, int64_t count) {
    at::Tensor part = part_of(theirs, 0, count);
    copy(part, part_of(numbers, begin, count));
    round_to_bfloat16(ours, bits + begin, count, nan);
    return std::memcmp(
               part.const_data_ptr(),
               ours.const_data_ptr(),
               static_cast<size_t>(count) * sizeof(uint16_t)) == 0;
  };
  for (const uint32_t lower :
       {0x0U, 0x1U, 0x7FFFU, 0x8000U, 0x8001U, 0xFFFFU}) {
    for (uint32_t upper = 0; upper < kUpperHalves; ++upper) {
      bits[upper] = upper << 16 | lower;
    }
    bool is_same = true;
    // No more than a thread's share at once.
    for (int64_t begin = 0; begin < kUpperHalves; begin += kMostForOneThread) {
      is_same = is_same && agree(begin, kMostForOneThread);
    }
    constexpr int64_t kSomeNaNs = 0x7F7F;
    for (int64_t count = 1; count <= kLongestTail; ++count) {
      is_same = is_same && agree(kSomeNaNs, count);
    }
    if (!is_same) {
      return std::nullopt;
    }
  }
  return nan;
}

// What most checkpoints of small tensors are converted from and to, without the
// cost of a call of torch's.
std::optional<uint16_t> nan_of_plain_rounding(
    at::ScalarType source,
    at::ScalarType destination,
    int64_t count) {
  if (source != at::kFloat || destination != at::kBFloat16 ||
      count > kMostForOneThread) {
    return std::nullopt;
  }
  static const std::optional<uint16_t> nan = find_nan_of_torch();
  return nan;
}

// Also in dimensions of one element, where is_contiguous() takes any.
bool has_default_strides(const at::Tensor& tensor) {
  return tensor.strides() == c10::contiguous_strides(tensor.sizes());
}

at::Tensor empty_like(
    const at::Tensor& tensor,
    at::ScalarType dtype,
    ResultMemory* memory) {
  if (memory != nullptr && is_large(tensor.numel(), dtype)) {
    return strided_view(
        memory->make(
            static_cast<size_t>(tensor.numel()) * c10::elementSize(dtype)),
        dtype,
        /*storage_offset=*/0,
        tensor.sizes(),
        tensor.strides());
  }
  return has_default_strides(tensor)
             ? at::Tensor(at::detail::empty_cpu(tensor.sizes(), dtype))
             : empty_dense(tensor.sizes(), tensor.strides(), dtype);
}

// REQUIRES: it is non-overlapping and dense.
at::Tensor convert_dense(
    const at::Tensor& tensor,
    at::ScalarType dtype,
    ResultMemory* memory) {
  at::Tensor made = empty_like(tensor, dtype, memory);
  const std::optional<uint16_t> nan =
      nan_of_plain_rounding(tensor.scalar_type(), dtype, tensor.numel());
  if (nan.has_value()) {
    round_to_bfloat16(made, tensor.const_data_ptr(), tensor.numel(), *nan);
  } else {
    copy(made, tensor);
  }
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

Conversion::Conversion(
    std::optional<at::ScalarType> dtype,
    std::shared_ptr<ResultMemory> memory)
    : dtype_(dtype), memory_(std::move(memory)) {
  TORCH_CHECK_VALUE(
      !dtype || (c10::isFloatingType(*dtype) && *dtype != kPacked),
      "dtype is torch.",
      c10::getDtypeNames(*dtype).first,
      ", expected a floating-point dtype that tensors can be converted to");
}

bool Conversion::changes(at::ScalarType source) const {
  return dtype_.has_value() && source != *dtype_ &&
         c10::isFloatingType(source) && source != kPacked;
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
                        ? convert_dense(tensor, *dtype_, memory_.get())
                        : convert_any(tensor, *dtype_);
  remember(tensor, made);
  return with_grad_of(tensor, std::move(made));
}

bool Conversion::takes(const ContiguousElements& elements) const {
  return dtype_.has_value() &&
         nan_of_plain_rounding(elements.dtype, *dtype_, elements.count)
             .has_value();
}

at::Tensor Conversion::of_elements(const ContiguousElements& elements) const {
  at::Tensor made(at::detail::empty_cpu(elements.sizes, *dtype_));
  round_to_bfloat16(
      made,
      elements.begin,
      elements.count,
      *nan_of_plain_rounding(elements.dtype, *dtype_, elements.count));
  if (elements.requires_grad) {
    made.set_requires_grad(true);
  }
  return made;
}

bool Conversion::takes_in_pieces(const at::Tensor& tensor) const {
  return changes(tensor) && is_plain(tensor);
}

at::Tensor Conversion::in_pieces(
    const at::Tensor& tensor,
    uint64_t begin,
    stream::WindowStreamer& streamer) {
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
      return strided_view(
          c10::Storage(std::move(storage)),
          *dtype_,
          /*storage_offset=*/0,
          tensor.sizes(),
          made.strides);
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
