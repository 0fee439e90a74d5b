#include "format/legacy_storages.h"

#include <array>
#include <cstddef>
#include <limits>

#include "base/checked_math.h"
#include "base/error.h"
#include "format/little_endian.h"
#include "format/pickle_globals.h"
#include "format/pickle_text.h"
#include "format/text.h"

namespace ckpt_streamer::format {
namespace {

constexpr uint64_t kCountBytes = 8;

// The parts of a persistent id, _legacy_save's persistent_id().
enum Part : uint8_t { kTypeName, kType, kKey, kLocation, kCount, kView };
constexpr size_t kPartCount = 6;
// Those of its view_metadata; offset and count are in elements of the type.
enum ViewPart : uint8_t { kViewKey, kViewOffset, kViewCount };
constexpr size_t kViewPartCount = 3;

bool is_key(const PickleTree& tree, ValueId id) {
  return tree.kind(id) == ValueKind::kString ||
         tree.kind(id) == ValueKind::kInt;
}

// ("module", class, source_file, source): stands for the class.
bool is_module(const PickleTree& tree, std::span<const ValueId> parts) {
  return parts.size() == 4 && tree.kind(parts[0]) == ValueKind::kString &&
         tree.text(parts[0]) == "module";
}

// A size in elements as one in bytes; nullopt for what is no size.
std::optional<uint64_t> size_in_bytes(
    const PickleTree& tree,
    ValueId count,
    uint64_t item_bytes) {
  if (tree.kind(count) != ValueKind::kInt || tree.int_value(count) < 0) {
    return std::nullopt;
  }
  return checked_mul(static_cast<uint64_t>(tree.int_value(count)), item_bytes);
}

}  // namespace

LegacyStorages::LegacyStorages(
    const ByteSource& source,
    const PickleTree& object,
    const PickleOrigin& object_origin,
    const PickleTree& keys,
    const PickleOrigin& keys_origin,
    uint64_t data_offset)
    : source_(source) {
  read_keys(keys, keys_origin);
  read_persistent_ids(object, object_origin);
  locate(data_offset);
}

void LegacyStorages::read_keys(
    const PickleTree& keys,
    const PickleOrigin& origin) {
  if (keys.kind(keys.root()) != ValueKind::kList) {
    fail(
        ErrorKind::kCorrupt,
        "the storage keys are " + element_text(keys, keys.root()) +
            ", expected a list",
        origin.file_offset);
  }
  for (const ValueId id : keys.items(keys.root())) {
    const auto text = text_of_key(keys, id);
    if (!text.has_value()) {
      fail(
          ErrorKind::kCorrupt,
          "the list of storage keys has " + element_text(keys, id) +
              ", expected strings or ints",
          origin.file_offset);
    }
    key_texts_.push_back(*text);
  }
  keys_ = NameIndex(key_texts_);
  if (const auto& twins = keys_.duplicate()) {
    fail(
        ErrorKind::kCorrupt,
        "the list of storage keys has " + quoted(key_texts_[twins->first]) +
            " twice, expected distinct keys",
        origin.file_offset);
  }
  declared_.resize(key_texts_.size());
}

// In the order in which the pickle makes them, as _legacy_load sees them: the
// first one of a storage says what the bytes of its count are.
void LegacyStorages::read_persistent_ids(
    const PickleTree& object,
    const PickleOrigin& origin) {
  std::vector<std::optional<GlobalMeaning>> meanings(object.global_count());
  for (ValueId id = 0; id < object.size(); ++id) {
    if (object.kind(id) != ValueKind::kPersistent) {
      continue;
    }
    const uint64_t file_offset =
        origin.file_offset + object.persistent_pickle_offset(id);
    const ValueId pid = object.persistent_id(id);
    std::span<const ValueId> parts;
    if (object.kind(pid) == ValueKind::kTuple) {
      parts = object.items(pid);
    }
    if (is_module(object, parts)) {
      continue;
    }
    const std::optional<StorageId> storage = parse(object, parts);
    if (!storage.has_value()) {
      fail(
          ErrorKind::kCorrupt,
          "found the persistent id " + key_text(object, pid) + ", expected " +
              id_form(),
          file_offset);
    }
    if (object.kind(storage->type) != ValueKind::kGlobal) {
      fail_type(
          *text_of_key(object, parts[kKey]),
          element_text(object, storage->type),
          file_offset);
    }
    const uint32_t global = object.global_index(storage->type);
    if (!meanings[global].has_value()) {
      meanings[global] = meaning_of(object.global(global));
    }
    if (meanings[global]->role != GlobalRole::kStorageType) {
      fail_type(
          *text_of_key(object, parts[kKey]),
          element_text(object, storage->type),
          file_offset);
    }
    declare(object, parts, meanings[global]->dtype, file_offset);
  }
}

void LegacyStorages::declare(
    const PickleTree& object,
    std::span<const ValueId> parts,
    DType dtype,
    uint64_t file_offset) {
  const std::string_view key = *text_of_key(object, parts[kKey]);
  const auto position = keys_.find(key);
  if (!position.has_value()) {
    return;  // an error once a tensor asks for it
  }
  const uint64_t item_bytes = item_size_bytes(dtype);
  const auto size_bytes = size_in_bytes(object, parts[kCount], item_bytes);
  if (!size_bytes.has_value()) {
    fail(
        ErrorKind::kCorrupt,
        "storage " + quoted(key) + " has the size " +
            element_text(object, parts[kCount]) +
            ", expected a number of elements",
        file_offset);
  }
  Declared& declared = declared_[*position];
  if (!declared.is_known) {
    declared = {true, item_bytes, *size_bytes, file_offset};
  } else if (declared.size_bytes != *size_bytes) {
    fail(
        ErrorKind::kCorrupt,
        "storage " + quoted(key) + " has " + std::to_string(*size_bytes) +
            " bytes, expected " + std::to_string(declared.size_bytes) +
            " as before",
        file_offset);
  }
  if (object.kind(parts[kView]) == ValueKind::kTuple) {
    declare_view(
        object,
        object.items(parts[kView]),
        *position,
        item_bytes,
        file_offset);
  }
}

void LegacyStorages::declare_view(
    const PickleTree& object,
    std::span<const ValueId> view,
    uint32_t root,
    uint64_t item_bytes,
    uint64_t file_offset) {
  const std::string_view key = *text_of_key(object, view[kViewKey]);
  const auto begin = size_in_bytes(object, view[kViewOffset], item_bytes);
  const auto size = size_in_bytes(object, view[kViewCount], item_bytes);
  const auto end = begin.has_value() && size.has_value()
                       ? checked_add(*begin, *size)
                       : std::nullopt;
  if (!end.has_value() || *end > declared_[root].size_bytes) {
    fail(
        ErrorKind::kCorrupt,
        "view " + quoted(key) + " has the offset " +
            element_text(object, view[kViewOffset]) + " and the size " +
            element_text(object, view[kViewCount]) + ", expected both inside " +
            "the " + std::to_string(declared_[root].size_bytes) +
            " bytes of storage " + quoted(key_texts_[root]),
        file_offset);
  }
  const auto [known, is_new] =
      views_.try_emplace(key, View{root, {*begin, *end}});
  if (!is_new && (known->second.root != root ||
                  known->second.byte_range != ByteRange{*begin, *end})) {
    fail(
        ErrorKind::kCorrupt,
        "view " + quoted(key) + " is of bytes [" + std::to_string(*begin) +
            ", " + std::to_string(*end) + ") of storage " +
            quoted(key_texts_[root]) + ", expected the same bytes as before",
        file_offset);
  }
  if (keys_.find(key).has_value()) {
    fail(
        ErrorKind::kCorrupt,
        "view " + quoted(key) + " of storage " + quoted(key_texts_[root]) +
            " has the key of a storage, expected one of its own",
        file_offset);
  }
}

// generic/serialization.cpp, writeFileRaw: an int64 count of elements, then
// the elements, all little-endian.
void LegacyStorages::locate(uint64_t data_offset) {
  uint64_t position = data_offset;
  file_ranges_.reserve(key_texts_.size());
  for (size_t i = 0; i < key_texts_.size(); ++i) {
    const Declared& declared = declared_[i];
    if (!declared.is_known) {
      fail(
          ErrorKind::kCorrupt,
          "storage " + quoted(key_texts_[i]) +
              " is in the list of storage keys but in no persistent id, "
              "expected its type and size",
          position);
    }
    const uint64_t rest_bytes = source_.size_bytes() - position;
    if (rest_bytes < kCountBytes ||
        rest_bytes - kCountBytes < declared.size_bytes) {
      fail(
          ErrorKind::kCorrupt,
          "the file has " + std::to_string(rest_bytes) +
              " bytes left for storage " + quoted(key_texts_[i]) +
              ", expected at least " + std::to_string(kCountBytes) + " + " +
              std::to_string(declared.size_bytes),
          position);
    }
    std::array<std::byte, kCountBytes> bytes;
    source_.read(position, bytes);
    const uint64_t count = load_u64(bytes.data());
    if (checked_mul(count, declared.item_bytes) != declared.size_bytes) {
      fail(
          ErrorKind::kCorrupt,
          "storage " + quoted(key_texts_[i]) + " has " +
              std::to_string(static_cast<int64_t>(count)) +
              " elements, expected the " +
              std::to_string(declared.size_bytes / declared.item_bytes) +
              " that its persistent id says",
          position);
    }
    position += kCountBytes;
    file_ranges_.push_back({position, position + declared.size_bytes});
    position += declared.size_bytes;
  }
}

std::optional<StorageId> LegacyStorages::parse(
    const PickleTree& tree,
    std::span<const ValueId> parts) const {
  if (parts.size() != kPartCount ||
      tree.kind(parts[kTypeName]) != ValueKind::kString ||
      tree.text(parts[kTypeName]) != "storage" || !is_key(tree, parts[kKey])) {
    return std::nullopt;
  }
  if (tree.kind(parts[kView]) == ValueKind::kNone) {
    return StorageId{parts[kType], parts[kKey], parts[kCount]};
  }
  if (tree.kind(parts[kView]) != ValueKind::kTuple) {
    return std::nullopt;
  }
  const std::span<const ValueId> view = tree.items(parts[kView]);
  if (view.size() != kViewPartCount || !is_key(tree, view[kViewKey])) {
    return std::nullopt;
  }
  return StorageId{parts[kType], view[kViewKey], view[kViewCount]};
}

std::optional<FoundStorage> LegacyStorages::find(
    std::string_view key,
    std::string_view /*path*/) {
  std::optional<uint32_t> root = keys_.find(key);
  if (root.has_value()) {
    const ByteRange& range = file_ranges_[*root];
    return FoundStorage{*root, key_texts_[*root], range, range};
  }
  const auto view = views_.find(key);
  if (view == views_.end()) {
    return std::nullopt;
  }
  const auto& [position, bytes] = view->second;
  const ByteRange& range = file_ranges_[position];
  return FoundStorage{
      position,
      key_texts_[position],
      range,
      {range.begin + bytes.begin, range.begin + bytes.end}};
}

std::string LegacyStorages::expected_text(std::string_view /*key*/) const {
  return "one in the list of storage keys";
}

std::optional<std::string_view> LegacyStorages::text_of_key(
    const PickleTree& tree,
    ValueId id) {
  switch (tree.kind(id)) {
    case ValueKind::kString:
      return tree.text(id);
    case ValueKind::kInt:
      return int_texts_.emplace_back(std::to_string(tree.int_value(id)));
    default:
      return std::nullopt;
  }
}

void LegacyStorages::fail_type(
    std::string_view key,
    const std::string& type,
    uint64_t file_offset) const {
  fail(
      ErrorKind::kUnsupported,
      "storage " + quoted(key) + " is of the type " + type +
          ", expected a storage of plain numbers",
      file_offset);
}

void LegacyStorages::fail(
    ErrorKind kind,
    const std::string& what,
    uint64_t file_offset) const {
  throw CheckpointError(kind, source_.path(), what, file_offset);
}

}  // namespace ckpt_streamer::format
