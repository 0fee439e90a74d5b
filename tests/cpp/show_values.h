// A ValueTree as one line of text, for expectations.
#pragma once

#include <string>
#include <vector>

#include "format/text.h"
#include "format/value_tree.h"

namespace ckpt_streamer::testing {

// Python's literals; a tensor is T<index>, an array its dtype, sizes and bytes,
// an object or dict of a class type(args, **keyword_args)[items]{entries}~state
// as far as it has them, and what is inside itself "...".
class ValueShower {
 public:
  explicit ValueShower(const format::ValueTree& tree)
      : tree_(tree), is_open_(tree.size()) {}

  std::string show(format::NodeId id) {
    if (id == format::kNoNode) {
      return "?";
    }
    if (is_open_[id]) {
      return "...";
    }
    is_open_[id] = true;
    std::string text = show_open(id);
    is_open_[id] = false;
    return text;
  }

 private:
  using NodeKind = format::NodeKind;

  std::string list(std::span<const format::NodeId> items) {
    std::string text;
    for (const format::NodeId item : items) {
      text += (text.empty() ? "" : ", ") + show(item);
    }
    return text;
  }
  std::string dict(std::span<const format::NodeId> entries) {
    std::string text;
    for (size_t i = 0; i < entries.size(); i += 2) {
      text += (text.empty() ? "" : ", ") + show(entries[i]) + ": " +
              show(entries[i + 1]);
    }
    return "{" + text + "}";
  }
  std::string parts(const format::ObjectNode& object, bool has_entries) {
    std::string text;
    if (object.args != format::kNoNode) {
      text += show(object.args);
    }
    if (object.keyword_args != format::kNoNode) {
      text += "**" + show(object.keyword_args);
    }
    if (!object.items.empty()) {
      text += "[" + list(object.items) + "]";
    }
    if (has_entries) {
      text += dict(object.entries);
    }
    if (object.state != format::kNoNode) {
      text += "~" + show(object.state);
    }
    return text;
  }

  std::string show_open(format::NodeId id) {
    switch (tree_.kind(id)) {
      case NodeKind::kNone:
        return "None";
      case NodeKind::kBool:
        return tree_.bool_value(id) ? "True" : "False";
      case NodeKind::kInt:
        return std::to_string(tree_.int_value(id));
      case NodeKind::kBigInt:
      case NodeKind::kGlobal:
        return std::string(tree_.text(id));
      case NodeKind::kFloat:
        return format::float_text(tree_.float_value(id));
      case NodeKind::kComplex:
        return "complex(" + list(tree_.items(id)) + ")";
      case NodeKind::kString:
        return format::quoted(tree_.text(id));
      case NodeKind::kBytes:
        return "b" + format::quoted(tree_.text(id));
      case NodeKind::kTuple:
        return "(" + list(tree_.items(id)) + ")";
      case NodeKind::kList:
        return "[" + list(tree_.items(id)) + "]";
      case NodeKind::kSet:
        return "set(" + list(tree_.items(id)) + ")";
      case NodeKind::kDict: {
        const format::ObjectNode object = tree_.object(id);
        return (object.type_name == "dict" ? ""
                                           : std::string(object.type_name)) +
               parts(object, true);
      }
      case NodeKind::kTensor: {
        const format::ObjectNode object = tree_.object(id);
        const std::string text = "T" + std::to_string(tree_.tensor_index(id));
        return object.type_name == "torch.Tensor" &&
                       object.state == format::kNoNode
                   ? text
                   : text + "<" + std::string(object.type_name) + ">" +
                         parts(object, false);
      }
      case NodeKind::kArray: {
        const format::ArrayNode array = tree_.array(id);
        return std::string(array.is_scalar ? "scalar" : "array") +
               (array.is_fortran_order ? "F(" : "(") +
               std::string(array.dtype) + ", [" + list(array.sizes) + "], " +
               format::quoted(array.bytes) + ")";
      }
      case NodeKind::kObject: {
        const format::ObjectNode object = tree_.object(id);
        return std::string(object.type_name) +
               (object.args == format::kNoNode ? "()" : "") +
               parts(object, !object.entries.empty());
      }
    }
    return "";
  }

  const format::ValueTree& tree_;
  std::vector<bool> is_open_;
};

inline std::string show_values(const format::ValueTree& tree) {
  return ValueShower(tree).show(tree.root());
}

}  // namespace ckpt_streamer::testing
