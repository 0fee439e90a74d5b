#include "format/numpy_values.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <system_error>
#include <utility>

#include "base/checked_math.h"

namespace ckpt_streamer::format {
namespace {

// Of characters, numpy's U.
constexpr uint64_t kCharacterBytes = 4;

struct ItemType {
  std::string dtype;
  uint64_t item_bytes;
};

bool is_item_size(char kind, uint64_t bytes) noexcept {
  switch (kind) {
    case 'b':
      return bytes == 1;
    case 'i':
    case 'u':
      return bytes == 1 || bytes == 2 || bytes == 4 || bytes == 8;
    case 'f':
      return bytes == 2 || bytes == 4 || bytes == 8;
    case 'c':
      return bytes == 8 || bytes == 16;
    default:
      return false;
  }
}

std::span<const ValueId> items_of_tuple(const PickleTree& tree, ValueId id) {
  return id != kNoValue && tree.kind(id) == ValueKind::kTuple
             ? tree.items(id)
             : std::span<const ValueId>();
}

std::string_view text_of(const PickleTree& tree, ValueId id) {
  return tree.kind(id) == ValueKind::kString ? tree.text(id) : "";
}

// numpy.dtype("f8", align, copy) with the state (version, byte order, subtype,
// names, fields, ...).
std::optional<ItemType> read_dtype(const PickleContext& context, ValueId id) {
  const PickleTree& tree = context.tree();
  if (tree.kind(id) != ValueKind::kObject) {
    return std::nullopt;
  }
  const PickleObject object = tree.object(id);
  const auto args = tree.items(object.args);
  const auto state = items_of_tuple(tree, object.state);
  if (context.meaning(object.callable).role != GlobalRole::kNumpyDType ||
      args.empty() || state.size() < 5) {
    return std::nullopt;
  }
  for (const ValueId part : state.subspan(2, 3)) {
    if (tree.kind(part) != ValueKind::kNone) {
      return std::nullopt;  // an array in each item, or a record
    }
  }
  const std::string_view name = text_of(tree, args[0]);
  const std::string_view order = text_of(tree, state[1]);
  uint64_t count = 0;
  if (name.size() < 2 || order.size() != 1 ||
      std::string_view("<>|=").find(order[0]) == std::string_view::npos) {
    return std::nullopt;
  }
  const char* const end = name.data() + name.size();
  const auto parsed = std::from_chars(name.data() + 1, end, count);
  if (parsed.ec != std::errc() || parsed.ptr != end) {
    return std::nullopt;
  }
  const char kind = name[0];
  ItemType result{{}, count};
  bool has_order = count > 1;
  if (kind == 'U') {
    const auto bytes = checked_mul(count, kCharacterBytes);
    if (!bytes.has_value()) {
      return std::nullopt;
    }
    result.item_bytes = *bytes;
    has_order = true;
  } else if (kind == 'S') {
    has_order = false;
  } else if (!is_item_size(kind, count)) {
    return std::nullopt;
  }
  // '=' and '|' are the machine's own: archives are little-endian.
  result.dtype = has_order ? (order == ">" ? ">" : "<") : "|";
  result.dtype += name;
  return result;
}

// The bytes of so many items; nullopt for what are no sizes.
std::optional<uint64_t> bytes_of(
    const PickleTree& tree,
    std::span<const ValueId> sizes,
    uint64_t item_bytes) {
  std::optional<uint64_t> bytes = item_bytes;
  for (const ValueId size : sizes) {
    if (tree.kind(size) != ValueKind::kInt || tree.int_value(size) < 0 ||
        !bytes.has_value()) {
      return std::nullopt;
    }
    bytes = checked_mul(*bytes, static_cast<uint64_t>(tree.int_value(size)));
  }
  return bytes;
}

struct Parts {
  ValueId dtype = kNoValue;
  ValueId sizes = kNoValue;  // none for a scalar
  ValueId bytes = kNoValue;
  bool is_fortran_order = false;
};

// _reconstruct(ndarray, (0,), b"b") with the state (version, shape, dtype,
// is_fortran_order, bytes).
std::optional<Parts> parts_of_reconstruct(
    const PickleContext& context,
    const PickleObject& object) {
  const PickleTree& tree = context.tree();
  const auto args = tree.items(object.args);
  const auto state = items_of_tuple(tree, object.state);
  if (args.empty() ||
      context.meaning(args[0]).role != GlobalRole::kNumpyArray ||
      state.size() != 5 || tree.kind(state[3]) != ValueKind::kBool) {
    return std::nullopt;
  }
  return Parts{state[2], state[1], state[4], tree.bool_value(state[3])};
}

// _frombuffer(bytes, dtype, shape, order)
std::optional<Parts> parts_of_from_buffer(
    const PickleTree& tree,
    std::span<const ValueId> args) {
  if (args.size() != 4) {
    return std::nullopt;
  }
  const std::string_view order = text_of(tree, args[3]);
  if (order != "C" && order != "F") {
    return std::nullopt;
  }
  return Parts{args[1], args[2], args[0], order == "F"};
}

}  // namespace

std::optional<NumpyValue> read_numpy(
    const PickleContext& context,
    const PickleObject& object) {
  const PickleTree& tree = context.tree();
  const auto args = tree.items(object.args);
  std::optional<Parts> parts;
  switch (context.meaning(object.callable).role) {
    case GlobalRole::kNumpyReconstruct:
      parts = parts_of_reconstruct(context, object);
      break;
    case GlobalRole::kNumpyFromBuffer:
      parts = parts_of_from_buffer(tree, args);
      break;
    case GlobalRole::kNumpyScalar:
      if (args.size() == 2) {
        parts = Parts{args[0], kNoValue, args[1], false};
      }
      break;
    default:
      break;
  }
  if (!parts.has_value()) {
    return std::nullopt;
  }
  const auto item = read_dtype(context, parts->dtype);
  const bool is_scalar = parts->sizes == kNoValue;
  if (!item.has_value() ||
      (!is_scalar && tree.kind(parts->sizes) != ValueKind::kTuple)) {
    return std::nullopt;
  }
  const auto sizes = items_of_tuple(tree, parts->sizes);
  const auto size_bytes = bytes_of(tree, sizes, item->item_bytes);
  if (!size_bytes.has_value()) {
    return std::nullopt;
  }
  return NumpyValue{
      item->dtype,
      sizes,
      parts->bytes,
      *size_bytes,
      is_scalar,
      parts->is_fortran_order};
}

std::optional<DType> dtype_of_numpy(std::string_view dtype) noexcept {
  constexpr std::array<std::pair<std::string_view, DType>, 14> kDTypes{{
      {"|b1", DType::kBool},
      {"|i1", DType::kInt8},
      {"|u1", DType::kUInt8},
      {"<i2", DType::kInt16},
      {"<u2", DType::kUInt16},
      {"<i4", DType::kInt32},
      {"<u4", DType::kUInt32},
      {"<i8", DType::kInt64},
      {"<u8", DType::kUInt64},
      {"<f2", DType::kFloat16},
      {"<f4", DType::kFloat32},
      {"<f8", DType::kFloat64},
      {"<c8", DType::kComplex64},
      {"<c16", DType::kComplex128},
  }};
  const auto* const found =
      std::find_if(kDTypes.begin(), kDTypes.end(), [&](const auto& known) {
        return known.first == dtype;
      });
  return found == kDTypes.end() ? std::nullopt : std::optional(found->second);
}

}  // namespace ckpt_streamer::format
