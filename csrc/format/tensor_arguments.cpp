// The arguments of calls that rebuild tensors: what TensorRebuilder reads them
// with, and holds them against.
#include <algorithm>
#include <limits>
#include <optional>
#include <string>

#include "base/checked_math.h"
#include "format/pickle_text.h"
#include "format/tensor_rebuild.h"
#include "format/text.h"

namespace ckpt_streamer::format {
namespace {

constexpr auto kLargestInt64 =
    static_cast<uint64_t>(std::numeric_limits<int64_t>::max());

}  // namespace

void TensorRebuilder::expect_args(const Call& call, size_t fewest, size_t most)
    const {
  if (call.args.size() >= fewest && call.args.size() <= most) {
    return;
  }
  fail(
      ErrorKind::kCorrupt,
      call,
      "is " + global_text(tree_, call.callable) + " with " +
          std::to_string(call.args.size()) + " arguments, expected " +
          std::to_string(fewest) +
          (most > fewest ? " or " + std::to_string(most) : ""));
}

void TensorRebuilder::read_view(const Call& call, TensorRecord& tensor) {
  tensor.storage_offset_elements =
      context_.read_count(call.args[1], "storage offset", call.file_offset);
  add_dims(call, call.args[2], call.args[3], tensor);
}

// torch._C._get_tensor_metadata: {"conj": True} and {"neg": True} mean that the
// bytes are not the values.
void TensorRebuilder::read_metadata(
    const Call& call,
    ValueId id,
    TensorRecord& tensor) const {
  if (tree_.kind(id) == ValueKind::kNone) {
    return;
  }
  if (tree_.kind(id) != ValueKind::kDict) {
    fail(
        ErrorKind::kCorrupt,
        call,
        "has the metadata " + element_text(tree_, id) + ", expected a dict");
  }
  const std::span<const ValueId> entries = tree_.entries(id);
  for (size_t i = 0; i < entries.size(); i += 2) {
    const ValueId key = entries[i];
    const std::string_view name =
        tree_.kind(key) == ValueKind::kString ? tree_.text(key) : "";
    if (name != "conj" && name != "neg") {
      fail(
          ErrorKind::kUnsupported,
          call,
          "is a lazy view with the bit " + element_text(tree_, key) +
              ", expected 'conj' or 'neg'");
    }
    if (!read_bool(call, entries[i + 1], name == "conj" ? "conj" : "neg")) {
      continue;
    }
    const bool fits = name == "conj" ? is_complex(tensor.dtype)
                                     : may_require_grad(tensor.dtype);
    if (!fits) {
      fail(
          ErrorKind::kCorrupt,
          call,
          "has the bit " + quoted(name) + " and the dtype " +
              dtype_name(tensor.dtype) + ", expected " +
              (name == "conj" ? "complex numbers"
                              : "floating-point or complex numbers"));
    }
    (name == "conj" ? tensor.is_conjugate : tensor.is_negative) = true;
  }
}

uint32_t TensorRebuilder::component(
    const Call& call,
    ValueId id,
    const char* what) {
  if (tree_.kind(id) == ValueKind::kObject) {
    const GlobalRole role = unwrapped(call_of(id)).role;
    if (role == GlobalRole::kRebuildTensor ||
        role == GlobalRole::kRebuildTensorV2 ||
        role == GlobalRole::kRebuildTensorV3) {
      return index_of(id);
    }
  }
  fail(
      ErrorKind::kUnsupported,
      call,
      std::string("has the ") + what + " " + element_text(tree_, id) +
          ", expected a strided tensor");
}

void TensorRebuilder::expect_integers(
    const Call& call,
    uint32_t tensor,
    const char* what) const {
  const DType dtype = index_.tensors[tensor].dtype;
  if (dtype != DType::kInt64 && dtype != DType::kInt32) {
    fail(
        ErrorKind::kCorrupt,
        call,
        std::string("has ") + what + " of " + dtype_name(dtype) +
            ", expected int64 or int32");
  }
}

bool TensorRebuilder::read_bool(const Call& call, ValueId id, const char* what)
    const {
  if (tree_.kind(id) != ValueKind::kBool) {
    fail(
        ErrorKind::kCorrupt,
        call,
        std::string("has the ") + what + " " + element_text(tree_, id) +
            ", expected a bool");
  }
  return tree_.bool_value(id);
}

DType TensorRebuilder::read_dtype(const Call& call, ValueId id) const {
  const GlobalMeaning meaning = context_.meaning(id);
  if (meaning.role != GlobalRole::kDType) {
    fail(
        ErrorKind::kUnsupported,
        call,
        "has the dtype " + element_text(tree_, id) +
            ", expected one of torch 2.13");
  }
  return meaning.dtype;
}

std::span<const ValueId> TensorRebuilder::read_dims(
    const Call& call,
    ValueId id,
    const char* what) const {
  // torch.Size((2, 3)) for (2, 3).
  if (tree_.kind(id) == ValueKind::kObject) {
    const Call size = call_of(id);
    if (size.role == GlobalRole::kTorchSize && size.args.size() == 1) {
      id = size.args[0];
    }
  }
  if (tree_.kind(id) != ValueKind::kTuple &&
      tree_.kind(id) != ValueKind::kList) {
    fail(
        ErrorKind::kCorrupt,
        call,
        std::string("has the ") + what + " " + element_text(tree_, id) +
            ", expected a tuple of ints");
  }
  const auto dims = tree_.items(id);
  if (dims.size() > kLargestDimCount) {
    fail(
        ErrorKind::kUnsupported,
        call,
        "has " + std::to_string(dims.size()) + " " + what +
            ", expected at most " + std::to_string(kLargestDimCount));
  }
  return dims;
}

// Without strides (kNoValue) they are 0: the kind of tensor has none.
void TensorRebuilder::add_dims(
    const Call& call,
    ValueId sizes_id,
    ValueId strides_id,
    TensorRecord& tensor) {
  const auto sizes = read_dims(call, sizes_id, "sizes");
  std::span<const ValueId> strides;
  if (strides_id != kNoValue) {
    strides = read_dims(call, strides_id, "strides");
    if (sizes.size() != strides.size()) {
      fail(
          ErrorKind::kCorrupt,
          call,
          "has " + std::to_string(sizes.size()) + " sizes and " +
              std::to_string(strides.size()) + " strides, expected as many");
    }
  }
  tensor.dims_begin = index_.dims.size();
  tensor.dim_count = static_cast<uint8_t>(sizes.size());
  const auto add = [&](ValueId id, const char* what) {
    index_.dims.push_back(
        static_cast<int64_t>(context_.read_count(id, what, call.file_offset)));
  };
  for (const ValueId size : sizes) {
    add(size, "size");
  }
  for (const ValueId stride : strides) {
    add(stride, "stride");
  }
  index_.dims.resize(tensor.dims_begin + 2 * sizes.size());
  index_.share_dims(tensor);
}

void TensorRebuilder::check_sizes(const Call& call, const TensorRecord& tensor)
    const {
  std::optional<uint64_t> bytes = item_size_bytes(tensor.dtype);
  const auto sizes = index_.sizes(tensor);
  if (std::find(sizes.begin(), sizes.end(), 0) != sizes.end()) {
    return;
  }
  for (const int64_t size : sizes) {
    bytes = bytes.has_value() ? checked_mul(*bytes, static_cast<uint64_t>(size))
                              : std::nullopt;
  }
  if (!bytes.has_value() || *bytes > kLargestInt64) {
    fail(
        ErrorKind::kCorrupt,
        call,
        "has sizes whose product overflows, expected less than 2^63 bytes");
  }
}

void TensorRebuilder::check_bounds(
    const Call& call,
    const TensorRecord& tensor,
    const StoragePart& storage) const {
  check_sizes(call, tensor);
  const auto sizes = index_.sizes(tensor);
  const auto strides = index_.strides(tensor);
  std::optional<uint64_t> end_element =
      checked_add(tensor.storage_offset_elements, 1);
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    if (sizes[dim] == 0) {
      // No element, so nothing to be out of bounds.
      return;
    }
    const auto reach = checked_mul(
        static_cast<uint64_t>(sizes[dim]) - 1,
        static_cast<uint64_t>(strides[dim]));
    end_element = reach.has_value() && end_element.has_value()
                      ? checked_add(*end_element, *reach)
                      : std::nullopt;
  }
  const auto end_bytes = end_element.has_value()
                             ? end_byte_of_elements(tensor.dtype, *end_element)
                             : std::nullopt;
  const uint64_t storage_bytes = storage.byte_range.size_bytes();
  if (!end_bytes.has_value() || *end_bytes > storage_bytes) {
    fail(
        ErrorKind::kCorrupt,
        call,
        "reaches to byte " +
            (end_bytes.has_value() ? std::to_string(*end_bytes)
                                   : std::string("2^64")) +
            (tensor.storage_index == kNoStorage
                 ? std::string(" of no storage")
                 : " of record " + quoted(storage.record_name)) +
            ", expected at most its " + std::to_string(storage_bytes) +
            " bytes");
  }
}

// From an offset in a part of a storage to one in the storage.
void TensorRebuilder::move_into_part(
    const Call& call,
    TensorRecord& tensor,
    const ByteRange& storage_part) const {
  const uint64_t item_bytes = item_size_bytes(tensor.dtype);
  const auto offset = checked_add(
      tensor.storage_offset_elements,
      storage_part.begin / item_bytes * elements_per_item(tensor.dtype));
  if (storage_part.begin % item_bytes != 0 || !offset.has_value() ||
      *offset > kLargestInt64) {
    fail(
        ErrorKind::kCorrupt,
        call,
        "has the storage offset " +
            std::to_string(tensor.storage_offset_elements) +
            " in a view from byte " + std::to_string(storage_part.begin) +
            " of its storage on, expected whole elements of " +
            dtype_name(tensor.dtype));
  }
  tensor.storage_offset_elements = *offset;
}

void TensorRebuilder::check_requires_grad(
    const Call& call,
    const TensorRecord& tensor) const {
  if (tensor.requires_grad && !may_require_grad(tensor.dtype)) {
    fail(
        ErrorKind::kCorrupt,
        call,
        std::string("requires a gradient and has the dtype ") +
            dtype_name(tensor.dtype) +
            ", expected floating-point or complex numbers");
  }
}

}  // namespace ckpt_streamer::format
