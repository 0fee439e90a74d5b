#include "format/pickle_text.h"

#include <string_view>

#include "format/text.h"

namespace ckpt_streamer::format {
namespace {

constexpr size_t kLongestKeyTextBytes = 256;

}  // namespace

std::string key_text(const PickleTree& tree, ValueId key) {
  switch (tree.kind(key)) {
    case ValueKind::kNone:
      return "None";
    case ValueKind::kBool:
      return tree.bool_value(key) ? "True" : "False";
    case ValueKind::kInt:
      return std::to_string(tree.int_value(key));
    case ValueKind::kBigInt:
      return std::string(tree.text(key).substr(0, kLongestKeyTextBytes));
    case ValueKind::kFloat:
      return float_text(tree.float_value(key));
    case ValueKind::kBytes:
      return "b" + quoted(tree.text(key));
    case ValueKind::kTuple: {
      std::string text = "(";
      for (const ValueId item : tree.items(key)) {
        if (text.size() > kLongestKeyTextBytes) {
          text += "...";
          break;
        }
        text += (text.size() > 1 ? ", " : "") + element_text(tree, item);
      }
      return text + (tree.items(key).size() == 1 ? ",)" : ")");
    }
    default:
      return element_text(tree, key);
  }
}

std::string element_text(const PickleTree& tree, ValueId id) {
  switch (tree.kind(id)) {
    case ValueKind::kString:
      return quoted(tree.text(id));
    case ValueKind::kGlobal:
      return global_text(tree, id);
    case ValueKind::kObject:
      return "<" + global_text(tree, tree.object(id).callable) + " object>";
    case ValueKind::kTuple:
      return "(...)";
    case ValueKind::kList:
    case ValueKind::kDict:
    case ValueKind::kSet:
    case ValueKind::kPersistent:
      return "<object>";
    default:
      return key_text(tree, id);
  }
}

std::string global_text(const PickleTree& tree, ValueId id) {
  if (tree.kind(id) != ValueKind::kGlobal) {
    return "<object>";
  }
  // Through quoted(), which escapes; the quotes are not wanted here.
  const PickleGlobal global = tree.global(tree.global_index(id));
  const std::string text = quoted(
      std::string(global.module.substr(0, kLongestKeyTextBytes)) + "." +
      std::string(global.name.substr(0, kLongestKeyTextBytes)));
  return text.substr(1, text.size() - 2);
}

}  // namespace ckpt_streamer::format
