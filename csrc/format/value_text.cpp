#include "format/value_text.h"

#include <string_view>

#include "format/text.h"

namespace ckpt_streamer::format {
namespace {

constexpr size_t kLongestTextBytes = 256;

std::string element_text(const ValueTree& tree, NodeId id) {
  // Not there yet: a key that holds itself.
  if (id == kNoNode) {
    return "...";
  }
  switch (tree.kind(id)) {
    case NodeKind::kString:
      return quoted(tree.text(id));
    case NodeKind::kTuple:
      return "(...)";
    default:
      return key_text(tree, id);
  }
}

}  // namespace

std::string key_text(const ValueTree& tree, NodeId key) {
  switch (tree.kind(key)) {
    case NodeKind::kNone:
      return "None";
    case NodeKind::kBool:
      return tree.bool_value(key) ? "True" : "False";
    case NodeKind::kInt:
      return std::to_string(tree.int_value(key));
    case NodeKind::kBigInt:
      return std::string(tree.text(key).substr(0, kLongestTextBytes));
    case NodeKind::kFloat:
      return float_text(tree.float_value(key));
    case NodeKind::kString:
    case NodeKind::kGlobal:
      return std::string(tree.text(key));
    case NodeKind::kBytes:
      return "b" + quoted(tree.text(key));
    case NodeKind::kTuple: {
      const auto items = tree.items(key);
      std::string text = "(";
      for (const NodeId item : items) {
        if (text.size() > kLongestTextBytes) {
          text += "...";
          break;
        }
        text += (text.size() > 1 ? ", " : "") + element_text(tree, item);
      }
      return text + (items.size() == 1 ? ",)" : ")");
    }
    case NodeKind::kTensor:
    case NodeKind::kObject:
      return "<" + std::string(tree.object(key).type_name) + " object>";
    case NodeKind::kComplex:
    case NodeKind::kList:
    case NodeKind::kDict:
    case NodeKind::kSet:
    case NodeKind::kArray:
      return "<object>";
  }
  return "";
}

}  // namespace ckpt_streamer::format
