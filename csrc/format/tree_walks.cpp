#include "format/tree_walks.h"

#include <span>
#include <string>

#include "format/value_text.h"

namespace ckpt_streamer::format {
namespace {

constexpr size_t kMostPlainItems = 65536;
constexpr size_t kDeepestPlainTuple = 32;

// Counts what is held into `count`.
bool is_plain_within(
    const ValueTree& tree,
    std::span<const NodeId> items,
    size_t depth,
    size_t& count) {
  for (const NodeId item : items) {
    if (++count > kMostPlainItems) {
      return false;
    }
    switch (tree.kind(item)) {
      case NodeKind::kTuple:
        if (depth == kDeepestPlainTuple ||
            !is_plain_within(tree, tree.items(item), depth + 1, count)) {
          return false;
        }
        break;
      case NodeKind::kList:
      case NodeKind::kDict:
      case NodeKind::kSet:
      case NodeKind::kTensor:
        return false;
      default:
        break;
    }
  }
  return true;
}

bool is_leaf(const ValueTree& tree, NodeId id) {
  switch (tree.kind(id)) {
    case NodeKind::kTensor:
    case NodeKind::kDict:
    case NodeKind::kList:
      return false;
    case NodeKind::kTuple:
      return is_plain(tree, id);
    default:
      return true;
  }
}

// A container on the way, and the next of its values.
struct Frame {
  NodeId node;
  size_t name_bytes;
  size_t next = 0;
};

// Appends the key of the value that `frame` is at and returns that value.
NodeId step(const ValueTree& tree, Frame& frame, std::string& name) {
  const size_t position = frame.next++;
  name.resize(frame.name_bytes);
  name += frame.name_bytes > 0 ? "." : "";
  if (tree.kind(frame.node) == NodeKind::kDict) {
    const auto entries = tree.entries(frame.node);
    name += key_text(tree, entries[2 * position]);
    return entries[2 * position + 1];
  }
  name += std::to_string(position);
  return tree.items(frame.node)[position];
}

size_t value_count(const ValueTree& tree, NodeId container) {
  return tree.kind(container) == NodeKind::kDict
             ? tree.entries(container).size() / 2
             : tree.items(container).size();
}

}  // namespace

bool is_plain(const ValueTree& tree, NodeId id) {
  const NodeKind kind = tree.kind(id);
  size_t count = 0;
  return (kind == NodeKind::kTuple || kind == NodeKind::kSet) &&
         is_plain_within(tree, tree.items(id), 1, count);
}

void for_each_leaf(
    const ValueTree& tree,
    const std::function<void(std::string_view name, NodeId id)>& visit) {
  if (tree.root() == kNoNode) {
    return;
  }
  std::vector<bool> is_seen(tree.size(), false);
  std::vector<Frame> frames;
  std::string name;
  const auto enter = [&](NodeId id) {
    if (is_leaf(tree, id)) {
      visit(name, id);
    } else if (tree.kind(id) != NodeKind::kTensor && !is_seen[id]) {
      is_seen[id] = true;
      frames.push_back({id, name.size()});
    }
  };
  enter(tree.root());
  while (!frames.empty()) {
    Frame& frame = frames.back();
    if (frame.next == value_count(tree, frame.node)) {
      frames.pop_back();
    } else {
      enter(step(tree, frame, name));
    }
  }
}

std::vector<bool> reachable_from(const ValueTree& tree, NodeId id) {
  std::vector<bool> is_reached(tree.size(), false);
  std::vector<NodeId> unvisited;
  const auto reach = [&](NodeId node) {
    if (node != kNoNode && !is_reached[node]) {
      is_reached[node] = true;
      unvisited.push_back(node);
    }
  };
  const auto reach_all = [&](std::span<const NodeId> nodes) {
    for (const NodeId node : nodes) {
      reach(node);
    }
  };
  reach(id);
  while (!unvisited.empty()) {
    const NodeId node = unvisited.back();
    unvisited.pop_back();
    switch (tree.kind(node)) {
      case NodeKind::kTuple:
      case NodeKind::kList:
      case NodeKind::kSet:
        reach_all(tree.items(node));
        break;
      case NodeKind::kDict:
      case NodeKind::kTensor:
      case NodeKind::kObject: {
        const ObjectNode object = tree.object(node);
        reach_all(object.items);
        reach_all(object.entries);
        for (const NodeId part :
             {object.callable,
              object.args,
              object.keyword_args,
              object.state}) {
          reach(part);
        }
        break;
      }
      default:
        break;
    }
  }
  return is_reached;
}

}  // namespace ckpt_streamer::format
