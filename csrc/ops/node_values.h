// Nodes of a ValueTree as torch's values, for the Python package.
//
// Pure functions.
#pragma once

#include <ATen/core/ivalue.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "format/value_tree.h"

namespace ckpt_streamer::ops {

// None, a bool, an int, a float, a complex number and a string are themselves.
// Others are tuples that begin with their kind:
//   ("int", text)                     one that does not fit int64
//   ("bytes", latin1)
//   ("array", dtype, sizes, is_scalar, is_fortran_order, latin1)
//   ("global", name)
//   ("tuple" | "list" | "set", count, is_plain)
//   ("dict", count, type_name)
//   ("object", type_name)
// latin1: bytes as a text of characters below 256. is_plain:
// format::is_plain(). REQUIRES: a node of the tree that is no tensor.
[[nodiscard]] c10::IValue value_of(
    const format::ValueTree& tree,
    format::NodeId id);

// Texts on their way to Python, which splits one text faster than it takes a
// list of many.
class TextLot {
 public:
  void add(std::string_view text);

  // One text, joined by newlines; or a list of them if a newline is in one.
  // REQUIRES: add() was called.
  [[nodiscard]] c10::IValue take() &&;

 private:
  std::string joined_;
  std::vector<size_t> ends_;
  bool has_newline_ = false;
};

}  // namespace ckpt_streamer::ops
