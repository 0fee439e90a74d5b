// Ways through a ValueTree that several readers need. Each visits a node once,
// keeps a stack of its own and takes O(nodes) time and memory.
//
// Pure functions.
#pragma once

#include <functional>
#include <string_view>
#include <vector>

#include "format/value_tree.h"

namespace ckpt_streamer::format {

// Whether a tuple or set holds nothing but numbers, texts, objects and such
// tuples, 65,536 at most, shared ones counted as often as they are there: what
// is better read as a whole. False for other kinds.
[[nodiscard]] bool is_plain(const ValueTree& tree, NodeId id);

// Calls `visit` with each value that is no tensor, no dict, no list and no
// tuple but a plain one, and the keys that lead to it from the root, joined by
// '.' (until `visit` returns); objects and sets are values as a whole.
void for_each_leaf(
    const ValueTree& tree,
    const std::function<void(std::string_view name, NodeId id)>& visit);

// Whether each node can be reached from `id`, by whatever holds it: keys,
// arguments and states too.
[[nodiscard]] std::vector<bool> reachable_from(
    const ValueTree& tree,
    NodeId id);

}  // namespace ckpt_streamer::format
