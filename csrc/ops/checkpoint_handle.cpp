#include "ops/checkpoint_handle.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <iterator>
#include <numeric>
#include <span>
#include <string_view>
#include <utility>

#include "format/tree_walks.h"
#include "ops/errors.h"
#include "ops/node_values.h"
#include "ops/partial_reads.h"

namespace ckpt_streamer::ops {
namespace {

using format::kNoNode;
using format::NodeId;
using format::NodeKind;

constexpr size_t kLongestLeafNamesBytes = size_t{64} << 20;

int64_t number_of(NodeId node) {
  return node == kNoNode ? -1 : static_cast<int64_t>(node);
}

// Every stride-th of the nodes, from the first.
at::Tensor numbers_of(std::span<const NodeId> nodes, size_t stride = 1) {
  const size_t count = (nodes.size() + stride - 1) / stride;
  at::Tensor result = at::empty({static_cast<int64_t>(count)}, at::kLong);
  auto* const numbers = result.mutable_data_ptr<int64_t>();
  for (size_t i = 0; i < count; ++i) {
    numbers[i] = number_of(nodes[i * stride]);
  }
  return result;
}

}  // namespace

CheckpointHandle::CheckpointHandle(
    std::shared_ptr<const CheckpointTensors> checkpoint,
    const stream::Bounds& bounds,
    std::optional<at::ScalarType> dtype)
    : checkpoint_(std::move(checkpoint)), bounds_(bounds), dtype_(dtype) {}

std::vector<std::string> CheckpointHandle::paths() const {
  std::vector<std::string> paths;
  for (const format::FileRecord& file : index().files) {
    paths.push_back(file.path);
  }
  return paths;
}

std::vector<std::tuple<std::string, std::string>> CheckpointHandle::texts()
    const {
  std::vector<std::tuple<std::string, std::string>> texts;
  const auto add = [&](const std::vector<format::MetadataEntry>& entries) {
    for (const format::MetadataEntry& entry : entries) {
      texts.emplace_back(entry.name, entry.value);
    }
  };
  add(index().metadata);
  for (const format::FileRecord& file : index().files) {
    add(file.metadata);
  }
  return texts;
}

int64_t CheckpointHandle::storage_bytes() const {
  const auto& storages = index().storages;
  return static_cast<int64_t>(std::accumulate(
      storages.begin(),
      storages.end(),
      uint64_t{0},
      [](uint64_t sum, const format::StorageRecord& storage) {
        return sum + storage.file_range.size_bytes();
      }));
}

NodeId CheckpointHandle::checked(int64_t node) const {
  TORCH_CHECK_INDEX(
      node >= 0 && static_cast<size_t>(node) < index().values.size(),
      "node ",
      node,
      " of ",
      index().values.size());
  return static_cast<NodeId>(node);
}

c10::IValue CheckpointHandle::values(const std::vector<int64_t>& nodes) {
  const format::ValueTree& tree = index().values;
  std::vector<size_t> tensors;
  for (const int64_t number : nodes) {
    if (const NodeId node = checked(number);
        tree.kind(node) == NodeKind::kTensor) {
      tensors.push_back(tree.tensor_index(node));
    }
  }
  const size_t most_tensors =
      tensors.empty() ? 0 : lookups()->admit_some(tensors);
  c10::impl::GenericList values(c10::AnyType::get());
  values.reserve(nodes.size());
  size_t tensor_count = 0;
  for (const int64_t number : nodes) {
    const auto node = static_cast<NodeId>(number);
    if (tree.kind(node) == NodeKind::kTensor) {
      if (tensor_count == most_tensors) {
        break;
      }
      ++tensor_count;
    }
    values.push_back(
        with_torch_errors([&] { return checkpoint_->value(node); }));
  }
  return values;
}

std::optional<at::Tensor> CheckpointHandle::tensor(const std::string& name) {
  return read(name, [](const PlacedTensor& whole) { return whole; });
}

std::optional<at::Tensor> CheckpointHandle::slice(
    const std::string& name,
    int64_t begin,
    int64_t end) {
  return read(name, [&](const PlacedTensor& whole) {
    return slice_of(whole, name, begin, end);
  });
}

std::optional<at::Tensor> CheckpointHandle::read(
    const std::string& name,
    const std::function<PlacedTensor(const PlacedTensor&)>& part_of) {
  Conversion conversion(dtype_);
  return with_torch_errors([&]() -> std::optional<at::Tensor> {
    const std::optional<uint32_t> tensor_index = find_tensor(name);
    if (!tensor_index.has_value()) {
      return std::nullopt;
    }
    const PlacedTensor whole = checkpoint_->placed_tensor(*tensor_index);
    const PlacedTensor part = part_of(whole);
    return lookups()->read_part(*tensor_index, whole, part, conversion);
  });
}

std::optional<uint32_t> CheckpointHandle::find_tensor(const std::string& name) {
  if (finder().find(name).empty()) {
    return std::nullopt;
  }
  return index().slots[finder().find_one(name)].tensor_index;
}

const format::SlotFinder& CheckpointHandle::finder() {
  const std::lock_guard lock(mutex_);
  if (!finder_.has_value()) {
    finder_.emplace(index(), index().all_slots());
  }
  return *finder_;
}

at::Tensor CheckpointHandle::items(int64_t node) const {
  const format::ValueTree& tree = index().values;
  const NodeId id = checked(node);
  switch (tree.kind(id)) {
    case NodeKind::kTuple:
    case NodeKind::kList:
    case NodeKind::kSet:
      return numbers_of(tree.items(id));
    case NodeKind::kDict:
      return entry_values(node);
    case NodeKind::kObject:
      return numbers_of(tree.object(id).items);
    default:
      return numbers_of({});
  }
}

at::Tensor CheckpointHandle::entry_values(int64_t node) const {
  const auto entries = index().values.object(checked(node)).entries;
  return numbers_of(entries.empty() ? entries : entries.subspan(1), 2);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> CheckpointHandle::children(
    const std::vector<int64_t>& nodes) const {
  const format::ValueTree& tree = index().values;
  std::vector<int64_t> counts;
  counts.reserve(nodes.size());
  std::vector<int64_t> values;
  std::vector<int64_t> keys;
  for (const int64_t node : nodes) {
    const NodeId id = checked(node);
    const size_t begin = values.size();
    if (tree.kind(id) == NodeKind::kDict) {
      const auto entries = tree.object(id).entries;
      for (size_t i = 0; i < entries.size(); i += 2) {
        keys.push_back(number_of(entries[i]));
        values.push_back(number_of(entries[i + 1]));
      }
    } else {
      for (const NodeId item : tree.items(id)) {
        keys.push_back(-1);
        values.push_back(number_of(item));
      }
    }
    counts.push_back(static_cast<int64_t>(values.size() - begin));
  }
  return {
      at::tensor(counts, at::kLong),
      at::tensor(values, at::kLong),
      at::tensor(keys, at::kLong)};
}

at::Tensor CheckpointHandle::kinds(const std::vector<int64_t>& nodes) const {
  const format::ValueTree& tree = index().values;
  std::vector<int64_t> kinds;
  kinds.reserve(nodes.size());
  for (const int64_t node : nodes) {
    const NodeKind kind = tree.kind(checked(node));
    kinds.push_back(
        kind == NodeKind::kList     ? 1
        : kind == NodeKind::kDict   ? 2
        : kind == NodeKind::kTensor ? 3
                                    : 0);
  }
  return at::tensor(kinds, at::kLong);
}

c10::IValue CheckpointHandle::keys(int64_t node) const {
  const format::ValueTree& tree = index().values;
  const auto entries = tree.object(checked(node)).entries;
  TextLot texts;
  for (size_t i = 0; i < entries.size(); i += 2) {
    if (tree.kind(entries[i]) != NodeKind::kString) {
      return numbers_of(entries, 2);
    }
    texts.add(tree.text(entries[i]));
  }
  return entries.empty() ? c10::IValue(numbers_of(entries))
                         : std::move(texts).take();
}

std::vector<int64_t> CheckpointHandle::parts(int64_t node) const {
  const format::ObjectNode object = index().values.object(checked(node));
  return {
      number_of(object.callable),
      number_of(object.args),
      number_of(object.keyword_args),
      number_of(object.state),
      static_cast<int64_t>(object.file_offset)};
}

c10::IValue CheckpointHandle::leaves() const {
  TextLot names;
  size_t names_bytes = 0;
  std::vector<NodeId> nodes;
  format::for_each_leaf(
      index().values,
      [&](std::string_view name, NodeId node) {
        names_bytes += name.size();
        TORCH_CHECK_VALUE(
            names_bytes <= kLongestLeafNamesBytes,
            index().files.front().path,
            ": the names of the values beside the tensors are of more than ",
            kLongestLeafNamesBytes,
            " bytes in all; read the ones you need from the tree");
        names.add(name);
        nodes.push_back(node);
      });
  if (nodes.empty()) {
    return {};
  }
  return c10::ivalue::Tuple::create(
      {std::move(names).take(), c10::IValue(numbers_of(nodes))});
}

c10::intrusive_ptr<SlotList> CheckpointHandle::slots() const {
  std::vector<uint32_t> slots = index().all_slots();
  checkpoint_->sort_in_file_order(slots);
  return c10::make_intrusive<SlotList>(checkpoint_, std::move(slots));
}

c10::intrusive_ptr<SlotList> CheckpointHandle::slots_under(int64_t node) const {
  const NodeId id = checked(node);
  const std::vector<bool> is_reached =
      format::reachable_from(index().values, id);
  std::vector<uint32_t> slots;
  for (size_t i = 0; i < index().slots.size(); ++i) {
    const NodeId container = index().slots[i].container;
    if (container != kNoNode && is_reached[container]) {
      slots.push_back(static_cast<uint32_t>(i));
    }
  }
  checkpoint_->sort_in_file_order(slots);
  return c10::make_intrusive<SlotList>(checkpoint_, std::move(slots));
}

c10::intrusive_ptr<WindowHandle> CheckpointHandle::lookups() {
  const std::lock_guard lock(mutex_);
  if (lookups_ == nullptr) {
    const size_t tensor_count = index().tensors.size();
    std::vector<ByteRange> spans;
    spans.reserve(tensor_count);
    for (size_t i = 0; i < tensor_count; ++i) {
      spans.push_back(checkpoint_->span(static_cast<uint32_t>(i)));
    }
    lookups_ = with_torch_errors([&] {
      return c10::make_intrusive<WindowHandle>(
          bounds_,
          checkpoint_,
          std::move(spans),
          /*dtype=*/std::nullopt,
          /*makes_large_results=*/false);
    });
  }
  return lookups_;
}

c10::intrusive_ptr<CheckpointHandle> open_checkpoint(
    const std::vector<std::string>& paths,
    bool is_list,
    int64_t memory_limit_bytes,
    std::optional<at::ScalarType> dtype,
    bool verifies,
    bool drop_page_cache,
    const OptionalBudget& budget) {
  const stream::Bounds bounds =
      checked_bounds(memory_limit_bytes, drop_page_cache, budget);
  (void)Conversion(dtype);  // refuses others, before any I/O
  const Verify verify = verifies ? Verify::kOn : Verify::kOff;
  return with_torch_errors([&] {
    return c10::make_intrusive<CheckpointHandle>(
        is_list ? std::make_shared<const CheckpointTensors>(
                      std::span(paths),
                      bounds.memory_limit_bytes,
                      verify)
                : std::make_shared<const CheckpointTensors>(
                      paths.at(0),
                      bounds.memory_limit_bytes,
                      verify),
        bounds,
        dtype);
  });
}

}  // namespace ckpt_streamer::ops
