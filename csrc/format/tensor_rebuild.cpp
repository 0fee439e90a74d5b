#include "format/tensor_rebuild.h"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>

#include "format/numpy_values.h"
#include "format/pickle_text.h"
#include "format/text.h"

namespace ckpt_streamer::format {
namespace {

constexpr auto kLargestInt64 =
    static_cast<uint64_t>(std::numeric_limits<int64_t>::max());

bool is_parameter(GlobalRole role) noexcept {
  return role == GlobalRole::kRebuildParameter ||
         role == GlobalRole::kRebuildParameterWithState ||
         role == GlobalRole::kParameter;
}

}  // namespace

TensorRebuilder::TensorRebuilder(
    const PickleContext& context,
    StorageLookup& lookup,
    ArraySource* arrays,
    CheckpointIndex& index)
    : context_(context),
      tree_(context.tree()),
      index_(index),
      arrays_(arrays),
      storages_(context, lookup, index),
      tensor_of_object_(tree_.object_count(), kNoTensor) {}

TensorRebuilder::Call TensorRebuilder::call_of(ValueId object_id) const {
  const PickleObject object = tree_.object(object_id);
  return {
      context_.meaning(object.callable).role,
      object.callable,
      tree_.items(object.args),
      context_.in_file(object.pickle_offset)};
}

// _rebuild_from_type(func, type, args, state), which calls func(*args).
TensorRebuilder::Call TensorRebuilder::unwrapped(const Call& call) const {
  if (call.role != GlobalRole::kRebuildFromType) {
    return call;
  }
  Call inner{GlobalRole::kOther, kNoValue, {}, call.file_offset};
  if (call.args.size() != 4 || tree_.kind(call.args[2]) != ValueKind::kTuple) {
    return inner;
  }
  const GlobalRole role = context_.meaning(call.args[0]).role;
  if (makes_tensor(role) && !is_parameter(role) &&
      role != GlobalRole::kRebuildFromType) {
    inner.role = role;
    inner.callable = call.args[0];
    inner.args = tree_.items(call.args[2]);
  }
  return inner;
}

bool TensorRebuilder::is_tensor(ValueId object_id) const {
  const Call call = call_of(object_id);
  if (!makes_tensor(call.role)) {
    return false;
  }
  if (is_parameter(call.role) && !call.args.empty() &&
      tree_.kind(call.args[0]) == ValueKind::kObject) {
    const Call data = call_of(call.args[0]);
    return data.role != GlobalRole::kRebuildFromType ||
           makes_tensor(unwrapped(data).role);
  }
  return makes_tensor(unwrapped(call).role);
}

RebuiltTensor TensorRebuilder::rebuild(ValueId object_id) {
  const Call call = call_of(object_id);
  RebuiltTensor result;
  const auto note_type = [&](const Call& from_type) {
    if (from_type.role != GlobalRole::kRebuildFromType) {
      return;
    }
    if (context_.meaning(from_type.args[1]).role != GlobalRole::kTensorClass) {
      result.type = from_type.args[1];
    }
    (is_parameter(call.role) ? result.data_state : result.state) =
        from_type.args[3];
  };
  if (!is_parameter(call.role)) {
    result.tensor_index = index_of(object_id);
    note_type(call);
    return result;
  }
  // A parameter wraps a tensor and has its own say on requires_grad.
  const bool is_class = call.role == GlobalRole::kParameter;
  if (call.args.empty() || (!is_class && call.args.size() < 2)) {
    fail(
        ErrorKind::kCorrupt,
        call,
        "is " + global_text(tree_, call.callable) + " with " +
            std::to_string(call.args.size()) +
            " arguments, expected (data, requires_grad, ...)");
  }
  const ValueId data = call.args[0];
  const bool is_object = tree_.kind(data) == ValueKind::kObject;
  if (!is_object || is_parameter(call_of(data).role) || !is_tensor(data)) {
    fail(
        ErrorKind::kCorrupt,
        call,
        "is a parameter of " + element_text(tree_, data) +
            ", expected a parameter of a tensor");
  }
  const Call inner = call_of(data);
  const uint32_t known = tensor_of_object_[tree_.object_index(data)];
  TensorRecord tensor =
      known != kNoTensor ? index_.tensors[known] : record_of(unwrapped(inner));
  tensor.is_parameter = true;
  tensor.requires_grad = true;  // the class's default
  if (call.args.size() > 1) {
    tensor.requires_grad = read_bool(call, call.args[1], "requires_grad");
  }
  check_requires_grad(call, tensor);
  note_type(inner);
  if (call.role == GlobalRole::kRebuildParameterWithState &&
      call.args.size() > 3) {
    result.state = call.args[3];
  }
  result.tensor_index = static_cast<uint32_t>(index_.tensors.size());
  index_.tensors.push_back(tensor);
  return result;
}

uint32_t TensorRebuilder::index_of(ValueId object_id) {
  const uint32_t object_index = tree_.object_index(object_id);
  if (tensor_of_object_[object_index] == kNoTensor) {
    // Components come first, and may be asked for again.
    const TensorRecord tensor = record_of(unwrapped(call_of(object_id)));
    tensor_of_object_[object_index] =
        static_cast<uint32_t>(index_.tensors.size());
    index_.tensors.push_back(tensor);
  }
  return tensor_of_object_[object_index];
}

TensorRecord TensorRebuilder::record_of(const Call& call) {
  switch (call.role) {
    case GlobalRole::kRebuildTensor:
    case GlobalRole::kRebuildTensorV2:
    case GlobalRole::kRebuildTensorV3:
      return strided(call);
    case GlobalRole::kRebuildQuantized:
      return quantized(call);
    case GlobalRole::kRebuildSparse:
      return sparse(call);
    case GlobalRole::kRebuildNested:
      return nested(call);
    case GlobalRole::kRebuildMeta:
      return meta(call);
    case GlobalRole::kRebuildFromArray:
      return from_array(call);
    case GlobalRole::kRebuildFromCpuTensor: {
      expect_args(call, 4, 4);
      TensorRecord tensor =
          index_.tensors[component(call, call.args[0], "data")];
      const DType dtype = read_dtype(call, call.args[1]);
      if (dtype != tensor.dtype) {
        fail(
            ErrorKind::kUnsupported,
            call,
            std::string("is made of ") + dtype_name(tensor.dtype) +
                " as another device's " + dtype_name(dtype) +
                ", expected data of its own dtype");
      }
      tensor.requires_grad = read_bool(call, call.args[3], "requires_grad");
      check_requires_grad(call, tensor);
      return tensor;
    }
    case GlobalRole::kUninitialized:
      return uninitialized(call);
    default:
      fail(
          ErrorKind::kUnsupported,
          call,
          "is rebuilt by " + global_text(tree_, call.callable) +
              ", which is not read; expected one of the kinds of torch 2.13");
  }
}

// torch.load gives an object for a storage.
uint32_t TensorRebuilder::rebuild_storage(ValueId id) {
  Call call;
  call.file_offset = context_.in_file(tree_.persistent_pickle_offset(id));
  const StoragePart storage = storages_.part_of(id, call.file_offset);
  TensorRecord tensor;
  tensor.storage_index = storage.index;
  // Without its quantizer, a quantized type is no more than bytes.
  tensor.dtype = is_quantized(storage.dtype) ? DType::kUInt8 : storage.dtype;
  tensor.dims_begin = index_.dims.size();
  tensor.dim_count = 1;
  index_.dims.push_back(
      static_cast<int64_t>(
          storage.byte_range.size_bytes() / item_size_bytes(tensor.dtype)));
  index_.dims.push_back(1);
  move_into_part(call, tensor, storage.byte_range);
  index_.tensors.push_back(tensor);
  return static_cast<uint32_t>(index_.tensors.size() - 1);
}

// _rebuild_tensor, _v2 and _v3; backward hooks (args[5]) are never kept.
TensorRecord TensorRebuilder::strided(const Call& call) {
  TensorRecord tensor;
  const auto& args = call.args;
  size_t metadata_position = 6;
  switch (call.role) {
    case GlobalRole::kRebuildTensor:
      expect_args(call, 4, 4);
      break;
    case GlobalRole::kRebuildTensorV2:
      expect_args(call, 6, 7);
      break;
    default:
      expect_args(call, 7, 8);
      metadata_position = 7;
  }
  const StoragePart storage = storages_.part_of(args[0], call.file_offset);
  tensor.storage_index = storage.index;
  tensor.dtype = call.role == GlobalRole::kRebuildTensorV3
                     ? read_dtype(call, args[6])
                     : storage.dtype;
  if (is_quantized(tensor.dtype)) {
    fail(
        ErrorKind::kCorrupt,
        call,
        std::string("has the dtype ") + dtype_name(tensor.dtype) +
            " and no quantizer, expected to be rebuilt by _rebuild_qtensor");
  }
  if (args.size() > 4) {
    tensor.requires_grad = read_bool(call, args[4], "requires_grad");
    check_requires_grad(call, tensor);
  }
  if (args.size() > metadata_position) {
    read_metadata(call, args[metadata_position], tensor);
  }
  read_view(call, tensor);
  check_bounds(call, tensor, storage);
  move_into_part(call, tensor, storage.byte_range);
  return tensor;
}

// (storage, storage_offset, size, stride, quantizer_params, requires_grad,
// backward_hooks)
TensorRecord TensorRebuilder::quantized(const Call& call) {
  expect_args(call, 7, 7);
  const auto& args = call.args;
  TensorRecord tensor;
  tensor.kind = TensorKind::kQuantized;
  const StoragePart storage = storages_.part_of(args[0], call.file_offset);
  tensor.storage_index = storage.index;
  tensor.dtype = storage.dtype;
  if (!is_quantized(tensor.dtype)) {
    fail(
        ErrorKind::kCorrupt,
        call,
        std::string("is quantized and has a storage of ") +
            dtype_name(tensor.dtype) + ", expected one of a quantized dtype");
  }
  // No quantized tensor can require a gradient.
  tensor.requires_grad = read_bool(call, args[5], "requires_grad");
  check_requires_grad(call, tensor);
  read_view(call, tensor);
  check_bounds(call, tensor, storage);
  move_into_part(call, tensor, storage.byte_range);
  const QuantizedRecord quantizer = read_quantizer(call, tensor);
  tensor.detail_index = static_cast<uint32_t>(index_.quantized.size());
  index_.quantized.push_back(quantizer);
  return tensor;
}

// (qscheme, scale, zero_point), or (qscheme, scales, zero_points, axis) for one
// of each for every position along the axis.
QuantizedRecord TensorRebuilder::read_quantizer(
    const Call& call,
    const TensorRecord& tensor) {
  const ValueId id = call.args[4];
  std::span<const ValueId> parts;
  if (tree_.kind(id) == ValueKind::kTuple) {
    parts = tree_.items(id);
  }
  QuantizedRecord result;
  const GlobalRole scheme =
      parts.empty() ? GlobalRole::kOther : context_.meaning(parts[0]).role;
  if (scheme == GlobalRole::kPerTensorScheme && parts.size() == 3) {
    if (tree_.kind(parts[1]) != ValueKind::kFloat ||
        tree_.kind(parts[2]) != ValueKind::kInt) {
      fail(
          ErrorKind::kCorrupt,
          call,
          "has the scale " + element_text(tree_, parts[1]) +
              " and the zero point " + element_text(tree_, parts[2]) +
              ", expected a float and an int");
    }
    result.scale = tree_.float_value(parts[1]);
    result.zero_point = tree_.int_value(parts[2]);
    return result;
  }
  if (scheme != GlobalRole::kPerChannelScheme || parts.size() != 4) {
    fail(
        ErrorKind::kUnsupported,
        call,
        "has the quantizer " + key_text(tree_, id) +
            ", expected (per_tensor_affine, scale, zero_point) or "
            "(per_channel_affine, scales, zero_points, axis)");
  }
  result.scales = component(call, parts[1], "scales");
  result.zero_points = component(call, parts[2], "zero points");
  result.axis = context_.read_count(parts[3], "axis", call.file_offset);
  const auto sizes = index_.sizes(tensor);
  const auto channel_sizes = [&](uint32_t position) {
    return index_.sizes(index_.tensors[position]);
  };
  if (result.axis >= sizes.size()) {
    fail(
        ErrorKind::kCorrupt,
        call,
        "has the axis " + std::to_string(result.axis) +
            ", expected one of its " + std::to_string(sizes.size()) +
            " dimensions");
  }
  for (const uint32_t position : {result.scales, result.zero_points}) {
    const auto channels = channel_sizes(position);
    if (channels.size() != 1 || channels[0] != sizes[result.axis]) {
      fail(
          ErrorKind::kCorrupt,
          call,
          "has scales or zero points of another shape than its axis, expected "
          "one dimension of " +
              std::to_string(sizes[result.axis]));
    }
  }
  return result;
}

// (layout, (indices, values, size, is_coalesced)), with the compressed layouts
// (layout, (compressed_indices, plain_indices, values, size)). TorchScript's:
// (layout, size, requires_grad, indices..., values).
TensorRecord TensorRebuilder::sparse(const Call& call) {
  TensorRecord tensor;
  tensor.kind = TensorKind::kSparse;
  if (call.args.size() < 2) {
    expect_args(call, 2, 6);
  }
  SparseRecord record;
  record.layout = read_layout(call);
  const bool is_coo = record.layout == SparseLayout::kCoo;
  ValueId sizes = kNoValue;
  std::span<const ValueId> parts;  // the indices, then the values
  const size_t part_count = is_coo ? 2 : 3;
  if (tree_.kind(call.args[0]) == ValueKind::kInt) {
    expect_args(call, 3 + part_count, 3 + part_count);
    sizes = call.args[1];
    tensor.requires_grad = read_bool(call, call.args[2], "requires_grad");
    parts = call.args.subspan(3);
  } else {
    expect_args(call, 2, 2);
    if (tree_.kind(call.args[1]) == ValueKind::kTuple) {
      parts = tree_.items(call.args[1]);
    }
    // Before torch 2.1, a COO tensor did not say whether it is coalesced.
    if (parts.size() != part_count + 1 && !(is_coo && parts.size() == 4)) {
      fail(
          ErrorKind::kCorrupt,
          call,
          "has the sparse data " + element_text(tree_, call.args[1]) + " of " +
              std::to_string(parts.size()) +
              " parts, expected indices, values and sizes");
    }
    sizes = parts[part_count];
    if (is_coo && parts.size() == 4 &&
        tree_.kind(parts[3]) != ValueKind::kNone) {
      record.is_coalesced = read_bool(call, parts[3], "is_coalesced");
    }
  }
  record.indices = component(call, parts[0], "indices");
  expect_integers(call, record.indices, "indices");
  if (!is_coo) {
    record.plain_indices = component(call, parts[1], "plain indices");
    expect_integers(call, record.plain_indices, "plain indices");
  }
  record.values = component(call, parts[part_count - 1], "values");
  tensor.dtype = index_.tensors[record.values].dtype;
  check_requires_grad(call, tensor);
  add_dims(call, sizes, kNoValue, tensor);
  check_sizes(call, tensor);
  tensor.detail_index = static_cast<uint32_t>(index_.sparse.size());
  index_.sparse.push_back(record);
  return tensor;
}

// serialization.py, _get_layout("torch.sparse_coo"); c10/core/Layout.h.
SparseLayout TensorRebuilder::read_layout(const Call& call) const {
  struct Layout {
    std::string_view name;
    int64_t number;
    SparseLayout layout;
  };
  constexpr std::array<Layout, 5> kLayouts{{
      {"torch.sparse_coo", 1, SparseLayout::kCoo},
      {"torch.sparse_csr", 2, SparseLayout::kCsr},
      {"torch.sparse_csc", 4, SparseLayout::kCsc},
      {"torch.sparse_bsr", 5, SparseLayout::kBsr},
      {"torch.sparse_bsc", 6, SparseLayout::kBsc},
  }};
  ValueId id = call.args[0];
  std::string name;
  int64_t number = -1;
  if (tree_.kind(id) == ValueKind::kObject) {
    const Call layout = call_of(id);
    if (layout.role == GlobalRole::kLayout && layout.args.size() == 1 &&
        tree_.kind(layout.args[0]) == ValueKind::kString) {
      id = layout.args[0];
      name = tree_.text(id);
    }
  } else if (tree_.kind(id) == ValueKind::kGlobal) {
    name = global_text(tree_, id);
  } else if (tree_.kind(id) == ValueKind::kInt) {
    number = tree_.int_value(id);
  }
  for (const Layout& layout : kLayouts) {
    if (name == layout.name || number == layout.number) {
      return layout.layout;
    }
  }
  fail(
      ErrorKind::kUnsupported,
      call,
      "is sparse and has the layout " + element_text(tree_, id) +
          ", expected sparse_coo, sparse_csr, sparse_csc, sparse_bsr or "
          "sparse_bsc");
}

// (buffer, sizes, strides, storage_offsets), the last three tensors of a row
// for each tensor inside. That those lie in the buffer can only be seen from
// the data: whoever makes the tensor looks.
TensorRecord TensorRebuilder::nested(const Call& call) {
  expect_args(call, 4, 4);
  NestedRecord record;
  record.buffer = component(call, call.args[0], "buffer");
  record.sizes = component(call, call.args[1], "nested sizes");
  record.strides = component(call, call.args[2], "nested strides");
  record.offsets = component(call, call.args[3], "storage offsets");
  const auto sizes = index_.sizes(index_.tensors[record.sizes]);
  const auto strides = index_.sizes(index_.tensors[record.strides]);
  const auto offsets = index_.sizes(index_.tensors[record.offsets]);
  const bool has_rows = sizes.size() == 2 && strides.size() == 2 &&
                        offsets.size() == 1 && strides[0] == sizes[0] &&
                        strides[1] == sizes[1] && offsets[0] == sizes[0];
  if (sizes.empty() && offsets.size() == 1 && offsets[0] == 0) {
    fail(
        ErrorKind::kUnsupported,
        call,
        "is nested with no tensor inside, which torch.load does not read "
        "either; expected at least one");
  }
  if (!has_rows) {
    fail(
        ErrorKind::kCorrupt,
        call,
        "is nested, of sizes, strides and offsets that do not fit each other; "
        "expected two matrices and a vector of as many rows");
  }
  for (const uint32_t part : {record.sizes, record.strides, record.offsets}) {
    if (index_.tensors[part].dtype != DType::kInt64) {
      fail(
          ErrorKind::kCorrupt,
          call,
          std::string("is nested, with sizes of ") +
              dtype_name(index_.tensors[part].dtype) + ", expected int64");
    }
  }
  TensorRecord tensor;
  tensor.kind = TensorKind::kNested;
  tensor.dtype = index_.tensors[record.buffer].dtype;
  tensor.requires_grad = index_.tensors[record.buffer].requires_grad;
  tensor.dims_begin = index_.dims.size();
  tensor.detail_index = static_cast<uint32_t>(index_.nested.size());
  index_.nested.push_back(record);
  return tensor;
}

// (dtype, size, stride, requires_grad)
TensorRecord TensorRebuilder::meta(const Call& call) {
  expect_args(call, 4, 4);
  TensorRecord tensor;
  tensor.kind = TensorKind::kMeta;
  tensor.dtype = read_dtype(call, call.args[0]);
  tensor.requires_grad = read_bool(call, call.args[3], "requires_grad");
  check_requires_grad(call, tensor);
  add_dims(call, call.args[1], call.args[2], tensor);
  check_bounds(call, tensor, {kNoStorage, tensor.dtype, {0, kLargestInt64}});
  return tensor;
}

// (array, dtype, device, requires_grad): the data of another device's tensor,
// in an array of the nearest dtype that numpy has.
TensorRecord TensorRebuilder::from_array(const Call& call) {
  expect_args(call, 4, 4);
  const NodeId node =
      arrays_ == nullptr ? kNoNode : arrays_->array_of(call.args[0]);
  if (node == kNoNode) {
    fail(
        ErrorKind::kUnsupported,
        call,
        "is made of " + element_text(tree_, call.args[0]) +
            ", expected a numpy array of a plain dtype");
  }
  const ArrayNode array = index_.values.array(node);
  const auto source = dtype_of_numpy(array.dtype);
  if (!source.has_value() || array.is_scalar ||
      array.sizes.size() > kLargestDimCount) {
    fail(
        ErrorKind::kUnsupported,
        call,
        "is made of a numpy array of " + quoted(array.dtype) +
            ", expected a dtype and shape that torch has");
  }
  TensorRecord tensor;
  tensor.kind = TensorKind::kArray;
  tensor.dtype = read_dtype(call, call.args[1]);
  tensor.requires_grad = read_bool(call, call.args[3], "requires_grad");
  check_requires_grad(call, tensor);
  tensor.dims_begin = index_.dims.size();
  tensor.dim_count = static_cast<uint8_t>(array.sizes.size());
  for (const NodeId size : array.sizes) {
    index_.dims.push_back(index_.values.int_value(size));
  }
  // Of the array; the tensor's are the same.
  index_.dims.resize(index_.dims.size() + tensor.dim_count);
  int64_t* const strides =
      index_.dims.data() + tensor.dims_begin + tensor.dim_count;
  int64_t stride = 1;
  for (size_t i = 0; i < tensor.dim_count; ++i) {
    const size_t dim = array.is_fortran_order ? i : tensor.dim_count - 1 - i;
    strides[dim] = stride;
    stride *= std::max<int64_t>(index_.sizes(tensor)[dim], 1);
  }
  tensor.detail_index = static_cast<uint32_t>(index_.arrays.size());
  index_.arrays.push_back({node, *source});
  return tensor;
}

// UninitializedTensorMixin.__reduce_ex__: (requires_grad,).
TensorRecord TensorRebuilder::uninitialized(const Call& call) {
  TensorRecord tensor;
  tensor.kind = TensorKind::kUninitialized;
  tensor.is_parameter = true;
  tensor.requires_grad = true;
  if (!call.args.empty()) {
    tensor.requires_grad = read_bool(call, call.args[0], "requires_grad");
  }
  tensor.dims_begin = index_.dims.size();
  tensor.dim_count = 1;
  index_.dims.push_back(0);
  index_.dims.push_back(1);
  return tensor;
}

}  // namespace ckpt_streamer::format
