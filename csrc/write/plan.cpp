#include "write/plan.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "base/byte_range.h"
#include "base/checked_math.h"
#include "base/error.h"
#include "format/name_index.h"
#include "format/safetensors.h"
#include "format/text.h"

namespace ckpt_streamer::write {
namespace {

using format::CheckpointIndex;
using format::DType;
using format::kNoStorage;
using format::NodeId;
using format::NodeKind;
using format::quoted;
using format::TensorKind;
using format::TensorRecord;

// Those that Tensor.to() converts, as ops/conversion.h has it.
bool is_converted(DType dtype) noexcept {
  switch (dtype) {
    case DType::kFloat16:
    case DType::kBFloat16:
    case DType::kFloat32:
    case DType::kFloat64:
    case DType::kFloat8E4M3FN:
    case DType::kFloat8E4M3FNUZ:
    case DType::kFloat8E5M2:
    case DType::kFloat8E5M2FNUZ:
    case DType::kFloat8E8M0FNU:
      return true;
    default:
      return false;
  }
}

const char* kind_name(TensorKind kind) noexcept {
  switch (kind) {
    case TensorKind::kQuantized:
      return "a quantized tensor";
    case TensorKind::kSparse:
      return "a sparse tensor";
    case TensorKind::kNested:
      return "a nested tensor";
    case TensorKind::kMeta:
      return "a meta tensor, which has no data";
    case TensorKind::kArray:
      return "a tensor of another device that was pickled as a numpy array";
    case TensorKind::kUninitialized:
      return "an uninitialized parameter";
    case TensorKind::kStrided:
      break;
  }
  return "a strided tensor";
}

class Planner {
 public:
  Planner(
      const std::string& path,
      const CheckpointIndex& source,
      std::span<const uint32_t> slots,
      std::vector<std::string> names,
      const PlanOptions& options)
      : path_(path),
        source_(source),
        slots_(slots),
        options_(options),
        metadata_(options.metadata) {
    plan_.names = std::move(names);
    plan_.placements.resize(slots.size());
  }

  Plan make() {
    check_names();
    place();
    assign_to_files();
    return std::move(plan_);
  }

 private:
  // A tensor's bytes in the source's storage.
  struct Member {
    uint32_t position = 0;  // in slots_
    uint32_t storage = 0;
    ByteRange bytes;
  };

  [[noreturn]] void fail(ErrorKind kind, const std::string& what) const {
    throw CheckpointError(kind, path_, what);
  }
  [[nodiscard]] const TensorRecord& record(size_t position) const {
    return source_.tensors[source_.slots[slots_[position]].tensor_index];
  }
  [[nodiscard]] std::string named(size_t position) const {
    return "the tensor " + quoted(plan_.names[position]);
  }

  void check_text(std::string_view text, const char* what) const {
    if (text.find('\0') != std::string_view::npos) {
      fail(
          ErrorKind::kInvalidArgument,
          std::string(what) + " " + quoted(text) +
              " holds a NUL character, expected one without");
    }
    if (!format::is_valid_utf8(text)) {
      fail(
          ErrorKind::kInvalidArgument,
          std::string(what) + " " + quoted(text) + " is not UTF-8");
    }
  }

  void check_names() const {
    for (const format::MetadataEntry& entry : metadata_) {
      check_text(entry.name, "the metadata's name");
      if (!format::is_valid_utf8(entry.value)) {
        fail(
            ErrorKind::kInvalidArgument,
            "the metadata " + quoted(entry.name) + " is not UTF-8");
      }
    }
    if (options_.keeps_tree) {
      return;
    }
    std::vector<std::string_view> names;
    names.reserve(plan_.names.size() + metadata_.size());
    for (const std::string& name : plan_.names) {
      check_text(name, "the name");
      if (options_.format == FileFormat::kSafetensors &&
          name == "__metadata__") {
        fail(
            ErrorKind::kInvalidArgument,
            "a tensor has the name '__metadata__', which safetensors keeps for "
            "itself, expected another");
      }
      names.emplace_back(name);
    }
    if (options_.format == FileFormat::kTorch) {
      for (const format::MetadataEntry& entry : metadata_) {
        names.emplace_back(entry.name);
      }
    }
    const format::NameIndex distinct(names);
    if (distinct.duplicate().has_value()) {
      fail(
          ErrorKind::kInvalidArgument,
          "there are two values of the name " +
              quoted(names[distinct.duplicate()->second]) +
              ", expected distinct names");
    }
  }

  // Gives every slot a storage.
  void place() {
    std::vector<Member> sorted;
    for (size_t i = 0; i < slots_.size(); ++i) {
      const TensorRecord& tensor = record(i);
      check_is_strided(path_, plan_.names[i], tensor.kind);
      const DType dtype =
          options_.dtype.has_value() && is_converted(tensor.dtype)
              ? *options_.dtype
              : tensor.dtype;
      check_dtype(i, dtype);
      declare(i, dtype);
      const ByteRange in_file = source_.file_range(tensor);
      if (in_file.empty()) {
        continue;
      }
      const uint64_t begin =
          source_.storages[tensor.storage_index].file_range.begin;
      sorted.push_back(
          {static_cast<uint32_t>(i),
           tensor.storage_index,
           {in_file.begin - begin, in_file.end - begin}});
    }
    const auto is_before = [](const Member& left, const Member& right) {
      return left.storage != right.storage ? left.storage < right.storage
             : left.bytes.begin != right.bytes.begin
                 ? left.bytes.begin < right.bytes.begin
                 : left.position < right.position;
    };
    std::sort(sorted.begin(), sorted.end(), is_before);
    // Of each, the members that overlap with it, in sorted[].
    std::vector<std::pair<uint32_t, uint32_t>> pieces;
    for (size_t i = 0; i < sorted.size();) {
      size_t end = i + 1;
      uint64_t bytes_end = sorted[i].bytes.end;
      while (end < sorted.size() && sorted[end].storage == sorted[i].storage &&
             sorted[end].bytes.begin < bytes_end) {
        bytes_end = std::max(bytes_end, sorted[end].bytes.end);
        ++end;
      }
      pieces.emplace_back(static_cast<uint32_t>(i), static_cast<uint32_t>(end));
      i = end;
    }
    // In the order of the slots, as their reader comes by.
    std::sort(
        pieces.begin(),
        pieces.end(),
        [&](const auto& left, const auto& right) {
          return first_position(sorted, left) < first_position(sorted, right);
        });
    size_t next_piece = 0;
    for (size_t i = 0; i < slots_.size(); ++i) {
      if (source_.file_range(record(i)).empty()) {
        place_alone(i);
      } else if (
          next_piece < pieces.size() &&
          first_position(sorted, pieces[next_piece]) == i) {
        const auto [begin, end] = pieces[next_piece++];
        place_piece(std::span(sorted).subspan(begin, end - begin));
      }
    }
  }

  void declare(size_t position, DType dtype) {
    const TensorRecord& tensor = record(position);
    Placement& placement = plan_.placements[position];
    placement.dtype = dtype;
    placement.source_dtype = tensor.dtype;
    placement.is_conjugate = tensor.is_conjugate;
    placement.is_negative = tensor.is_negative;
    placement.dim_count = tensor.dim_count;
    placement.dims_begin = plan_.dims.size();
    for (const auto& dims : {source_.sizes(tensor), source_.strides(tensor)}) {
      plan_.dims.insert(plan_.dims.end(), dims.begin(), dims.end());
    }
  }

  static uint32_t first_position(
      const std::vector<Member>& sorted,
      const std::pair<uint32_t, uint32_t>& piece) {
    uint32_t first = sorted[piece.first].position;
    for (uint32_t i = piece.first; i < piece.second; ++i) {
      first = std::min(first, sorted[i].position);
    }
    return first;
  }

  void check_dtype(size_t position, DType dtype) const {
    if (options_.format == FileFormat::kSafetensors &&
        format::safetensors_dtype_name(dtype).empty()) {
      fail(
          ErrorKind::kUnsupported,
          named(position) + " is of the dtype " + format::dtype_name(dtype) +
              ", which safetensors does not have");
    }
    const TensorRecord& tensor = record(position);
    if (options_.format == FileFormat::kSafetensors &&
        dtype == DType::kFloat4E2M1FNX2 && tensor.dim_count == 0) {
      fail(
          ErrorKind::kUnsupported,
          named(position) +
              " is of the dtype float4_e2m1fn_x2 and has no dimensions, "
              "expected at least one for safetensors");
    }
  }

  uint32_t add_storage(size_t position, DType dtype, uint64_t elements) {
    const auto bytes = checked_mul(elements, format::item_size_bytes(dtype));
    if (!bytes.has_value() || *bytes > uint64_t{1} << 62) {
      fail(
          ErrorKind::kInvalidArgument,
          named(position) + " has " + std::to_string(elements) +
              " elements, expected fewer than 2^62 bytes");
    }
    plan_.storages.push_back({0, 0, *bytes, static_cast<uint32_t>(position)});
    return static_cast<uint32_t>(plan_.storages.size() - 1);
  }

  [[nodiscard]] uint64_t element_count(const TensorRecord& tensor) const {
    uint64_t count = 1;
    for (const int64_t size : source_.sizes(tensor)) {
      count *= static_cast<uint64_t>(size);  // the reader has checked it
    }
    return count;
  }

  void place_alone(size_t position) {
    Placement& placement = plan_.placements[position];
    placement.storage_elements = element_count(record(position));
    placement.storage =
        add_storage(position, placement.dtype, placement.storage_elements);
  }

  [[nodiscard]] bool is_same_view(size_t left, size_t right) const {
    const TensorRecord& a = record(left);
    const TensorRecord& b = record(right);
    const auto same = [](std::span<const int64_t> x,
                         std::span<const int64_t> y) {
      return std::equal(x.begin(), x.end(), y.begin(), y.end());
    };
    return a.dtype == b.dtype &&
           a.storage_offset_elements == b.storage_offset_elements &&
           a.is_conjugate == b.is_conjugate && a.is_negative == b.is_negative &&
           same(source_.sizes(a), source_.sizes(b)) &&
           same(source_.strides(a), source_.strides(b));
  }

  // Tensors that overlap.
  void place_piece(std::span<const Member> members) {
    if (options_.format == FileFormat::kTorch) {
      place_as_views(members);
      return;
    }
    std::vector<uint32_t> positions;
    for (const Member& member : members) {
      positions.push_back(member.position);
    }
    std::sort(positions.begin(), positions.end());
    const uint32_t first = positions.front();
    for (const uint32_t position : positions) {
      if (position == first || options_.tied == Tied::kCopy) {
        place_alone(position);
      } else if (
          options_.tied == Tied::kOnce && is_same_view(first, position)) {
        metadata_.push_back({plan_.names[position], plan_.names[first]});
      } else {
        fail(
            ErrorKind::kInvalidArgument,
            named(position) + " shares memory with " + named(first) +
                ", which safetensors cannot say; expected tied='copy', to "
                "write each" +
                (is_same_view(first, position) ? ", or 'once'" : ""));
      }
    }
  }

  void place_as_views(std::span<const Member> members) {
    const uint32_t first = members.front().position;
    ByteRange bytes = members.front().bytes;
    bool is_span = false;
    for (const Member& member : members) {
      bytes.end = std::max(bytes.end, member.bytes.end);
      const TensorRecord& tensor = record(member.position);
      if (tensor.dtype != record(first).dtype) {
        if (options_.tied == Tied::kCopy) {
          for (const Member& each : members) {
            place_alone(each.position);
          }
          return;
        }
        fail(
            ErrorKind::kUnsupported,
            named(member.position) + " of " + format::dtype_name(tensor.dtype) +
                " shares memory with " + named(first) + " of " +
                format::dtype_name(record(first).dtype) +
                ", which torch cannot load; expected tied='copy', to write "
                "each");
      }
    }
    const uint64_t item_bytes = format::item_size_bytes(record(first).dtype);
    const uint64_t elements = bytes.size_bytes() / item_bytes;
    for (const Member& member : members) {
      is_span = is_span || !(member.bytes == bytes) ||
                !is_row_major(record(member.position));
    }
    const uint32_t storage =
        add_storage(first, plan_.placements[first].dtype, elements);
    for (const Member& member : members) {
      Placement& placement = plan_.placements[member.position];
      placement.storage = storage;
      placement.is_span = is_span;
      placement.offset_elements =
          (member.bytes.begin - bytes.begin) / item_bytes;
      placement.storage_elements = elements;
    }
  }

  [[nodiscard]] bool is_row_major(const TensorRecord& tensor) const {
    if (tensor.is_conjugate || tensor.is_negative) {
      return false;  // the elements as they lie in memory, not their values
    }
    const auto sizes = source_.sizes(tensor);
    const auto strides = source_.strides(tensor);
    int64_t stride = 1;
    for (size_t dim = sizes.size(); dim-- > 0;) {
      if (sizes[dim] != 1 && strides[dim] != stride) {
        return false;
      }
      stride *= sizes[dim];
    }
    return true;
  }

  // huggingface_hub, serialization/_base.py,
  // split_state_dict_into_shards_factory: a file is full when the next storage
  // would make it larger than it may be.
  void assign_to_files() {
    uint32_t file = 0;
    uint64_t file_bytes = 0;
    std::vector<uint32_t> counts(1, 0);
    for (PlannedStorage& storage : plan_.storages) {
      if (options_.shard_size_bytes != 0 && counts[file] != 0 &&
          file_bytes + storage.size_bytes > options_.shard_size_bytes) {
        ++file;
        file_bytes = 0;
        counts.push_back(0);
      }
      storage.file = file;
      storage.storage = counts[file]++;
      file_bytes += storage.size_bytes;
    }
    plan_.files.resize(counts.size());
    for (PlannedFile& each : plan_.files) {
      each.index.files.push_back({path_, metadata_, 0});
    }
    for (const PlannedStorage& storage : plan_.storages) {
      plan_.files[storage.file].index.storages.push_back(
          {{0, storage.size_bytes}, 0});
    }
    if (options_.keeps_tree) {
      add_tensors_of_tree();
    } else {
      add_named_tensors();
    }
  }

  void add_tensors_of_tree() {
    PlannedFile& file = plan_.files.front();
    file.index.values = source_.values;
    file.index.tensors.resize(source_.tensors.size());
    file.is_left_out.assign(source_.tensors.size(), true);
    for (size_t i = 0; i < slots_.size(); ++i) {
      const uint32_t tensor_index = source_.slots[slots_[i]].tensor_index;
      if (file.is_left_out[tensor_index]) {
        file.is_left_out[tensor_index] = false;
        file.index.tensors[tensor_index] = planned_record(file.index, i);
      }
    }
  }

  void add_named_tensors() {
    std::vector<std::vector<std::pair<uint32_t, uint32_t>>> tensors(
        plan_.files.size());
    for (size_t i = 0; i < slots_.size(); ++i) {
      const uint32_t storage = plan_.placements[i].storage;
      if (storage == kNoStorage) {
        continue;
      }
      const uint32_t number = plan_.storages[storage].file;
      CheckpointIndex& index = plan_.files[number].index;
      tensors[number].emplace_back(
          static_cast<uint32_t>(i),
          static_cast<uint32_t>(index.tensors.size()));
      index.tensors.push_back(planned_record(index, i));
    }
    for (size_t number = 0; number < plan_.files.size(); ++number) {
      add_dict(plan_.files[number].index, tensors[number]);
    }
  }

  // A dict of names to tensors, and, where there is nowhere else for them, the
  // metadata.
  void add_dict(
      CheckpointIndex& index,
      const std::vector<std::pair<uint32_t, uint32_t>>& tensors) const {
    format::ValueTree& values = index.values;
    const size_t text_count =
        options_.format == FileFormat::kTorch ? metadata_.size() : 0;
    const auto run = values.add_run(2 * (tensors.size() + text_count));
    const NodeId root = values.add_container(NodeKind::kDict, run);
    values.set_root(root);
    size_t at = 0;
    for (const auto& [position, tensor] : tensors) {
      const NodeId key = values.add_text_node(
          NodeKind::kString,
          std::string_view(plan_.names[position]));
      values.set_value(run, at++, key);
      values.set_value(run, at++, values.add_tensor(tensor));
      index.slots.push_back({root, key, format::kNoPrefix, tensor});
    }
    for (size_t i = 0; i < text_count; ++i) {
      for (const std::string& text : {metadata_[i].name, metadata_[i].value}) {
        values.set_value(
            run,
            at++,
            values.add_text_node(NodeKind::kString, std::string_view(text)));
      }
    }
  }

  [[nodiscard]] TensorRecord planned_record(
      CheckpointIndex& index,
      size_t position) const {
    const TensorRecord& source = record(position);
    const Placement& placement = plan_.placements[position];
    TensorRecord tensor = source;
    tensor.dtype = placement.dtype;
    tensor.storage_index = plan_.storages[placement.storage].storage;
    tensor.storage_offset_elements = placement.offset_elements;
    tensor.dims_begin = index.dims.size();
    const auto sizes = source_.sizes(source);
    index.dims.insert(index.dims.end(), sizes.begin(), sizes.end());
    if (placement.is_span) {
      const auto strides = source_.strides(source);
      index.dims.insert(index.dims.end(), strides.begin(), strides.end());
      return tensor;
    }
    tensor.is_conjugate = tensor.is_negative = false;
    index.dims.resize(index.dims.size() + sizes.size());
    int64_t stride = 1;
    for (size_t dim = sizes.size(); dim-- > 0;) {
      index.dims[tensor.dims_begin + sizes.size() + dim] = stride;
      // Beside a size of 0 others are not bounded; those strides mean nothing.
      if (__builtin_mul_overflow(
              stride,
              std::max<int64_t>(sizes[dim], 1),
              &stride)) {
        stride = 1;
      }
    }
    return tensor;
  }

  const std::string& path_;
  const CheckpointIndex& source_;
  const std::span<const uint32_t> slots_;
  const PlanOptions& options_;
  std::vector<format::MetadataEntry> metadata_;
  Plan plan_;
};

}  // namespace

void check_is_strided(
    const std::string& path,
    const std::string& name,
    TensorKind kind) {
  if (kind != TensorKind::kStrided) {
    throw CheckpointError(
        ErrorKind::kUnsupported,
        path,
        "the tensor " + quoted(name) + " is " + kind_name(kind) +
            ", expected a strided one");
  }
}

Tied tied_of(const std::string& path, const std::string& text) {
  if (text == "error") {
    return Tied::kError;
  }
  if (text == "copy") {
    return Tied::kCopy;
  }
  if (text == "once") {
    return Tied::kOnce;
  }
  throw CheckpointError(
      ErrorKind::kInvalidArgument,
      path,
      "tied is " + quoted(text) + ", expected 'error', 'copy' or 'once'");
}

Plan make_plan(
    const std::string& path,
    const CheckpointIndex& source,
    std::span<const uint32_t> slots,
    std::vector<std::string> names,
    const PlanOptions& options) {
  return Planner(path, source, slots, std::move(names), options).make();
}

}  // namespace ckpt_streamer::write
