#include "format/tensor_rebuild.h"

#include <limits>
#include <optional>
#include <string>

#include "base/checked_math.h"
#include "format/pickle_text.h"
#include "format/text.h"

namespace ckpt_streamer::format {
namespace {

// ATen's dim_bitset_size: what most operators of torch take.
constexpr size_t kLargestDimCount = 64;

}  // namespace

TensorRebuilder::TensorRebuilder(
    const PickleContext& context,
    StorageLookup& lookup,
    CheckpointIndex& index)
    : context_(context),
      tree_(context.tree()),
      index_(index),
      storages_(context, lookup, index),
      tensor_of_object_(tree_.object_count(), kNoTensor) {}

bool TensorRebuilder::makes_tensor(GlobalRole role) noexcept {
  return role >= GlobalRole::kRebuildTensor;
}

uint32_t TensorRebuilder::tensor_of(ValueId object_id) {
  const uint32_t object_index = tree_.object_index(object_id);
  if (tensor_of_object_[object_index] != kNoTensor) {
    return tensor_of_object_[object_index];
  }
  const PickleObject object = tree_.object(object_id);
  const uint64_t file_offset = context_.in_file(object.pickle_offset);
  const std::span<const ValueId> args = tree_.items(object.args);
  const GlobalRole role = context_.meaning(object.callable).role;
  if (role == GlobalRole::kUnreadTensor) {
    context_.fail_tensor(
        ErrorKind::kUnsupported,
        "is rebuilt by " + global_text(tree_, object.callable) +
            ", which is not read yet; expected a strided tensor",
        file_offset);
  }

  // A parameter wraps a tensor and has its own say on requires_grad.
  ValueId data = object_id;
  ValueId parameter_requires_grad = kNoValue;
  if (role == GlobalRole::kRebuildParameter ||
      role == GlobalRole::kRebuildParameterWithState ||
      role == GlobalRole::kParameter) {
    if (args.empty() || (role != GlobalRole::kParameter && args.size() < 2)) {
      context_.fail_tensor(
          ErrorKind::kCorrupt,
          "is " + global_text(tree_, object.callable) + " with " +
              std::to_string(args.size()) +
              " arguments, expected (data, requires_grad, ...)",
          file_offset);
    }
    data = args[0];
    parameter_requires_grad = args.size() > 1 ? args[1] : kNoValue;
  }
  const Rebuild rebuild = unpack_rebuild(data, file_offset);
  check_metadata(rebuild);

  TensorRecord tensor;
  const StoragePart storage =
      storages_.part_of(rebuild.storage, rebuild.file_offset);
  tensor.storage_index = storage.index;
  tensor.dtype = storage.dtype;
  if (rebuild.dtype != kNoValue) {
    if (context_.meaning(rebuild.dtype).role != GlobalRole::kDType) {
      context_.fail_tensor(
          ErrorKind::kUnsupported,
          "has the dtype " + element_text(tree_, rebuild.dtype) +
              ", which is not read yet; expected a dtype of plain numbers",
          rebuild.file_offset);
    }
    tensor.dtype = context_.meaning(rebuild.dtype).dtype;
  }
  // torch.nn.Parameter(data) has requires_grad=True by default.
  tensor.requires_grad = role == GlobalRole::kParameter;
  const ValueId requires_grad =
      data == object_id ? rebuild.requires_grad : parameter_requires_grad;
  if (requires_grad != kNoValue) {
    tensor.requires_grad = read_requires_grad(requires_grad, file_offset);
  }
  tensor.storage_offset_elements = context_.read_count(
      rebuild.storage_offset,
      "storage offset",
      rebuild.file_offset);

  const auto sizes = read_dims(rebuild.sizes, "sizes", rebuild.file_offset);
  const auto strides =
      read_dims(rebuild.strides, "strides", rebuild.file_offset);
  if (sizes.size() != strides.size()) {
    context_.fail_tensor(
        ErrorKind::kCorrupt,
        "has " + std::to_string(sizes.size()) + " sizes and " +
            std::to_string(strides.size()) + " strides, expected as many",
        rebuild.file_offset);
  }
  tensor.dims_begin = index_.dims.size();
  tensor.dim_count = static_cast<uint32_t>(sizes.size());
  for (const ValueId size : sizes) {
    index_.dims.push_back(
        static_cast<int64_t>(
            context_.read_count(size, "size", rebuild.file_offset)));
  }
  for (const ValueId stride : strides) {
    index_.dims.push_back(
        static_cast<int64_t>(
            context_.read_count(stride, "stride", rebuild.file_offset)));
  }
  check_bounds(tensor, storage.byte_range, rebuild.file_offset);
  move_into_part(tensor, storage.byte_range, rebuild.file_offset);

  const auto tensor_index = static_cast<uint32_t>(index_.tensors.size());
  index_.tensors.push_back(tensor);
  tensor_of_object_[object_index] = tensor_index;
  return tensor_index;
}

TensorRebuilder::Rebuild TensorRebuilder::unpack_rebuild(
    ValueId object_id,
    uint64_t file_offset) {
  if (tree_.kind(object_id) != ValueKind::kObject) {
    context_.fail_tensor(
        ErrorKind::kCorrupt,
        "is a parameter of " + element_text(tree_, object_id) +
            ", expected a parameter of a tensor",
        file_offset);
  }
  const PickleObject object = tree_.object(object_id);
  const std::span<const ValueId> args = tree_.items(object.args);
  Rebuild rebuild;
  rebuild.file_offset = context_.in_file(object.pickle_offset);
  const auto expect_args = [&](size_t fewest, size_t most) {
    if (args.size() < fewest || args.size() > most) {
      context_.fail_tensor(
          ErrorKind::kCorrupt,
          "is " + global_text(tree_, object.callable) + " with " +
              std::to_string(args.size()) + " arguments, expected " +
              std::to_string(fewest) +
              (most > fewest ? " or " + std::to_string(most) : ""),
          rebuild.file_offset);
    }
  };
  // The signatures of _utils.py; backward hooks (args[5]) are never kept.
  switch (context_.meaning(object.callable).role) {
    case GlobalRole::kRebuildTensor:
      expect_args(4, 4);
      break;
    case GlobalRole::kRebuildTensorV2:
      expect_args(6, 7);
      rebuild.requires_grad = args[4];
      rebuild.metadata = args.size() > 6 ? args[6] : kNoValue;
      break;
    case GlobalRole::kRebuildTensorV3:
      expect_args(7, 8);
      rebuild.requires_grad = args[4];
      rebuild.dtype = args[6];
      rebuild.metadata = args.size() > 7 ? args[7] : kNoValue;
      break;
    default:
      context_.fail_tensor(
          ErrorKind::kUnsupported,
          "is a parameter of " + element_text(tree_, object_id) +
              ", which is not read yet; expected a strided tensor",
          file_offset);
  }
  rebuild.storage = args[0];
  rebuild.storage_offset = args[1];
  rebuild.sizes = args[2];
  rebuild.strides = args[3];
  return rebuild;
}

// torch._C._get_tensor_metadata: {"conj": True} and {"neg": True} mean that the
// bytes are not the values.
void TensorRebuilder::check_metadata(const Rebuild& rebuild) {
  if (rebuild.metadata == kNoValue ||
      tree_.kind(rebuild.metadata) == ValueKind::kNone) {
    return;
  }
  if (tree_.kind(rebuild.metadata) != ValueKind::kDict) {
    context_.fail_tensor(
        ErrorKind::kCorrupt,
        "has the metadata " + element_text(tree_, rebuild.metadata) +
            ", expected a dict",
        rebuild.file_offset);
  }
  const std::span<const ValueId> entries = tree_.entries(rebuild.metadata);
  for (size_t i = 0; i < entries.size(); i += 2) {
    const ValueId value = entries[i + 1];
    if (tree_.kind(value) == ValueKind::kBool && !tree_.bool_value(value)) {
      continue;
    }
    context_.fail_tensor(
        ErrorKind::kUnsupported,
        "is a lazy view with the bit " + element_text(tree_, entries[i]) +
            ", expected plain values",
        rebuild.file_offset);
  }
}

bool TensorRebuilder::read_requires_grad(ValueId id, uint64_t file_offset) {
  if (tree_.kind(id) != ValueKind::kBool) {
    context_.fail_tensor(
        ErrorKind::kCorrupt,
        "has the requires_grad " + element_text(tree_, id) +
            ", expected a bool",
        file_offset);
  }
  return tree_.bool_value(id);
}

std::span<const ValueId> TensorRebuilder::read_dims(
    ValueId id,
    const char* what,
    uint64_t file_offset) {
  // torch.Size((2, 3)) for (2, 3).
  if (tree_.kind(id) == ValueKind::kObject) {
    const PickleObject object = tree_.object(id);
    const auto args = tree_.items(object.args);
    if (context_.meaning(object.callable).role == GlobalRole::kTorchSize &&
        args.size() == 1) {
      id = args[0];
    }
  }
  if (tree_.kind(id) != ValueKind::kTuple &&
      tree_.kind(id) != ValueKind::kList) {
    context_.fail_tensor(
        ErrorKind::kCorrupt,
        std::string("has the ") + what + " " + element_text(tree_, id) +
            ", expected a tuple of ints",
        file_offset);
  }
  const auto dims = tree_.items(id);
  if (dims.size() > kLargestDimCount) {
    context_.fail_tensor(
        ErrorKind::kUnsupported,
        "has " + std::to_string(dims.size()) + " " + what +
            ", expected at most " + std::to_string(kLargestDimCount),
        file_offset);
  }
  return dims;
}

void TensorRebuilder::check_bounds(
    const TensorRecord& tensor,
    const ByteRange& storage_part,
    uint64_t file_offset) {
  const auto sizes = index_.sizes(tensor);
  const auto strides = index_.strides(tensor);
  std::optional<uint64_t> element_count = 1;
  std::optional<uint64_t> end_element = tensor.storage_offset_elements;
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    const auto size = static_cast<uint64_t>(sizes[dim]);
    if (size == 0) {
      // No element, so nothing to be out of bounds.
      return;
    }
    if (element_count.has_value()) {
      element_count = checked_mul(*element_count, size);
    }
    const auto reach =
        checked_mul(size - 1, static_cast<uint64_t>(strides[dim]));
    end_element = reach.has_value() && end_element.has_value()
                      ? checked_add(*end_element, *reach)
                      : std::nullopt;
  }
  const uint64_t item_bytes = item_size_bytes(tensor.dtype);
  const auto tensor_bytes = element_count.has_value()
                                ? checked_mul(*element_count, item_bytes)
                                : std::nullopt;
  constexpr auto kLargest =
      static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  if (!tensor_bytes.has_value() || *tensor_bytes > kLargest) {
    context_.fail_tensor(
        ErrorKind::kCorrupt,
        "has sizes whose product overflows, expected less than 2^63 bytes",
        file_offset);
  }
  if (end_element.has_value()) {
    end_element = checked_add(*end_element, 1);
  }
  const auto end_bytes = end_element.has_value()
                             ? checked_mul(*end_element, item_bytes)
                             : std::nullopt;
  const StorageRecord& storage = index_.storages[tensor.storage_index];
  const uint64_t storage_bytes = storage_part.size_bytes();
  if (!end_bytes.has_value() || *end_bytes > storage_bytes) {
    context_.fail_tensor(
        ErrorKind::kCorrupt,
        "reaches to byte " +
            (end_bytes.has_value() ? std::to_string(*end_bytes)
                                   : std::string("2^64")) +
            " of record " + quoted(storage.name) + ", expected at most its " +
            std::to_string(storage_bytes) + " bytes",
        file_offset);
  }
}

// From an offset in a part of a storage to one in the storage.
void TensorRebuilder::move_into_part(
    TensorRecord& tensor,
    const ByteRange& storage_part,
    uint64_t file_offset) {
  const uint64_t item_bytes = item_size_bytes(tensor.dtype);
  const auto offset = checked_add(
      tensor.storage_offset_elements,
      storage_part.begin / item_bytes);
  if (storage_part.begin % item_bytes != 0 || !offset.has_value() ||
      *offset > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    context_.fail_tensor(
        ErrorKind::kCorrupt,
        "has the storage offset " +
            std::to_string(tensor.storage_offset_elements) +
            " in a view from byte " + std::to_string(storage_part.begin) +
            " of its storage on, expected whole elements of " +
            dtype_name(tensor.dtype),
        file_offset);
  }
  tensor.storage_offset_elements = *offset;
}

// torch.load gives an object for a storage; here it is a tensor of one
// dimension with all of its elements.
uint32_t TensorRebuilder::tensor_of_storage(ValueId id) {
  const uint64_t file_offset =
      context_.in_file(tree_.persistent_pickle_offset(id));
  const StoragePart storage = storages_.part_of(id, file_offset);
  TensorRecord tensor;
  tensor.storage_index = storage.index;
  tensor.dtype = storage.dtype;
  tensor.dims_begin = index_.dims.size();
  tensor.dim_count = 1;
  index_.dims.push_back(
      static_cast<int64_t>(
          storage.byte_range.size_bytes() / item_size_bytes(tensor.dtype)));
  index_.dims.push_back(1);
  move_into_part(tensor, storage.byte_range, file_offset);
  index_.tensors.push_back(tensor);
  return static_cast<uint32_t>(index_.tensors.size() - 1);
}

}  // namespace ckpt_streamer::format
