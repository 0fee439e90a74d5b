// Keys of a ValueTree as parts of names. Everything returned is valid UTF-8;
// what is not a string itself is short. Pure functions.
#pragma once

#include <string>

#include "format/value_tree.h"

namespace ckpt_streamer::format {

// Python's str() of a dict's key, as far as a name needs it: containers in
// tuples are not opened, and objects are "<module.name object>".
// REQUIRES: a node of the tree.
[[nodiscard]] std::string key_text(const ValueTree& tree, NodeId key);

}  // namespace ckpt_streamer::format
