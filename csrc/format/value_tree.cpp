#include "format/value_tree.h"

#include <bit>
#include <limits>

#include "base/error.h"

namespace ckpt_streamer::format {
namespace {

constexpr size_t kMostNodes = std::numeric_limits<uint32_t>::max() - 1;

[[noreturn]] void fail_too_large() {
  throw CheckpointError(
      ErrorKind::kUnsupported,
      "",
      "the checkpoint has 2^32 values or more, expected fewer");
}

}  // namespace

NodeId ValueTree::add(NodeKind kind, uint32_t first, uint64_t second) {
  if (nodes_.size() >= kMostNodes) {
    fail_too_large();
  }
  nodes_.push_back({first, kind, false, second});
  return static_cast<NodeId>(nodes_.size() - 1);
}

NodeId ValueTree::add_float(double value) {
  return add(NodeKind::kFloat, 0, std::bit_cast<uint64_t>(value));
}

double ValueTree::float_value(NodeId id) const noexcept {
  return std::bit_cast<double>(nodes_[id].second);
}

ValueTree::Text ValueTree::add_text(std::string_view text) {
  if (text.size() > std::numeric_limits<uint32_t>::max()) {
    fail_too_large();
  }
  const Text result{texts_.size(), static_cast<uint32_t>(text.size())};
  texts_ += text;
  return result;
}

ValueTree::Run ValueTree::add_run(size_t count) {
  if (count >= kMostNodes) {
    fail_too_large();
  }
  const Run run{pool_.size(), static_cast<uint32_t>(count)};
  pool_.resize(pool_.size() + count, kNoNode);
  return run;
}

NodeId ValueTree::add_tensor(uint32_t tensor_index, const ObjectParts& parts) {
  objects_.push_back(parts);
  return add(NodeKind::kTensor, tensor_index, objects_.size());
}

NodeId ValueTree::add_object(NodeKind kind, const ObjectParts& parts) {
  objects_.push_back(parts);
  const NodeId id = add(kind, static_cast<uint32_t>(objects_.size() - 1), 0);
  nodes_[id].has_parts = true;
  return id;
}

NodeId ValueTree::add_array(const ArrayParts& parts) {
  arrays_.push_back(parts);
  return add(NodeKind::kArray, static_cast<uint32_t>(arrays_.size() - 1), 0);
}

NodeId ValueTree::add_copy(const ValueTree& other, NodeId array) {
  const ArrayNode node = other.array(array);
  ArrayParts parts;
  parts.dtype = add_text_node(NodeKind::kString, node.dtype);
  parts.is_scalar = node.is_scalar;
  parts.is_fortran_order = node.is_fortran_order;
  parts.bytes = add_text(node.bytes);
  return add_array(parts);
}

ValueTree::ObjectParts& ValueTree::object_parts(NodeId id) noexcept {
  const Node& node = nodes_[id];
  return objects_
      [node.kind == NodeKind::kTensor ? node.second - 1 : node.first];
}

NodeId ValueTree::add_flat_entry(std::string_view name, uint32_t tensor_index) {
  if (root_ == kNoNode) {
    root_ = add_container(NodeKind::kDict, {});
  }
  const NodeId key = add_text_node(NodeKind::kString, name);
  pool_.push_back(key);
  pool_.push_back(add_tensor(tensor_index));
  nodes_[root_].first += 2;
  return key;
}

void ValueTree::reserve_entries(size_t count) {
  nodes_.reserve(nodes_.size() + 2 * count);
  pool_.reserve(pool_.size() + 2 * count);
}

void ValueTree::shrink_to_fit() {
  nodes_.shrink_to_fit();
  pool_.shrink_to_fit();
  objects_.shrink_to_fit();
  arrays_.shrink_to_fit();
  texts_.shrink_to_fit();
}

std::span<const NodeId> ValueTree::entries(NodeId id) const noexcept {
  const Node& node = nodes_[id];
  if (!node.has_parts) {
    return {pool_.data() + node.second, node.first};
  }
  const Run& run = objects_[node.first].entries;
  return {pool_.data() + run.begin, run.count};
}

ObjectNode ValueTree::object(NodeId id) const noexcept {
  const Node& node = nodes_[id];
  ObjectNode result;
  const ObjectParts* parts = nullptr;
  if (node.has_parts) {
    parts = &objects_[node.first];
  } else if (node.kind == NodeKind::kTensor && node.second != 0) {
    parts = &objects_[node.second - 1];
  }
  if (parts == nullptr) {
    const bool is_dict = node.kind == NodeKind::kDict;
    result.type_name = is_dict ? "dict" : "torch.Tensor";
    if (is_dict) {
      result.entries = entries(id);
    }
    return result;
  }
  result.type_name = parts->type == kNoNode ? "<object>" : text(parts->type);
  result.callable = parts->callable;
  result.args = parts->args;
  result.keyword_args = parts->keyword_args;
  result.state = parts->state;
  result.items = {pool_.data() + parts->items.begin, parts->items.count};
  result.entries = {pool_.data() + parts->entries.begin, parts->entries.count};
  result.file_offset = parts->file_offset;
  return result;
}

ArrayNode ValueTree::array(NodeId id) const noexcept {
  const ArrayParts& parts = arrays_[nodes_[id].first];
  return {
      text(parts.dtype),
      {pool_.data() + parts.sizes.begin, parts.sizes.count},
      parts.is_scalar,
      parts.is_fortran_order,
      {texts_.data() + parts.bytes.begin, parts.bytes.size_bytes}};
}

}  // namespace ckpt_streamer::format
