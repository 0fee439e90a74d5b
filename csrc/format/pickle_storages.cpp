#include "format/pickle_storages.h"

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/checked_math.h"
#include "format/pickle_text.h"
#include "format/text.h"

namespace ckpt_streamer::format {

StoragePart PickleStorages::part_of(ValueId id, uint64_t file_offset) {
  const PickleTree& tree = context_.tree();
  if (tree.kind(id) != ValueKind::kPersistent) {
    context_.fail_tensor(
        ErrorKind::kCorrupt,
        "has the storage " + element_text(tree, id) +
            ", expected a persistent id",
        file_offset);
  }
  const uint64_t pid_offset =
      context_.in_file(tree.persistent_pickle_offset(id));
  const ValueId pid = tree.persistent_id(id);
  std::optional<StorageId> storage_id;
  if (tree.kind(pid) == ValueKind::kTuple) {
    storage_id = lookup_.parse(tree, tree.items(pid));
  }
  if (!storage_id.has_value()) {
    context_.fail_tensor(
        ErrorKind::kCorrupt,
        "has the persistent id " + key_text(tree, pid) + ", expected " +
            lookup_.id_form(),
        pid_offset);
  }
  const GlobalMeaning type = context_.meaning(storage_id->type);
  if (type.role != GlobalRole::kStorageType) {
    context_.fail_tensor(
        ErrorKind::kUnsupported,
        "has the storage type " + element_text(tree, storage_id->type) +
            ", expected a storage of plain numbers",
        pid_offset);
  }
  const uint64_t count =
      context_.read_count(storage_id->count, "storage size", pid_offset);
  std::string int_key;
  std::string_view key;
  if (tree.kind(storage_id->key) == ValueKind::kString) {
    key = tree.text(storage_id->key);
  } else {
    int_key = key_text(tree, storage_id->key);
    key = int_key;
  }
  const std::optional<FoundStorage> found = lookup_.find(key, context_.path());
  if (!found.has_value()) {
    context_.fail_tensor(
        ErrorKind::kCorrupt,
        "has the storage " + quoted(key) + ", expected " +
            lookup_.expected_text(key),
        pid_offset);
  }
  // PyTorchFileReader.get_storage_from_record: the sizes must be the same.
  const uint64_t storage_bytes = found->view_range.size_bytes();
  if (checked_mul(count, item_size_bytes(type.dtype)) != storage_bytes) {
    context_.fail_tensor(
        ErrorKind::kCorrupt,
        "has a storage of " + std::to_string(count) + " " +
            dtype_name(type.dtype) + ", expected the " +
            std::to_string(storage_bytes) + " bytes of record " +
            quoted(found->name),
        pid_offset);
  }
  if (found->number >= known_storages_.size()) {
    if (known_storages_.empty()) {
      // Archives have few records beside those of storages.
      constexpr size_t kOtherRecords = 64;
      known_storages_.reserve(tree.persistent_count() + kOtherRecords);
    }
    known_storages_.resize(size_t{found->number} + 1);
  }
  KnownStorage& known = known_storages_[found->number];
  if (known.index == kNoStorage) {
    if (!is_valid_utf8(found->name)) {
      context_.fail_tensor(
          ErrorKind::kCorrupt,
          "has the record name " + quoted(found->name) + ", expected UTF-8",
          pid_offset);
    }
    known.index = static_cast<uint32_t>(index_.storages.size());
    known.dtype = type.dtype;
    index_.storages.push_back({found->file_range, 0, found->crc32});
  }
  // torch.save refuses two types for the same data, and torch.load would take
  // whichever comes first. Without bytes there is nothing to disagree on.
  if (known.dtype != type.dtype && storage_bytes != 0) {
    context_.fail_tensor(
        ErrorKind::kCorrupt,
        std::string("has a storage of ") + dtype_name(type.dtype) +
            " in record " + quoted(found->name) + ", expected " +
            dtype_name(known.dtype) + " as before",
        pid_offset);
  }
  return {
      known.index,
      type.dtype,
      {found->view_range.begin - found->file_range.begin,
       found->view_range.end - found->file_range.begin},
      found->name};
}

}  // namespace ckpt_streamer::format
