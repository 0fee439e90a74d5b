// Holds an index against what every reader promises, and runs what streams and
// look-ups make of it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/byte_range.h"
#include "format/checkpoint_index.h"
#include "format/memory_pieces.h"
#include "format/name_glob.h"
#include "format/slot_finder.h"
#include "format/text.h"
#include "format/value_text.h"
#include "fuzz_target.h"
#include "plan/window.h"

namespace ckpt_streamer::fuzz {

inline void check_dims(
    const format::CheckpointIndex& index,
    const format::TensorRecord& tensor) {
  if (tensor.kind == format::TensorKind::kNested) {
    return;  // has none
  }
  require(
      tensor.dims_begin + uint64_t{2} * tensor.dim_count <= index.dims.size(),
      "tensors have sizes and strides");
  for (const auto& dims : {index.sizes(tensor), index.strides(tensor)}) {
    require(
        std::all_of(
            dims.begin(),
            dims.end(),
            [](int64_t dim) { return dim >= 0; }),
        "sizes and strides are not negative");
  }
}

// In its table, and the tensors there in theirs.
inline void check_details(
    const format::CheckpointIndex& index,
    const format::TensorRecord& tensor) {
  using format::TensorKind;
  const auto require_detail = [&](size_t count) {
    require(tensor.detail_index < count, "tensors have details of their kind");
  };
  const auto require_tensor = [&](uint32_t part) {
    require(
        part == format::kNoTensor || part < index.tensors.size(),
        "tensors are made of tensors of the index");
  };
  switch (tensor.kind) {
    case TensorKind::kQuantized: {
      require_detail(index.quantized.size());
      const auto& quantized = index.quantized[tensor.detail_index];
      require_tensor(quantized.scales);
      return require_tensor(quantized.zero_points);
    }
    case TensorKind::kSparse:
      require_detail(index.sparse.size());
      break;
    case TensorKind::kNested:
      require_detail(index.nested.size());
      break;
    case TensorKind::kArray: {
      require_detail(index.arrays.size());
      const format::NodeId array = index.arrays[tensor.detail_index].array;
      return require(
          array < index.values.size() &&
              index.values.kind(array) == format::NodeKind::kArray,
          "tensors of arrays are of arrays of the tree");
    }
    default:
      return;
  }
  for (const uint32_t part : index.components(tensor)) {
    require_tensor(part);
    require(
        part == format::kNoTensor ||
            index.tensors[part].storage_index != format::kNoStorage,
        "tensors are made of strided tensors");
  }
}

inline void check_tensor(
    const format::CheckpointIndex& index,
    uint32_t tensor_index,
    std::span<const size_t> file_sizes) {
  const format::TensorRecord& tensor = index.tensors[tensor_index];
  check_dims(index, tensor);
  check_details(index, tensor);
  const ByteRange range = index.file_range(tensor);
  const bool has_storage = tensor.kind == format::TensorKind::kStrided ||
                           tensor.kind == format::TensorKind::kQuantized;
  require(
      has_storage == (tensor.storage_index != format::kNoStorage),
      "strided tensors are views of storages, and no others are");
  if (has_storage) {
    require(
        tensor.storage_index < index.storages.size(),
        "tensors are views of storages of the index");
    require(
        range.empty() ||
            index.storages[tensor.storage_index].file_range.contains(range),
        "tensors lie inside their storages");
  }
  require(
      range.empty() || range.end <= file_sizes[index.file_index(tensor_index)],
      "tensors lie inside their files");
}

inline void check_pieces(
    const format::CheckpointIndex& index,
    uint64_t limit_bytes) {
  const format::MemoryPieces pieces(index, limit_bytes);
  for (uint32_t i = 0; i < index.tensors.size(); ++i) {
    if (index.tensors[i].storage_index == format::kNoStorage) {
      continue;
    }
    const format::MemoryPiece piece = pieces.piece_of(i);
    const ByteRange range = index.file_range(index.tensors[i]);
    require(
        piece.number < pieces.count() &&
            (range.empty() || piece.file_range.contains(range)),
        "tensors lie inside their pieces");
  }
}

class ValueCheck {
 public:
  explicit ValueCheck(const format::CheckpointIndex& index)
      : index_(index), tree_(index.values) {}

  void check_all() const {
    require(
        tree_.root() == format::kNoNode || tree_.root() < tree_.size(),
        "the root is a node");
    for (format::NodeId id = 0; id < tree_.size(); ++id) {
      check(id);
      require(
          format::is_valid_utf8(format::key_text(tree_, id)),
          "values are UTF-8 in names");
    }
  }

 private:
  void check(format::NodeId id) const {
    using format::NodeKind;
    switch (tree_.kind(id)) {
      case NodeKind::kString:
      case NodeKind::kGlobal:
      case NodeKind::kBigInt:
        return require(
            format::is_valid_utf8(tree_.text(id)),
            "strings are UTF-8");
      case NodeKind::kBytes:
        return touch(tree_.text(id));
      case NodeKind::kComplex:
      case NodeKind::kTuple:
      case NodeKind::kList:
      case NodeKind::kSet:
        return check_ids(tree_.items(id));
      case NodeKind::kDict:
        require(
            tree_.entries(id).size() % 2 == 0,
            "dicts have as many values as keys");
        return check_object(id);
      case NodeKind::kTensor:
        require(
            tree_.tensor_index(id) < index_.tensors.size(),
            "tensors of the tree are those of the index");
        return check_object(id);
      case NodeKind::kObject:
        return check_object(id);
      case NodeKind::kArray: {
        const format::ArrayNode array = tree_.array(id);
        touch(array.dtype);
        touch(array.bytes);
        return check_ids(array.sizes);
      }
      default:
        return;
    }
  }

  void check_object(format::NodeId id) const {
    const format::ObjectNode object = tree_.object(id);
    require(format::is_valid_utf8(object.type_name), "type names are UTF-8");
    check_ids(object.items);
    check_ids(object.entries);
    for (const format::NodeId part :
         {object.callable, object.args, object.keyword_args, object.state}) {
      require(
          part == format::kNoNode || part < tree_.size(),
          "parts of objects are nodes");
    }
  }

  void check_ids(std::span<const format::NodeId> ids) const {
    for (const format::NodeId id : ids) {
      require(id < tree_.size(), "values of containers are nodes");
    }
  }

  // Reads all of it, for the sanitizer to see.
  static void touch(std::string_view bytes) {
    const volatile size_t zeros =
        static_cast<size_t>(std::count(bytes.begin(), bytes.end(), '\0'));
    (void)zeros;
  }

  const format::CheckpointIndex& index_;
  const format::ValueTree& tree_;
};

inline void check_names(const format::CheckpointIndex& index) {
  const format::SlotFinder finder(index, index.all_slots());
  const size_t count = std::min<size_t>(index.slots.size(), 64);
  for (uint32_t slot = 0; slot < count; ++slot) {
    const std::string name = index.slot_name(slot);
    require(format::is_valid_utf8(name), "names are UTF-8");
    const std::vector<uint32_t> found = finder.find(name);
    require(
        std::find(found.begin(), found.end(), slot) != found.end(),
        "slots are found by their names");
    require(
        found.size() == 1 || !is_read([&] { (void)finder.find_one(name); }),
        "names of several slots are not looked up");
    (void)format::NameGlob(name.substr(0, 32)).matches(name.substr(0, 256));
  }
}

// `file_sizes`: of each of index.files.
inline void walk_index(
    const format::CheckpointIndex& index,
    std::span<const size_t> file_sizes) {
  for (const auto& records : {&index.storages, &index.read_records}) {
    for (const format::StorageRecord& record : *records) {
      require(
          record.file_range.begin <= record.file_range.end &&
              record.file_range.end <= file_sizes[record.file_index],
          "records lie inside their files");
    }
  }
  for (uint32_t i = 0; i < index.tensors.size(); ++i) {
    check_tensor(index, i, file_sizes);
  }
  std::vector<ByteRange> spans;
  for (const format::Slot& slot : index.slots) {
    require(
        slot.tensor_index < index.tensors.size(),
        "slots are those of tensors");
    spans.push_back(index.file_range(index.tensors[slot.tensor_index]));
  }
  check_names(index);
  ValueCheck(index).check_all();
  for (const uint64_t limit_bytes : {uint64_t{1}, uint64_t{1} << 30}) {
    check_pieces(index, limit_bytes);
    const std::vector<size_t> ends = plan::plan_windows(
        spans,
        plan::choose_rules(spans, limit_bytes, 4096, 64 * 1024));
    require(
        spans.empty() ? ends.empty() : ends.back() == spans.size(),
        "windows hold all slots");
  }
}

}  // namespace ckpt_streamer::fuzz
