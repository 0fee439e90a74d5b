#include "ops/node_values.h"

#include <ATen/core/ivalue_inl.h>
#include <c10/util/Exception.h>

#include <utility>
#include <vector>

#include "format/tree_walks.h"

namespace ckpt_streamer::ops {
namespace {

using format::NodeId;
using format::NodeKind;
using format::ValueTree;

std::string latin1(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size());
  for (const char byte : bytes) {
    const auto code = static_cast<unsigned char>(byte);
    if (code < 0x80) {
      text.push_back(byte);
    } else {  // two bytes of UTF-8
      text.push_back(static_cast<char>(0xC0 | (code >> 6)));
      text.push_back(static_cast<char>(0x80 | (code & 0x3F)));
    }
  }
  return text;
}

template <typename... Values>
c10::IValue tuple_of(Values&&... values) {
  return c10::ivalue::Tuple::create(
      std::vector<c10::IValue>{c10::IValue(std::forward<Values>(values))...});
}

c10::IValue array_value(const ValueTree& tree, NodeId id) {
  const format::ArrayNode array = tree.array(id);
  c10::List<int64_t> sizes;
  for (const NodeId size : array.sizes) {
    sizes.push_back(tree.int_value(size));
  }
  return tuple_of(
      "array",
      std::string(array.dtype),
      std::move(sizes),
      array.is_scalar,
      array.is_fortran_order,
      latin1(array.bytes));
}

c10::IValue sequence_value(const ValueTree& tree, NodeId id, const char* kind) {
  return tuple_of(
      kind,
      static_cast<int64_t>(tree.items(id).size()),
      format::is_plain(tree, id));
}

}  // namespace

c10::IValue value_of(const ValueTree& tree, NodeId id) {
  switch (tree.kind(id)) {
    case NodeKind::kNone:
      return {};
    case NodeKind::kBool:
      return tree.bool_value(id);
    case NodeKind::kInt:
      return tree.int_value(id);
    case NodeKind::kBigInt:
      return tuple_of("int", std::string(tree.text(id)));
    case NodeKind::kFloat:
      return tree.float_value(id);
    case NodeKind::kComplex: {
      const auto parts = tree.items(id);
      return c10::complex<double>(
          tree.float_value(parts[0]),
          tree.float_value(parts[1]));
    }
    case NodeKind::kString:
      return std::string(tree.text(id));
    case NodeKind::kBytes:
      return tuple_of("bytes", latin1(tree.text(id)));
    case NodeKind::kTuple:
      return sequence_value(tree, id, "tuple");
    case NodeKind::kList:
      return sequence_value(tree, id, "list");
    case NodeKind::kSet:
      return sequence_value(tree, id, "set");
    case NodeKind::kDict:
      return tuple_of(
          "dict",
          static_cast<int64_t>(tree.entries(id).size() / 2),
          std::string(tree.object(id).type_name));
    case NodeKind::kArray:
      return array_value(tree, id);
    case NodeKind::kGlobal:
      return tuple_of("global", std::string(tree.text(id)));
    case NodeKind::kObject:
      return tuple_of("object", std::string(tree.object(id).type_name));
    case NodeKind::kTensor:
      break;
  }
  TORCH_INTERNAL_ASSERT(false, "a tensor is made by its checkpoint");
}

void TextLot::add(std::string_view text) {
  has_newline_ = has_newline_ || text.find('\n') != std::string_view::npos;
  if (!ends_.empty()) {
    joined_ += '\n';
  }
  joined_ += text;
  ends_.push_back(joined_.size());
}

c10::IValue TextLot::take() && {
  if (!has_newline_) {
    return std::move(joined_);
  }
  c10::List<std::string> texts;
  size_t begin = 0;
  for (const size_t end : ends_) {
    texts.push_back(joined_.substr(begin, end - begin));
    begin = end + 1;
  }
  return texts;
}

}  // namespace ckpt_streamer::ops
