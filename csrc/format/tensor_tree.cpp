#include "format/tensor_tree.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/checked_math.h"
#include "base/error.h"
#include "format/name_index.h"
#include "format/pickle_globals.h"
#include "format/pickle_text.h"
#include "format/text.h"

namespace ckpt_streamer::format {
namespace {

constexpr uint32_t kNoIndex = 0xFFFFFFFF;

// ATen's dim_bitset_size: what most operators of torch take.
constexpr size_t kLargestDimCount = 64;

// Slot names repeat the keys of their containers, so a small hostile pickle
// could ask for any amount of names. Real ones stay below one name byte for a
// pickle byte.
constexpr uint64_t kNameBytesForPickleByte = 64;
constexpr uint64_t kFreeNameBytes = 1 << 20;

// Containers that are walked under each of their paths could unfold without
// end. Modules that share modules reach a few values more than there are.
constexpr uint64_t kVisitsForValue = 64;

// Up to here, comparing keys pair by pair beats building a table.
constexpr size_t kFewKeys = 8;

// A storage in the index, with the type that the first reference declared.
struct KnownStorage {
  uint32_t index = kNoIndex;
  DType dtype = DType::kUInt8;
};

// What a persistent id stands for: a storage in the index, or a part of it.
struct StoragePart {
  uint32_t index;
  DType dtype;           // as the persistent id says
  ByteRange byte_range;  // inside the storage
};

class IndexBuilder {
 public:
  IndexBuilder(
      const TensorPickle& pickle,
      StorageLookup& storages,
      std::string_view root_name,
      CheckpointIndex& index)
      : tree_(pickle.tree),
        origin_(pickle.origin),
        storages_(storages),
        index_(index),
        walks_each_path_(
            pickle.shared_containers == SharedContainers::kEachPath),
        visit_budget_(kVisitsForValue * tree_.size()),
        path_(root_name) {
    globals_.reserve(tree_.global_count());
    for (uint32_t i = 0; i < tree_.global_count(); ++i) {
      globals_.push_back(meaning_of(tree_.global(i)));
    }
    is_walked_.resize(tree_.size());
    tensor_of_object_.resize(tree_.object_count(), kNoIndex);
    name_budget_bytes_ =
        kFreeNameBytes + kNameBytesForPickleByte * pickle.size_bytes;
  }

  void walk();

 private:
  struct Frame {
    std::span<const ValueId> values;
    bool is_mapping;  // values are key, value, key, value
    size_t next;
    size_t name_bytes;  // of the container's own path
    ValueId container;
  };

  // What a rebuild says about a tensor, before it is checked.
  struct Rebuild {
    ValueId storage = kNoValue;
    ValueId storage_offset = kNoValue;
    ValueId sizes = kNoValue;
    ValueId strides = kNoValue;
    ValueId requires_grad = kNoValue;
    ValueId dtype = kNoValue;     // v3 only
    ValueId metadata = kNoValue;  // when there is one
    uint64_t file_offset = 0;
    std::string_view function;
  };

  // The walk.
  void visit(ValueId id);
  // The value that stands for this one, kNoValue if none is to be walked.
  ValueId stand_in(ValueId id);
  void charge_visits(uint64_t value_count);
  void push_container(
      ValueId id,
      std::span<const ValueId> values,
      bool is_mapping);
  void check_distinct_keys(std::span<const ValueId> entries);
  void append_key(ValueId key);
  void add_slot(ValueId object);
  void charge_name(uint64_t byte_count);

  // Tensors.
  uint32_t tensor_of(ValueId object_id);
  Rebuild unpack_rebuild(ValueId object_id, uint64_t file_offset);
  void check_metadata(const Rebuild& rebuild);
  bool read_requires_grad(ValueId id, uint64_t file_offset);
  uint64_t read_count(ValueId id, const char* what, uint64_t file_offset);
  std::span<const ValueId> read_dims(
      ValueId id,
      const char* what,
      uint64_t file_offset);
  void check_bounds(
      const TensorRecord& tensor,
      const ByteRange& storage_part,
      uint64_t file_offset);
  void move_into_part(
      TensorRecord& tensor,
      const ByteRange& storage_part,
      uint64_t file_offset);
  StoragePart storage_of(ValueId id, uint64_t file_offset);

  [[nodiscard]] GlobalMeaning meaning(ValueId id) const {
    return tree_.kind(id) == ValueKind::kGlobal
               ? globals_[tree_.global_index(id)]
               : GlobalMeaning{};
  }
  [[nodiscard]] uint64_t in_file(uint64_t pickle_offset) const {
    return origin_.file_offset + pickle_offset;
  }
  // "tensor 'a.b' <what> in 'archive/data.pkl' [byte N]"
  [[noreturn]] void fail_tensor(
      ErrorKind kind,
      const std::string& what,
      uint64_t file_offset) const {
    throw CheckpointError(
        kind,
        origin_.path,
        "tensor " + quoted(path_) + " " + what + " in " +
            quoted(origin_.record_name),
        file_offset);
  }

  const PickleTree& tree_;
  const PickleOrigin& origin_;
  StorageLookup& storages_;
  CheckpointIndex& index_;
  std::vector<GlobalMeaning> globals_;  // by global index of tree_

  // By ValueId; with walks_each_path_, only of the containers that are open.
  std::vector<bool> is_walked_;
  std::vector<uint32_t> tensor_of_object_;    // by object index of tree_
  std::vector<KnownStorage> known_storages_;  // by FoundStorage::number

  const bool walks_each_path_;
  const uint64_t visit_budget_;
  uint64_t visit_count_ = 0;
  std::vector<Frame> frames_;
  std::string path_;  // of the value that is visited
  uint64_t name_bytes_ = 0;
  uint64_t name_budget_bytes_ = 0;
};

void IndexBuilder::walk() {
  visit(tree_.root());
  while (!frames_.empty()) {
    Frame& frame = frames_.back();
    path_.resize(frame.name_bytes);
    if (frame.next == frame.values.size()) {
      if (walks_each_path_) {
        is_walked_[frame.container] = false;
      }
      frames_.pop_back();
      continue;
    }
    if (frame.is_mapping) {
      const ValueId key = frame.values[frame.next];
      const ValueId value = frame.values[frame.next + 1];
      frame.next += 2;
      // Only containers and objects can hold a slot; skip naming the rest.
      if (tree_.kind(value) >= ValueKind::kTuple) {
        if (!path_.empty() || frames_.size() > 1) {
          path_ += '.';
        }
        append_key(key);
        visit(value);
      }
    } else {
      const size_t position = frame.next++;
      const ValueId value = frame.values[position];
      if (tree_.kind(value) >= ValueKind::kTuple) {
        if (!path_.empty() || frames_.size() > 1) {
          path_ += '.';
        }
        path_ += std::to_string(position);
        visit(value);
      }
    }
  }
}

// Objects of TorchScript are their states, and calls that only tag a list or
// dict with its type are what they tag. A state may lead back to its object, so
// that each such object is walked but once.
ValueId IndexBuilder::stand_in(ValueId id) {
  while (tree_.kind(id) == ValueKind::kObject) {
    const PickleObject object = tree_.object(id);
    const GlobalRole role = meaning(object.callable).role;
    const auto args = tree_.items(object.args);
    ValueId next = kNoValue;
    if (role == GlobalRole::kScriptClass) {
      next = object.state;
    } else if (role == GlobalRole::kFirstArgument) {
      next = args.empty() ? kNoValue : args.front();
    } else {
      return id;
    }
    if (next == kNoValue) {
      return kNoValue;
    }
    charge_visits(1);
    if (!walks_each_path_) {
      if (is_walked_[id]) {
        return kNoValue;
      }
      is_walked_[id] = true;
    }
    id = next;
  }
  return id;
}

// May push a frame, which invalidates references to others.
void IndexBuilder::visit(ValueId id) {
  id = stand_in(id);
  if (id == kNoValue) {
    return;
  }
  switch (tree_.kind(id)) {
    case ValueKind::kTuple:
    case ValueKind::kList:
      return push_container(id, tree_.items(id), false);
    case ValueKind::kDict:
      return push_container(id, tree_.entries(id), true);
    case ValueKind::kObject:
      break;
    default:
      return;
  }
  const PickleObject object = tree_.object(id);
  const GlobalRole role = meaning(object.callable).role;
  switch (role) {
    case GlobalRole::kOrderedDict:
    case GlobalRole::kDefaultDict: {
      // Python 3 sets the items afterwards; the only argument is the factory.
      const size_t arg_count = tree_.items(object.args).size();
      const bool is_default = role == GlobalRole::kDefaultDict;
      if (arg_count > (is_default ? 1U : 0U)) {
        throw CheckpointError(
            ErrorKind::kUnsupported,
            origin_.path,
            "the dict " + quoted(path_) + " is " +
                global_text(tree_, object.callable) + " with " +
                std::to_string(arg_count) + " arguments, expected " +
                (is_default ? "at most a factory" : "none") + " in " +
                quoted(origin_.record_name),
            in_file(object.pickle_offset));
      }
      return push_container(id, object.entries, true);
    }
    case GlobalRole::kRebuildTensor:
    case GlobalRole::kRebuildTensorV2:
    case GlobalRole::kRebuildTensorV3:
    case GlobalRole::kRebuildParameter:
    case GlobalRole::kRebuildParameterWithState:
    case GlobalRole::kParameter:
      return add_slot(id);
    case GlobalRole::kUnreadTensor:
      fail_tensor(
          ErrorKind::kUnsupported,
          "is rebuilt by " + global_text(tree_, object.callable) +
              ", which is not read yet; expected a strided tensor",
          in_file(object.pickle_offset));
    default:
      return;
  }
}

void IndexBuilder::push_container(
    ValueId id,
    std::span<const ValueId> values,
    bool is_mapping) {
  if (values.empty() || is_walked_[id]) {
    return;
  }
  is_walked_[id] = true;
  charge_visits(values.size());
  if (is_mapping) {
    check_distinct_keys(values);
  }
  frames_.push_back({values, is_mapping, 0, path_.size(), id});
}

void IndexBuilder::charge_visits(uint64_t value_count) {
  visit_count_ += value_count;
  if (walks_each_path_ && visit_count_ > visit_budget_) {
    throw CheckpointError(
        ErrorKind::kUnsupported,
        origin_.path,
        "the shared containers unfold to more than " +
            std::to_string(visit_budget_) + " values, expected at most " +
            std::to_string(kVisitsForValue) + " for each of the " +
            std::to_string(tree_.size()) + " in " + quoted(origin_.record_name),
        origin_.file_offset);
  }
}

// A dict has one value for a key. Only a hostile pickle sets a key twice, and
// readers would differ in which value they take. Compares what names a slot:
// strings and numbers as Python's == does, not tuples and objects.
void IndexBuilder::check_distinct_keys(std::span<const ValueId> entries) {
  const auto fail_duplicate = [&](const std::string& key) {
    throw CheckpointError(
        ErrorKind::kCorrupt,
        origin_.path,
        "the dict " + quoted(path_) + " has the key " + quoted(key) +
            " twice, expected distinct keys in " + quoted(origin_.record_name),
        origin_.file_offset);
  };
  std::vector<std::string_view> strings;
  std::vector<std::string_view> big_ints;
  std::vector<int64_t> ints;
  std::vector<double> floats;
  std::vector<int64_t> nones;
  for (size_t i = 0; i < entries.size(); i += 2) {
    const ValueId key = entries[i];
    switch (tree_.kind(key)) {
      case ValueKind::kString:
        strings.push_back(tree_.text(key));
        break;
      case ValueKind::kBigInt:
        big_ints.push_back(tree_.text(key));
        break;
      case ValueKind::kInt:
        ints.push_back(tree_.int_value(key));
        break;
      case ValueKind::kBool:
        ints.push_back(tree_.bool_value(key) ? 1 : 0);
        break;
      case ValueKind::kFloat: {
        // 1.0 == 1; a double of 2^63 or more equals no int64.
        const double value = tree_.float_value(key);
        if (value == std::trunc(value) && std::fabs(value) < 0x1p63) {
          ints.push_back(static_cast<int64_t>(value));
        } else if (!std::isnan(value)) {
          floats.push_back(value);
        }
        break;
      }
      case ValueKind::kNone:
        nones.push_back(0);
        break;
      default:
        break;
    }
  }
  const auto check_numbers = [&](auto& numbers, const auto& text) {
    std::sort(numbers.begin(), numbers.end());
    const auto twin = std::adjacent_find(numbers.begin(), numbers.end());
    if (twin != numbers.end()) {
      fail_duplicate(text(*twin));
    }
  };
  check_numbers(ints, [](int64_t value) { return std::to_string(value); });
  check_numbers(floats, [](double value) { return float_text(value); });
  check_numbers(nones, [](int64_t) { return std::string("None"); });
  for (const auto& texts : {strings, big_ints}) {
    if (texts.size() <= kFewKeys) {
      for (auto text = texts.begin(); text != texts.end(); ++text) {
        if (std::find(texts.begin(), text, *text) != text) {
          fail_duplicate(std::string(*text));
        }
      }
    } else if (const NameIndex names(texts); names.duplicate().has_value()) {
      fail_duplicate(std::string(texts[names.duplicate()->first]));
    }
  }
}

void IndexBuilder::append_key(ValueId key) {
  if (tree_.kind(key) != ValueKind::kString) {
    const std::string text = key_text(tree_, key);
    charge_name(text.size());
    path_ += text;
    return;
  }
  const std::string_view text = tree_.text(key);
  charge_name(text.size());
  if (!is_valid_utf8(text)) {
    throw CheckpointError(
        ErrorKind::kCorrupt,
        origin_.path,
        "the key " + quoted(text) + " in " + quoted(path_) +
            " is not UTF-8, expected a string in " +
            quoted(origin_.record_name),
        origin_.file_offset);
  }
  path_ += text;
}

void IndexBuilder::add_slot(ValueId object) {
  charge_name(path_.size());
  const uint32_t tensor_index = tensor_of(object);
  index_.slots.push_back({path_, tensor_index});
}

// Called before path_ grows and before it is copied.
void IndexBuilder::charge_name(uint64_t byte_count) {
  name_bytes_ += byte_count;
  if (name_bytes_ > name_budget_bytes_) {
    throw CheckpointError(
        ErrorKind::kUnsupported,
        origin_.path,
        "the slot names add up to more than " +
            std::to_string(name_budget_bytes_) + " bytes, expected at most " +
            std::to_string(kNameBytesForPickleByte) + " for each byte of " +
            quoted(origin_.record_name),
        origin_.file_offset);
  }
}

uint32_t IndexBuilder::tensor_of(ValueId object_id) {
  const uint32_t object_index = tree_.object_index(object_id);
  if (tensor_of_object_[object_index] != kNoIndex) {
    return tensor_of_object_[object_index];
  }
  const PickleObject object = tree_.object(object_id);
  const uint64_t file_offset = in_file(object.pickle_offset);
  const std::span<const ValueId> args = tree_.items(object.args);
  const GlobalRole role = meaning(object.callable).role;

  // A parameter wraps a tensor and has its own say on requires_grad.
  ValueId data = object_id;
  ValueId parameter_requires_grad = kNoValue;
  if (role == GlobalRole::kRebuildParameter ||
      role == GlobalRole::kRebuildParameterWithState ||
      role == GlobalRole::kParameter) {
    if (args.empty() || (role != GlobalRole::kParameter && args.size() < 2)) {
      fail_tensor(
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
  const StoragePart storage = storage_of(rebuild.storage, rebuild.file_offset);
  tensor.storage_index = storage.index;
  tensor.dtype = storage.dtype;
  if (rebuild.dtype != kNoValue) {
    if (meaning(rebuild.dtype).role != GlobalRole::kDType) {
      fail_tensor(
          ErrorKind::kUnsupported,
          "has the dtype " + element_text(tree_, rebuild.dtype) +
              ", which is not read yet; expected a dtype of plain numbers",
          rebuild.file_offset);
    }
    tensor.dtype = meaning(rebuild.dtype).dtype;
  }
  // torch.nn.Parameter(data) has requires_grad=True by default.
  tensor.requires_grad = role == GlobalRole::kParameter;
  const ValueId requires_grad =
      data == object_id ? rebuild.requires_grad : parameter_requires_grad;
  if (requires_grad != kNoValue) {
    tensor.requires_grad = read_requires_grad(requires_grad, file_offset);
  }
  tensor.storage_offset_elements =
      read_count(rebuild.storage_offset, "storage offset", rebuild.file_offset);

  const auto sizes = read_dims(rebuild.sizes, "sizes", rebuild.file_offset);
  const auto strides =
      read_dims(rebuild.strides, "strides", rebuild.file_offset);
  if (sizes.size() != strides.size()) {
    fail_tensor(
        ErrorKind::kCorrupt,
        "has " + std::to_string(sizes.size()) + " sizes and " +
            std::to_string(strides.size()) + " strides, expected as many",
        rebuild.file_offset);
  }
  tensor.dims_begin = index_.dims.size();
  tensor.dim_count = static_cast<uint32_t>(sizes.size());
  for (const ValueId size : sizes) {
    index_.dims.push_back(
        static_cast<int64_t>(read_count(size, "size", rebuild.file_offset)));
  }
  for (const ValueId stride : strides) {
    index_.dims.push_back(
        static_cast<int64_t>(
            read_count(stride, "stride", rebuild.file_offset)));
  }
  check_bounds(tensor, storage.byte_range, rebuild.file_offset);
  move_into_part(tensor, storage.byte_range, rebuild.file_offset);

  const auto tensor_index = static_cast<uint32_t>(index_.tensors.size());
  index_.tensors.push_back(tensor);
  tensor_of_object_[object_index] = tensor_index;
  return tensor_index;
}

IndexBuilder::Rebuild IndexBuilder::unpack_rebuild(
    ValueId object_id,
    uint64_t file_offset) {
  if (tree_.kind(object_id) != ValueKind::kObject) {
    fail_tensor(
        ErrorKind::kCorrupt,
        "is a parameter of " + element_text(tree_, object_id) +
            ", expected a parameter of a tensor",
        file_offset);
  }
  const PickleObject object = tree_.object(object_id);
  const std::span<const ValueId> args = tree_.items(object.args);
  Rebuild rebuild;
  rebuild.file_offset = in_file(object.pickle_offset);
  const auto expect_args = [&](size_t fewest, size_t most) {
    if (args.size() < fewest || args.size() > most) {
      fail_tensor(
          ErrorKind::kCorrupt,
          "is " + global_text(tree_, object.callable) + " with " +
              std::to_string(args.size()) + " arguments, expected " +
              std::to_string(fewest) +
              (most > fewest ? " or " + std::to_string(most) : ""),
          rebuild.file_offset);
    }
  };
  // The signatures of _utils.py; backward hooks (args[5]) are never kept.
  switch (meaning(object.callable).role) {
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
      fail_tensor(
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
void IndexBuilder::check_metadata(const Rebuild& rebuild) {
  if (rebuild.metadata == kNoValue ||
      tree_.kind(rebuild.metadata) == ValueKind::kNone) {
    return;
  }
  if (tree_.kind(rebuild.metadata) != ValueKind::kDict) {
    fail_tensor(
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
    fail_tensor(
        ErrorKind::kUnsupported,
        "is a lazy view with the bit " + element_text(tree_, entries[i]) +
            ", expected plain values",
        rebuild.file_offset);
  }
}

bool IndexBuilder::read_requires_grad(ValueId id, uint64_t file_offset) {
  if (tree_.kind(id) != ValueKind::kBool) {
    fail_tensor(
        ErrorKind::kCorrupt,
        "has the requires_grad " + element_text(tree_, id) +
            ", expected a bool",
        file_offset);
  }
  return tree_.bool_value(id);
}

uint64_t IndexBuilder::read_count(
    ValueId id,
    const char* what,
    uint64_t file_offset) {
  if (tree_.kind(id) != ValueKind::kInt || tree_.int_value(id) < 0) {
    fail_tensor(
        ErrorKind::kCorrupt,
        std::string("has the ") + what + " " + element_text(tree_, id) +
            ", expected an int of 0 or more",
        file_offset);
  }
  return static_cast<uint64_t>(tree_.int_value(id));
}

std::span<const ValueId> IndexBuilder::read_dims(
    ValueId id,
    const char* what,
    uint64_t file_offset) {
  // torch.Size((2, 3)) for (2, 3).
  if (tree_.kind(id) == ValueKind::kObject) {
    const PickleObject object = tree_.object(id);
    const auto args = tree_.items(object.args);
    if (meaning(object.callable).role == GlobalRole::kTorchSize &&
        args.size() == 1) {
      id = args[0];
    }
  }
  if (tree_.kind(id) != ValueKind::kTuple &&
      tree_.kind(id) != ValueKind::kList) {
    fail_tensor(
        ErrorKind::kCorrupt,
        std::string("has the ") + what + " " + element_text(tree_, id) +
            ", expected a tuple of ints",
        file_offset);
  }
  const auto dims = tree_.items(id);
  if (dims.size() > kLargestDimCount) {
    fail_tensor(
        ErrorKind::kUnsupported,
        "has " + std::to_string(dims.size()) + " " + what +
            ", expected at most " + std::to_string(kLargestDimCount),
        file_offset);
  }
  return dims;
}

void IndexBuilder::check_bounds(
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
    fail_tensor(
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
    fail_tensor(
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
void IndexBuilder::move_into_part(
    TensorRecord& tensor,
    const ByteRange& storage_part,
    uint64_t file_offset) {
  const uint64_t item_bytes = item_size_bytes(tensor.dtype);
  const auto offset = checked_add(
      tensor.storage_offset_elements,
      storage_part.begin / item_bytes);
  if (storage_part.begin % item_bytes != 0 || !offset.has_value() ||
      *offset > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    fail_tensor(
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

StoragePart IndexBuilder::storage_of(ValueId id, uint64_t file_offset) {
  if (tree_.kind(id) != ValueKind::kPersistent) {
    fail_tensor(
        ErrorKind::kCorrupt,
        "has the storage " + element_text(tree_, id) +
            ", expected a persistent id",
        file_offset);
  }
  const uint64_t pid_offset = in_file(tree_.persistent_pickle_offset(id));
  const ValueId pid = tree_.persistent_id(id);
  std::optional<StorageId> storage_id;
  if (tree_.kind(pid) == ValueKind::kTuple) {
    storage_id = storages_.parse(tree_, tree_.items(pid));
  }
  if (!storage_id.has_value()) {
    fail_tensor(
        ErrorKind::kCorrupt,
        "has the persistent id " + key_text(tree_, pid) + ", expected " +
            storages_.id_form(),
        pid_offset);
  }
  const GlobalMeaning type = meaning(storage_id->type);
  if (type.role != GlobalRole::kStorageType) {
    fail_tensor(
        ErrorKind::kUnsupported,
        "has the storage type " + element_text(tree_, storage_id->type) +
            ", expected a storage of plain numbers",
        pid_offset);
  }
  const uint64_t count =
      read_count(storage_id->count, "storage size", pid_offset);
  std::string int_key;
  std::string_view key;
  if (tree_.kind(storage_id->key) == ValueKind::kString) {
    key = tree_.text(storage_id->key);
  } else {
    int_key = key_text(tree_, storage_id->key);
    key = int_key;
  }
  const std::optional<FoundStorage> found = storages_.find(key, path_);
  if (!found.has_value()) {
    fail_tensor(
        ErrorKind::kCorrupt,
        "has the storage " + quoted(key) + ", expected " +
            storages_.expected_text(key),
        pid_offset);
  }
  // PyTorchFileReader.get_storage_from_record: the sizes must be the same.
  const uint64_t storage_bytes = found->view_range.size_bytes();
  if (checked_mul(count, item_size_bytes(type.dtype)) != storage_bytes) {
    fail_tensor(
        ErrorKind::kCorrupt,
        "has a storage of " + std::to_string(count) + " " +
            dtype_name(type.dtype) + ", expected the " +
            std::to_string(storage_bytes) + " bytes of record " +
            quoted(found->name),
        pid_offset);
  }
  if (found->number >= known_storages_.size()) {
    known_storages_.resize(size_t{found->number} + 1);
  }
  KnownStorage& known = known_storages_[found->number];
  if (known.index == kNoIndex) {
    if (!is_valid_utf8(found->name)) {
      fail_tensor(
          ErrorKind::kCorrupt,
          "has the record name " + quoted(found->name) + ", expected UTF-8",
          pid_offset);
    }
    known.index = static_cast<uint32_t>(index_.storages.size());
    known.dtype = type.dtype;
    index_.storages.push_back({std::string(found->name), found->file_range});
  }
  // torch.save refuses two types for the same data, and torch.load would take
  // whichever comes first. Without bytes there is nothing to disagree on.
  if (known.dtype != type.dtype && storage_bytes != 0) {
    fail_tensor(
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
       found->view_range.end - found->file_range.begin}};
}

}  // namespace

void append_tensors(
    const TensorPickle& pickle,
    StorageLookup& storages,
    std::string_view root_name,
    CheckpointIndex& index) {
  IndexBuilder(pickle, storages, root_name, index).walk();
}

}  // namespace ckpt_streamer::format
